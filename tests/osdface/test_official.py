"""The published checkpoints: read strictly, and numerically what the published program makes of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from osdface import bundle, official
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
    assert (config.preset, config.vre_input, config.prompts, config.lora.rank) == ("sd21", "twice", "distinct", 16)
    assert set(config.provenance.imported) == {published.VRE, published.LORA, published.ADAPTER}
