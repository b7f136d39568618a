"""Bundles in other programs' layouts, opened there."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from osdface import bundle, official, presets
from osdface.base import load_base, new_base, save_base
from osdface.errors import UsageError, UserError
from osdface.export import export
from osdface.generator import OneStepGenerator
from osdface.prompts import new_embedder
from osdface.restorer import Restorer

TINY = presets.preset("tiny")
ALPHA_BAR = float(DDIMScheduler(**TINY.scheduler).alphas_cumprod[TINY.timestep])
FILES = {"vre": "associate_2.ckpt", "lora": bundle.LORA, "adapter": "embedding_change_weights.pth"}


def make(folder: Path, kind: presets.PromptKind = "vre") -> Path:
    """A small bundle of the published habits, whose adapters are not zero."""
    torch.manual_seed(0)
    width = {"vre": TINY.vre.width, "vre_cat": 2 * TINY.vre.width}[kind]
    save_base(new_base(TINY.model_copy(update={"unet": TINY.unet | {"cross_attention_dim": width}})), folder / "base")
    vre = TINY.vre.model_copy(update={"input": "twice"})
    lora = TINY.lora.model_copy(update={"rank": 4, "alpha": 6})
    shape = TINY.model_copy(update={"vre": vre, "lora": lora, "prompt": kind})
    embedder = new_embedder(kind, vre, width)
    generator = OneStepGenerator.from_parts(shape, load_base(folder / "base"), embedder)
    for name, parameter in generator.named_parameters():
        if "lora_B" in name or name.startswith("adapter"):
            torch.nn.init.normal_(parameter, std=0.05)
    bundle.save(
        generator, folder / "model", preset="tiny", seed=5, base=folder / "base", provenance=bundle.Provenance()
    )
    return folder / "model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, int, torch.Tensor]:
    return torch.randn(2, 8, 32, 32), TINY.timestep, torch.randn(2, 24, 64)


@pytest.fixture(scope="module")
def ours(folder, inputs) -> torch.Tensor:
    return bundle.load(folder)[1].unet(*inputs).sample


def test_a_stock_pipeline_loads_base_and_lora(folder, ours, inputs, tmp_path):
    assert f"timestep {TINY.timestep}" in export(folder, "diffusers", tmp_path / "out")[0]
    texts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"))
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out", **texts)
    plain = pipeline.unet(*inputs).sample
    pipeline.load_lora_weights(tmp_path / "out")
    loaded = pipeline.unet(*inputs).sample
    assert (plain - ours).abs().max() > 1e-2
    torch.testing.assert_close(loaded, ours, atol=1e-5, rtol=1e-4)


def test_a_stock_unet_loads_the_lora(folder, ours, inputs, tmp_path):
    export(folder, "diffusers", tmp_path / "out")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet")
    unet.load_lora_adapter(tmp_path / "out" / bundle.LORA, prefix="unet")
    torch.testing.assert_close(unet(*inputs).sample, ours, atol=1e-5, rtol=1e-4)


def test_merged_tensors_alone_make_the_same_networks(folder, ours, inputs, tmp_path):
    export(folder, "safetensors", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    unet = UNet2DConditionModel.from_config(config["unet"])
    unet.load_state_dict(load_file(tmp_path / "out" / "unet.safetensors"))
    torch.testing.assert_close(unet(*inputs).sample, ours, atol=1e-5, rtol=1e-4)
    vae = AutoencoderKL.from_config(config["vae"])
    vae.load_state_dict(load_file(tmp_path / "out" / "vae.safetensors"))
    assert config["alpha_bar"] == pytest.approx(ALPHA_BAR)
    assert config["vre"]["input"] == "twice"
    for name, file in (("vre", bundle.VRE), ("prompt_adapter", bundle.ADAPTER)):
        found, kept = load_file(tmp_path / "out" / f"{name}.safetensors"), load_file(folder / file)
        assert found.keys() == kept.keys()
        assert all(torch.equal(found[key], kept[key]) for key in kept)


@pytest.mark.parametrize("kind", ["vre", "vre_cat"])
def test_out_to_the_official_layout_and_in_again_changes_no_tensor(tmp_path, kind):
    folder = make(tmp_path, kind)
    notes = export(folder, "official", tmp_path / "out")
    assert "--lora_rank 4 --lora_alpha 6" in notes[0]
    assert f"its step at 399, this model at {TINY.timestep}" in " ".join(notes)
    assert any("--cat_prompt_embedding" in note for note in notes) == (kind == "vre_cat")
    files = {name: tmp_path / "out" / file for name, file in FILES.items()}
    files |= {"adapter": None} if kind == "vre_cat" else {}
    official.import_official(**files, base=folder / "base", out=tmp_path / "again", preset="tiny")
    before, after = bundle.verify(folder), bundle.verify(tmp_path / "again")
    for name in before.weights():
        one, other = load_file(folder / name), load_file(tmp_path / "again" / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert before.architecture() == after.architecture()
    images = torch.rand(2, 3, 64, 64)
    one, other = (Restorer.load(path) for path in (folder, tmp_path / "again"))
    assert one.codes(images).shape == (2, 48 if kind == "vre_cat" else 24, 64)
    assert torch.equal(one.restore(images), other.restore(images))
    assert before.base.sha256 == after.base.sha256


def test_what_the_published_program_does_otherwise_is_said(folder, tmp_path):
    config = bundle.read_config(folder)
    (copy := tmp_path / "once").mkdir()
    for file in folder.rglob("*"):
        if file.is_file():
            (copy / file.relative_to(folder)).parent.mkdir(exist_ok=True)
            (copy / file.relative_to(folder)).write_bytes(file.read_bytes())
    (copy / "config.json").write_text(config.model_copy(update={"vre_input": "once"}).model_dump_json())
    assert not any("twice" in note for note in export(folder, "official", tmp_path / "a"))
    assert any("twice, this model once" in note for note in export(copy, "official", tmp_path / "b"))


def test_nothing_is_overwritten_and_unknown_formats_are_refused(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="is there already"):
        export(folder, "official", tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]
    with pytest.raises(UsageError, match="format 'onnx' does not exist; known: diffusers, official, safetensors"):
        export(folder, "onnx", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_damaged_bundle_is_not_exported(folder, tmp_path):
    with pytest.raises(UserError, match="not a model bundle"):
        export(tmp_path, "official", tmp_path / "out")


def test_a_halved_bundle_is_half_as_large_and_restores_nearly_the_same(tmp_path):
    folder, half = make(tmp_path), tmp_path / "half"
    export(folder, "half", half)
    before, after = bundle.verify(folder), bundle.verify(half)
    assert before.architecture() == after.architecture()
    assert before.provenance == after.provenance
    for name in (name for name in before.files if name.endswith(".safetensors")):
        assert load_file(half / name).keys() == load_file(folder / name).keys()
        assert (half / name).stat().st_size < 0.6 * (folder / name).stat().st_size
    images = torch.rand(2, 3, 64, 64)
    one, other = (Restorer.load(path).restore(images) for path in (folder, half))
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, atol=0.05, rtol=0)


def test_a_bundle_whose_base_is_elsewhere_is_not_halved(tmp_path):
    folder = make(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["base"]["path"] = str(tmp_path / "base")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="only a bundle with its base is halved"):
        export(folder, "half", tmp_path / "half")
