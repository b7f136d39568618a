"""The published checkpoints: read strictly, and numerically what the published program makes of them."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from osdface import bundle, official, presets
from osdface.base import new_base, save_base
from osdface.errors import UserError
from osdface.export import export
from osdface.generator import OneStepGenerator
from osdface.prompts.vre import VisualEmbedder
from osdface.restorer import Restorer
from tests import published

DATA = Path(__file__).parents[1] / "data" / "official_parity"
PICTURES = ("square256.png", "wide448x320.png")


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def imported(release: Path, out: Path, **changed) -> official.Imported:
    files = {"vre": release / published.VRE, "lora": release / published.LORA, "adapter": release / published.ADAPTER}
    return official.import_official(**({**files, "base": release / "sd21", "out": out} | changed))


def assert_same(tensors: dict, others: dict) -> None:
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def picture(name: str) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(DATA / name))).permute(2, 0, 1)[None] / 255


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return published.write(tmp_path_factory.mktemp("release"), mixed=True)


@pytest.fixture(scope="module")
def folder(release) -> Path:
    imported(release, release / "bundle")
    return release / "bundle"


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / "expected.npz"))


@pytest.fixture(scope="module")
def restorer(folder) -> Restorer:
    return Restorer.load(folder)


@pytest.fixture(scope="module")
def passes(restorer) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Prompt and picture of one pass over each picture."""
    seen: list[torch.Tensor] = []
    hook = restorer.generator.embedder.register_forward_hook(lambda *call: seen.append(call[2]))
    restored = [restorer.restore(picture(name)) for name in PICTURES]
    hook.remove()
    return dict(zip(PICTURES, zip(seen, restored, strict=True), strict=True))


