"""The metrics of pyiqa, filled from files of the published layouts with random weights, against pyiqa itself: wiring,
not quality. It finds the same files where it looks for them, so it fetches none."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.transforms.functional import to_tensor

from osdface import weightfile, weights
from osdface.errors import UserError
from osdface.losses.perceptual import LPIPS_WIDTHS, PerceptualDistance
from pipelines import metrics
from pipelines.metrics import iqa


@pytest.fixture
def undated(monkeypatch):
    """The table without digests: no test has the published bytes, only their layout."""
    table = {name: entry._replace(sha256=None, package=None) for name, entry in weights.WEIGHTS.items()}
    monkeypatch.setattr(weights, "WEIGHTS", table)
    monkeypatch.setattr(weightfile, "WEIGHTS", table)


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """pyiqa's own metric of a name, by its own loading, on pictures (B, H, W, 3) uint8."""
    import pyiqa
    from pyiqa.utils import download_util

    def fetch(url, *args, **kwargs):
        raise AssertionError(f"{url} is not to be fetched")

    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path / "hub" / "pyiqa"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    monkeypatch.setattr(download_util, "download_url_to_file", fetch)

    def values(name: str, *pictures: np.ndarray) -> list[float]:
        network = pyiqa.create_metric(name, device="cpu")
        return network(*(torch.stack([to_tensor(image) for image in images]) for images in pictures)).flatten().tolist()

    return values


def publish(folder: Path, name: str, held: object) -> None:
    """Put a file where we look for it, and a link where pyiqa, torchvision or CLIP do."""
    path = folder / weights.WEIGHTS[name].file
    torch.save(held, path)
    for place in ("checkpoints", "pyiqa"):
        link = Path(torch.hub.get_dir()) / place / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, link)


