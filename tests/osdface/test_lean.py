"""A restorer that reads its UNet block by block gives the same pictures, and holds none of it in between."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from osdface import bundle, lean
from osdface.base import new_base, save_base
from osdface.errors import UserError
from osdface.generator import OneStepGenerator
from osdface.presets import preset
from osdface.prompts.vre import VisualEmbedder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A bundle of random weights and a LoRA that makes a difference; (folder, generator)."""
    folder = tmp_path_factory.mktemp("lean")
    torch.manual_seed(5)
    tiny = preset("tiny")
    base = new_base(tiny)
    save_base(base, folder / "base")
    generator = OneStepGenerator.from_parts(tiny, base, VisualEmbedder(tiny.vre)).eval().requires_grad_(False)
    for name, parameter in generator.unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    bundle.save(
        generator, folder / "bundle", preset="tiny", seed=0, base=folder / "base", provenance=bundle.Provenance()
    )
    return folder / "bundle", generator


@torch.inference_mode()
def test_pictures_are_the_same_at_every_pass_and_the_files_too(saved):
    folder, generator = saved
    files = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    expected = generator(images).image
    small = lean.load(folder)
    for _ in range(2):
        assert torch.allclose(small(images).image, expected, atol=1e-4)
    assert {path: path.read_bytes() for path in files} == files
    without = copy.deepcopy(generator)
    without.unet.disable_adapters()
    assert not torch.allclose(without(images).image, expected, atol=1e-2)  # so the LoRA was there


def test_it_holds_little_of_the_unet_and_moves(saved):
    folder, generator = saved
    small = lean.load(folder).to("cpu")
    held = sum(parameter.numel() for parameter in small.unet.parameters())
    assert 0 < held < 0.05 * sum(parameter.numel() for parameter in generator.unet.parameters())


def test_a_lora_of_another_base_or_with_half_a_pair_is_refused(saved, tmp_path):
    folder, _ = saved
    tensors = load_file(folder / bundle.LORA)
    name = next(name for name in tensors if name.endswith(("lora_A.weight", "lora.down.weight")))
    for wrong, said in (
        ({key.replace("down_blocks.1", "down_blocks.7"): value for key, value in tensors.items()}, "another base"),
        ({key: value for key, value in tensors.items() if key != name}, "not a LoRA tensor"),
        ({key: value for key, value in tensors.items() if "lora_B" not in key and "lora.up" not in key}, "without"),
    ):
        file = tmp_path / "lora.safetensors"
        save_file(wrong, file)
        with pytest.raises(UserError, match=said):
            lean.Weights(folder / "base" / "unet", file, 1.0)


def test_a_base_in_half_precision_is_refused(saved, tmp_path):
    folder, _ = saved
    save_file({"conv_in.weight": torch.zeros(2, dtype=torch.float16)}, tmp_path / "unet.safetensors")
    with pytest.raises(UserError, match=r"conv_in\.weight is F16"):
        lean.Weights(tmp_path, folder / bundle.LORA, 1.0)
