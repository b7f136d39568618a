import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from osdface import bundle, presets
from osdface.base import base_digest, load_base, new_base, save_base
from osdface.errors import UserError
from osdface.generator import OneStepGenerator
from osdface.prompts.vre import VisualEmbedder
from osdface.restorer import Restorer

TINY = presets.preset("tiny").model_copy(update={"timestep": 399})  # bundles have their own, 399 where they are older


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, OneStepGenerator]:
    """A bundle whose LoRA is not zero, and the generator it was saved from."""
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    save_base(new_base(TINY), folder / "base")
    generator = OneStepGenerator.from_parts(TINY, load_base(folder / "base"), VisualEmbedder(TINY.vre), seed=5).eval()
    for name, parameter in generator.named_parameters():
        if "lora_B" in name or name.startswith("adapter"):
            torch.nn.init.normal_(parameter, std=0.05)
    provenance = bundle.Provenance(runs={"osd": "abc"}, dataset_digest="d1")
    bundle.save(generator, folder / "model", preset="tiny", seed=5, base=folder / "base", provenance=provenance)
    return folder / "model", generator


def copy(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return to


def test_load_gives_what_was_saved_and_merging_changes_nothing(trained):
    folder, generator = trained
    config, loaded = bundle.load(folder)
    assert config.provenance.runs == {"osd": "abc"}
    x = torch.rand(2, 3, 64, 64)
    expected = generator(x * 2 - 1).image
    torch.testing.assert_close(loaded(x * 2 - 1).image, expected)
    restored = Restorer.load(folder).restore(x)
    torch.testing.assert_close(restored, (expected / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=1e-4)


def test_a_stock_diffusers_unet_loads_the_lora(trained):
    folder, generator = trained
    unet = UNet2DConditionModel.from_pretrained(folder / "base", subfolder="unet")
    z, prompt = torch.randn(1, 8, 32, 32), torch.randn(1, 24, 64)
    plain = unet(z, 399, prompt).sample
    unet.load_lora_adapter(folder / bundle.LORA, prefix="unet")
    changed = unet(z, 399, prompt).sample
    assert (changed - plain).abs().max() > 1e-2
    torch.testing.assert_close(changed, generator.unet(z, 399, prompt).sample, atol=1e-5, rtol=1e-4)


def test_untrained_is_the_generator_of_that_seed(trained):
    folder, _ = trained
    _, untrained = bundle.load(folder, trained=False)
    fresh = OneStepGenerator.from_parts(TINY, load_base(folder / "base"), untrained.embedder, seed=5).eval()
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(untrained(x).image, fresh(x).image)


HABITS = {"vre_input": "once", "prompts": "distinct", "lora": TINY.lora.model_dump()}


@pytest.mark.parametrize("habits", [HABITS, dict.fromkeys(HABITS), {}])
def test_a_bundle_of_version_1_is_read_with_what_it_says_or_the_presets_habits(trained, tmp_path, habits):
    folder = copy(trained[0], tmp_path / "older")
    now = json.loads((folder / "config.json").read_text())
    older = {"format_version": 1} | {key: now[key] for key in ("preset", "seed", "base", "files")}
    older |= {"provenance": {"runs": {"osd": "abc"}, "dataset_digest": "d1", "git_revision": None}, **habits}
    (folder / "config.json").write_text(json.dumps(older))
    read, loaded = bundle.load(folder)
    assert read.model_dump() == now | {"vre_input": read.vre_input, "lora": read.lora and read.lora.model_dump()}
    assert (read.architecture().vre, read.architecture().prompt) == (TINY.vre, "vre")
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded(x).image, trained[1](x).image)


def test_paired_prompts_of_version_1_are_vre_cat_and_unknown_ones_are_refused(trained, tmp_path):
    folder = copy(trained[0], tmp_path / "older")
    now = json.loads((folder / "config.json").read_text())
    older = {key: value for key, value in now.items() if key != "prompt"} | {"format_version": 1}
    (folder / "config.json").write_text(json.dumps(older | {"prompts": "paired"}))
    assert bundle.read_config(folder).prompt == "vre_cat"
    assert bundle.read_config(folder).weights() == {bundle.LORA, bundle.VRE}
    (folder / "config.json").write_text(json.dumps(older | {"prompts": "single"}))
    with pytest.raises(UserError, match=r"config\.json: not a bundle's configuration"):
        bundle.read_config(folder)


def test_training_further_starts_where_the_bundle_ended(trained):
    folder, generator = trained
    config, further = bundle.load_trainable(folder)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(further(x).image, generator(x).image)
    names = {name for name, weight in generator.named_parameters() if weight.requires_grad}
    assert {name for name, weight in further.named_parameters() if weight.requires_grad} == names
    assert {name.split(".")[0] for name in names} == {"unet", "adapter"}
    before = {name: weight.clone() for name, weight in further.state_dict().items()}
    further(x).image.square().mean().backward()
    torch.optim.SGD([further.get_parameter(name) for name in names], 0.1).step()
    changed = {name for name, weight in further.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed <= names
    assert {name.split(".")[0] for name in changed} == {"unet", "adapter"}
    assert all(further.get_parameter(name).grad is not None for name in names)
    base = load_base(bundle.base_folder(folder, config))
    assert bundle.load_trainable(folder, base)[1].unet is base.unet


def test_digest_follows_the_content(trained, tmp_path):
    folder, _ = trained
    assert bundle.digest(folder) == bundle.digest(copy(folder, tmp_path / "same"))
    assert bundle.read_config(folder).base.sha256 == base_digest(folder / "base")


def test_a_changed_byte_a_missing_file_and_an_unfinished_folder_are_refused(trained, tmp_path):
    folder, _ = trained
    changed = copy(folder, tmp_path / "changed")
    path = changed / bundle.ADAPTER
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="prompt_adapter.safetensors: differs"):
        bundle.load(changed)
    path.unlink()
    with pytest.raises(UserError, match="prompt_adapter.safetensors: missing"):
        bundle.verify(changed)
    (changed / "config.json").unlink()
    with pytest.raises(UserError, match="not a model bundle"):
        bundle.verify(changed)


def test_another_format_version_and_a_damaged_config_are_refused_by_name(trained, tmp_path):
    folder = copy(trained[0], tmp_path / "b")
    config = json.loads((folder / "config.json").read_text())
    for version in (9, 0, "2", None):
        (folder / "config.json").write_text(json.dumps(config | {"format_version": version}))
        with pytest.raises(UserError, match=f"format {version}; this program reads formats 1 and 2"):
            bundle.verify(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        bundle.verify(folder)


def test_a_base_with_a_part_missing_names_it(trained, tmp_path):
    base = copy(trained[0] / "base", tmp_path / "base")
    (base / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match="vae/config.json"):
        load_base(base)


def test_what_ships_is_named_and_whole():
    assert "tiny" in bundle.shipped()
    for name in bundle.shipped():
        assert bundle.verify(bundle.resolve(name)).base.path == "base"