@pytest.mark.parametrize("name", PICTURES)
def test_prompts_are_the_published_programs(passes, expected, name):
    np.testing.assert_allclose(passes[name][0][0], expected[f"{name}.prompt"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_the_published_programs(passes, expected, name):
    np.testing.assert_allclose(passes[name][1][0, :, ::4, ::4], expected[f"{name}.image"], atol=1e-4, rtol=0)


def test_so_are_they_with_the_lora_not_merged(folder, passes, expected):
    _, generator = bundle.load(folder)
    assert any("lora_A" in name for name, _ in generator.unet.named_modules())
    with torch.inference_mode():
        for name in PICTURES:
            image = picture(name)
            if image.shape[2] == image.shape[3]:
                image = torch.nn.functional.interpolate(image, (512, 512), mode="bilinear", align_corners=True)
            z = generator.denoise(generator.encode(image * 2 - 1), generator.adapter(passes[name][0]))
            restored = (generator.decode(z) / 2 + 0.5).clamp(0, 1)[0, :, ::4, ::4]
            np.testing.assert_allclose(restored, expected[f"{name}.image"], atol=1e-4, rtol=0)


def test_both_key_styles_give_the_same_bundle(release, folder, tmp_path):
    mixed = load_file(release / published.LORA)
    assert {name.split(".")[-2] for name in mixed} == {"lora_A", "lora_B", "down", "up"}
    plain = {name.replace("lora.down", "lora_A").replace("lora.up", "lora_B"): t for name, t in mixed.items()}
    save_file(plain, tmp_path / "plain.safetensors")
    imported(release, tmp_path / "bundle", lora=tmp_path / "plain.safetensors")
    assert_same(load_file(tmp_path / "bundle" / bundle.LORA), load_file(folder / bundle.LORA))
    assert_same(load_file(folder / bundle.LORA), plain)


def test_the_bundle_says_what_decides_its_pictures(folder):
    config = bundle.verify(folder)
    assert (config.preset, config.vre_input, config.prompt, config.lora.rank) == ("sd21", "twice", "vre", 16)
    assert set(config.provenance.imported) == {published.VRE, published.LORA, published.ADAPTER}


# ---- strictness, on a small release
TINY = presets.preset("tiny")


@pytest.fixture
def small(tmp_path) -> dict[str, Path]:
    """The arguments of an import that works: files of a small model's release."""
    torch.manual_seed(0)
    base = new_base(TINY)
    save_base(base, tmp_path / "base")
    shape = TINY.model_copy(update={"vre": TINY.vre.model_copy(update={"input": "twice"})})
    model = OneStepGenerator.from_parts(shape, base, VisualEmbedder(shape.vre))
    folder, none = tmp_path / "model", bundle.Provenance()
    bundle.save(model, folder, preset="tiny", seed=0, base=tmp_path / "base", provenance=none)
    export(folder, "official", tmp_path / "release")
    files = {"vre": published.VRE, "lora": published.LORA, "adapter": published.ADAPTER}
    arguments = {name: tmp_path / "release" / file for name, file in files.items()}
    return {**arguments, "base": tmp_path / "base", "out": tmp_path / "out", "preset": "tiny"}


def test_what_was_published_can_be_trained_further(small):
    official.import_official(**small, alpha=8)
    config, generator = bundle.load_trainable(small["out"])
    assert {name.split(".")[0] for name, weight in generator.named_parameters() if weight.requires_grad} == {
        "unet",
        "adapter",
    }
    generator(torch.rand(1, 3, 64, 64)).image.square().mean().backward()
    torch.optim.SGD([weight for weight in generator.parameters() if weight.requires_grad], 0.1).step()
    again = small["out"].with_name("again")
    saved = bundle.save(
        generator, again, preset="tiny", seed=0, base=small["base"], provenance=bundle.Provenance(init="x")
    )
    assert (saved.vre_input, saved.prompt, saved.lora) == (config.vre_input, config.prompt, config.lora)
    assert_same(load_file(again / bundle.VRE), load_file(small["out"] / bundle.VRE))
    with pytest.raises(AssertionError):
        assert_same(load_file(again / bundle.LORA), load_file(small["out"] / bundle.LORA))


def change_vre(path: Path, change) -> None:
    state = load(path)["state_dict"]
    change(state)
    torch.save({"state_dict": state, "epoch": 2}, path)


def change_lora(path: Path, change) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


def refused(small: dict, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        official.import_official(**small)
    assert "\n" not in str(caught.value)
    assert not small["out"].exists()


def test_what_only_training_needs_is_left_out_and_said(small):
    extra = (
        "vqvae_LQ.decoder.conv_in.bias",
        "vqvae_LQ.post_quant_conv.bias",
        "vqvae.encoder.x",
        "loss.x",
        "logit_scale",
    )
    change_vre(small["vre"], lambda state: state.update(dict.fromkeys(extra, torch.zeros(2))))
    found = official.import_official(**small)
    assert sum(found.unused.values()) == len(extra)
    assert found.unused["the LQ decoder, for stage 1 only"] == 1
    restored = Restorer.load(small["out"]).restore(torch.rand(1, 3, 64, 64))
    assert restored.isfinite().all()


def test_every_difference_is_counted_and_the_first_are_named(small):
    def change(state):
        del state["vqvae_LQ.quant_conv.bias"]
        state["vqvae_LQ.encoder.conv_in.bias"] = torch.zeros(7)
        state["vqvae_LQ.encoder.extra"] = torch.zeros(2, 3)
        state["epoch"] = 3

    change_vre(small["vre"], change)
    refused(
        small,
        r"associate_2.ckpt: 4 tensors differ.*quant_conv.bias \(64,\) is missing, .*conv_in.bias is \(7,\) where "
        r"\(32,\) is expected, .*extra \(2, 3\) is unknown, epoch int is unknown$",
    )


def test_a_long_list_is_cut(small):
    change_vre(small["vre"], lambda state: [state.pop(name) for name in list(state)[:9]])
    refused(small, r"9 tensors differ.* is missing, and 5 more$")


def test_a_lora_with_a_module_left_out_is_refused(small):
    name = "unet.conv_out.lora_B.weight"
    change_lora(small["lora"], lambda state: state.pop(name))
    refused(small, r"1 tensors differ.*: conv_out\.lora_B\.weight \(8, 64, 1, 1\) is missing")


def test_a_lora_of_another_base_is_refused(small):
    unet = TINY.unet | {"block_out_channels": [16, 32, 96]}
    save_base(new_base(TINY.model_copy(update={"unet": unet})), small["base"])
    refused(small, r"pytorch_lora_weights\.safetensors: \d+ tensors differ.* is expected")


def test_one_module_in_both_styles_is_refused(small):
    twin = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora"
    change_lora(small["lora"], lambda state: state.update({f"{twin}.down.weight": state[f"{twin}_A.weight"].clone()}))
    refused(small, r"attn1\.to_q\.lora_A\.weight twice")


def test_the_rank_is_that_of_the_tensors_and_modules_can_be_named(small):
    def halve(state):
        for name in list(state):
            if not name.split(".lora_")[0].endswith(("to_q", "to_v")):
                del state[name]
            elif "lora_A" in name:
                state[name] = state[name][:8].clone()
            else:
                state[name] = state[name][:, :8].clone()

    change_lora(small["lora"], halve)
    refused(small, "is missing")
    official.import_official(**small, targets=["to_q", "to_v"], alpha=4)
    config, generator = bundle.load(small["out"])
    assert config.lora == presets.LoRAShape(rank=8, alpha=4, targets=["to_q", "to_v"])
    attention = generator.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    assert attention.to_q.scaling == {"default": 0.5}
    assert not hasattr(attention.to_k, "lora_A")


def test_modules_that_the_base_does_not_have_are_named(small):
    small["targets"] = ["to_z"]
    refused(small, "no modules to_z")


class Touch:
    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("which", ["vre", "adapter"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_write_a_file_is_refused_never_executed(small, tmp_path, which, zipped):
    victim = tmp_path / "victim"
    torch.save({"state_dict": {"a": Touch(victim)}}, small[which], _use_new_zipfile_serialization=zipped)
    refused(small, "refused, it holds more than tensors .*open")
    assert not victim.exists()
    torch.load(small[which], weights_only=False)  # it would have
    assert victim.exists()


@pytest.mark.parametrize("which", ["vre", "lora", "adapter"])
def test_damaged_and_missing_files_are_named(small, which):
    name = re.escape(small[which].name)
    data = small[which].read_bytes()
    for damaged in (data[:100], data[: len(data) // 2], b"", b"not a checkpoint"):
        small[which].write_bytes(damaged)
        refused(small, name)
    small[which].unlink()
    refused(small, f"{name}: cannot be read")


def test_what_is_no_dictionary_of_tensors_is_refused(small):
    torch.save([torch.zeros(2)], small["adapter"])
    refused(small, "holds no tensors by name")
    save_file({"unet.x": torch.zeros(1)}, small["lora"])
    torch.save({}, small["adapter"])
    refused(small, "holds no LoRA of a UNet")


def test_a_missing_base_is_named(small):
    shutil.rmtree(small["base"] / "unet")
    refused(small, r"unet/config\.json missing")


def test_nothing_is_overwritten(small):
    small["out"].mkdir()
    (small["out"] / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="is there already"):
        official.import_official(**small)
    assert (small["out"] / "mine.txt").read_text() == "kept"


def test_paired_prompts_of_a_base_of_another_width_are_refused(small):
    refused(small | {"adapter": None}, "paired codes make prompts 128 wide, the base's UNet takes 64")