def backbone(name: str) -> dict[str, torch.Tensor]:
    """A torchvision network's tensors: of the classifier, which nothing here asks, one number each on the disk."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in get_model(name).state_dict().items()}
    return {
        key: torch.randn(shape) * 0.05 if key.startswith("features.") else torch.zeros(()).expand(shape)
        for key, shape in shapes.items()
    }


def shaped_like(network: nn.Module) -> dict[str, torch.Tensor]:
    """Random tensors for a network, positive where a variance needs that."""
    torch.manual_seed(1)
    return {
        key: torch.rand(value.shape) * 0.1 + 0.5 if "running_var" in key else torch.randn(value.shape) * 0.02
        if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }  # fmt: skip


def calibration(name: str) -> dict[str, torch.Tensor]:
    if name == "dists":
        return {part: torch.rand(1, 1475, 1, 1) for part in ("alpha", "beta")}
    return {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(LPIPS_WIDTHS[name])}


@pytest.mark.parametrize(
    ("name", "called", "features", "own"),
    [
        ("lpips.vgg", "lpips-vgg", "vgg16", "lpips_vgg"),
        ("lpips.alex", "lpips", "alexnet", "lpips_alex"),
        ("dists", "dists", "vgg16", "dists"),
    ],
)
def test_lpips_and_dists_are_pyiqas(folder, undated, theirs, photographs, spoilt, name, called, features, own):
    photographs, spoilt = photographs[:, :96, :128], spoilt[:, :96, :128]
    publish(folder, features, backbone(features))
    publish(folder, own, calibration(own))
    suite = metrics.load(names=[name])
    assert suite.missing == []
    (metric,) = suite.metrics
    assert (metric.name, metric.better, metric.reference, len(metric.digest)) == (name, "lower", True, 16)
    found = metric(spoilt, photographs)
    np.testing.assert_allclose(found, theirs(called, spoilt, photographs), rtol=1e-4)
    assert metric(photographs, photographs) == pytest.approx([0, 0], abs=1e-5)
    assert found[0] > 0.001
    swapped = metric(spoilt[..., ::-1], photographs[..., ::-1])
    assert swapped != pytest.approx(found, rel=1e-3)  # red is not blue
    small = metric.smallest
    assert all(value is not None for value in metric(spoilt[:, :small, :small], photographs[:, :small, :small]))
    assert metric(spoilt[:, : small - 1], photographs[:, : small - 1]) == [None, None]


def test_musiq_is_pyiqas(folder, undated, theirs, photographs):
    from pyiqa.archs.musiq_arch import MUSIQ

    publish(folder, "musiq", shaped_like(MUSIQ(pretrained=False)))
    (metric,) = metrics.load(names=["musiq"]).metrics
    pictures = np.stack([photographs[0], photographs[0, ..., ::-1]])[:, :96, :64]
    found = metric(pictures)
    np.testing.assert_allclose(found, theirs("musiq", pictures), rtol=1e-4, atol=1e-5)
    assert found[0] != pytest.approx(found[1], rel=1e-4)  # red is not blue


def test_a_file_of_another_network_is_refused_and_named(folder, undated):
    torch.save({"some.weight": torch.zeros(2)}, folder / weights.WEIGHTS["musiq"].file)
    with pytest.raises(UserError, match=r"musiq_koniq_ckpt-e95806b9\.pth: not MUSIQ's weights: \d+ tensors differ"):
        metrics.load(names=["musiq"])


@pytest.mark.parametrize("kind", ["dists", "lpips"])
def test_over_dlibs_features_a_picture_has_its_own_value(kind, photographs, spoilt):
    (metric,) = metrics.load(names=[f"{kind}.dlib"]).metrics
    found = metric(spoilt, photographs)
    distance = PerceptualDistance(kind, "dlib")
    for value, image, reference in zip(found, spoilt, photographs, strict=True):
        pair = (to_tensor(image)[None], to_tensor(reference)[None])
        assert value == pytest.approx(float(distance(*pair)), rel=1e-5)
    assert metric(photographs, photographs) == pytest.approx([0, 0], abs=1e-5)
    assert metric.network == "dlib"
    assert weights.WEIGHTS["dlib_identity"].sha256.startswith(metric.digest)


@pytest.mark.full
def test_maniqa_is_pyiqas_and_needs_no_file_of_timms(folder, undated, theirs, photographs, monkeypatch):
    from pyiqa.archs import maniqa_arch

    make, crops = maniqa_arch.timm.create_model, maniqa_arch.uniform_crop
    monkeypatch.setattr(maniqa_arch, "uniform_crop", lambda x, crop_size, crop_num: crops(x, crop_size, 1))  # of 20
    monkeypatch.setattr(maniqa_arch.timm, "create_model", lambda name, **_: make(name, pretrained=False))
    publish(folder, "maniqa", shaped_like(maniqa_arch.MANIQA(pretrained=False)))
    expected = theirs("maniqa", photographs[:1, :96, :96])
    monkeypatch.setattr(maniqa_arch.timm, "create_model", make)
    (metric,) = metrics.load(names=["maniqa"]).metrics
    assert metric(photographs[:1, :96, :96]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.full
def test_clipiqa_is_pyiqas(folder, undated, theirs, photographs, monkeypatch):
    iqa._import_clip()
    from pyiqa.archs import clip_model

    network = clip_model.CLIP(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12)  # of RN50, as published
    path = folder / weights.WEIGHTS["clip_rn50"].file
    torch.jit.script(tree(shaped_like(network))).save(path)
    monkeypatch.setattr(clip_model, "_download", lambda *_: str(path))
    (metric,) = metrics.load(names=["clipiqa"]).metrics
    found = metric(photographs)
    assert found == pytest.approx(theirs("clipiqa", photographs), rel=1e-4)
    assert all(0 < value < 1 for value in found)


def tree(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Nested modules that hold these tensors and do nothing."""
    root = nn.Module()
    for key, tensor in tensors.items():
        *parents, last = key.split(".")
        module = root
        for name in parents:
            if name not in dict(module.named_children()):
                module.add_module(name, nn.Module())
            module = module.get_submodule(name)
        module.register_buffer(last, tensor)
    return root


def test_what_is_not_the_published_clip_is_not_opened(folder):
    torch.jit.script(nn.Linear(1, 1)).save(folder / weights.WEIGHTS["clip_rn50"].file)
    with pytest.raises(UserError, match=r"RN50\.pt: not the published RN50\.pt"):
        metrics.load(names=["clipiqa"])
