"""The perceptual distances: over VGG16 against pyiqa and lpips, with random weights in the published files' layout
(wiring, not quality), and over dlib's network with its own weights."""

import functools

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision import models

from osdface import faces, weights
from osdface.errors import MissingWeights, UserError
from osdface.losses import perceptual
from osdface.losses.perceptual import DlibFeatures, PerceptualDistance, VGG19Distance, sobel

over_dlib = functools.cache(lambda kind: PerceptualDistance(kind, "dlib"))
KINDS = ("ea_dists", "dists", "ea_lpips", "lpips")


@pytest.fixture
def weights_folder(tmp_path, monkeypatch):
    """A machine with no weights but those of installed packages."""
    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "nowhere"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def feature_tensors(network) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = network().state_dict()
    return {k: torch.randn(v.shape) * 0.05 for k, v in shapes.items() if k.startswith("features.")}


@pytest.fixture
def vgg16(weights_folder):
    """VGG16's and DISTS's files; returns torchvision's layers with the same weights, and alpha and beta."""
    tensors = feature_tensors(models.vgg16)
    torch.save(tensors, weights_folder / "vgg16-397923af.pth")
    calibration = {name: torch.rand(1, 1475, 1, 1) for name in ("alpha", "beta")}
    torch.save(calibration, weights_folder / "DISTS_weights-f5e65c96.pth")
    with torch.device("meta"):
        network = models.vgg16()
    network.features.load_state_dict({k.removeprefix("features."): v for k, v in tensors.items()}, assign=True)
    return network, calibration


def test_a_missing_file_is_named_and_nothing_stands_in_for_it(weights_folder):
    for make, file in (
        (VGG19Distance, r"vgg19-dcbb9e9d\.pth"),
        (lambda: PerceptualDistance("ea_dists", "vgg16"), r"vgg16-397923af\.pth"),
        (lambda: perceptual.stage1_distance("lpips"), r"vgg16-397923af\.pth"),
    ):
        with pytest.raises(MissingWeights, match=file):
            make()
    torch.save(feature_tensors(models.vgg16), weights_folder / "vgg16-397923af.pth")
    with pytest.raises(MissingWeights, match="DISTS_weights"):
        PerceptualDistance("dists", "vgg16")


def test_vgg19_distance_compares_conv5_4(weights_folder):
    tensors = feature_tensors(models.vgg19)
    torch.save(tensors, weights_folder / "vgg19-dcbb9e9d.pth")
    distance = perceptual.stage1_distance("vgg19")
    assert distance.name == "vgg19"
    a, b = (torch.rand(1, 3, 32, 32) * 2 - 1 for _ in range(2))
    with torch.device("meta"):
        features = models.vgg19().features
    features.load_state_dict({k.removeprefix("features."): v for k, v in tensors.items()}, assign=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def transcription(x):
        x = ((x + 1) / 2 - mean[:, None, None]) / std[:, None, None]
        for layer in features[:35]:
            x = layer(x)
        return x

    torch.testing.assert_close(distance(a, b), ((transcription(a) - transcription(b)) ** 2).mean())


def test_another_networks_file_is_refused_with_a_tensor_that_differs(weights_folder):
    torch.save({"something": torch.zeros(1)}, weights_folder / "vgg19-dcbb9e9d.pth")
    with pytest.raises(UserError, match=r"not vgg19's weights: .* features\.0\.weight \(64, 3, 3, 3\) is missing"):
        VGG19Distance()
    with pytest.raises(UserError, match="alpha .* is missing"):
        perceptual.read_dists(weights_folder / "vgg19-dcbb9e9d.pth")
    with pytest.raises(UserError, match=r"lin0\.model\.1\.weight .* is missing"):
        perceptual.read_lpips(weights_folder / "vgg19-dcbb9e9d.pth", (64,))


@pytest.mark.parametrize("grey", ["mean", "luma"])
def test_over_vgg16_dists_is_pyiqas(vgg16, grey, monkeypatch):
    from pyiqa.archs import dists_arch

    network, calibration = vgg16
    monkeypatch.setattr(dists_arch.models, "vgg16", lambda weights: network)
    theirs = dists_arch.DISTS(pretrained=False)
    theirs.load_state_dict(calibration, strict=False)
    theirs.requires_grad_(False)
    a, b = torch.rand(2, 3, 48, 64), torch.rand(2, 3, 48, 64)
    plain = PerceptualDistance("dists", "vgg16")
    torch.testing.assert_close(plain.distance(a, b), theirs(a, b)[:, 0], atol=1e-5, rtol=1e-4)
    edge_aware = PerceptualDistance("ea_dists", "vgg16", grey)
    assert edge_aware.name == "ea_dists.vgg16"
    edges = (sobel(x, grey).repeat(1, 3, 1, 1) for x in (a, b))
    expected = theirs(a, b).mean() + theirs(*edges).mean()
    torch.testing.assert_close(edge_aware(a, b), expected, atol=1e-5, rtol=1e-4)
    assert float(edge_aware(a, a)) == pytest.approx(0, abs=1e-4)


def test_over_vgg16_lpips_is_the_lpips_packages(vgg16, monkeypatch):
    monkeypatch.setattr(lpips.pretrained_networks.tv, "vgg16", lambda pretrained: vgg16[0])
    theirs = lpips.LPIPS(net="vgg", verbose=False)
    a, b = torch.rand(2, 3, 48, 64), torch.rand(2, 3, 48, 64)
    expected = theirs(2 * a - 1, 2 * b - 1).detach()
    assert expected.max() > 1e-2
    torch.testing.assert_close(PerceptualDistance("lpips", "vgg16").distance(a, b), expected[:, 0, 0, 0])
    in_stage_1 = perceptual.stage1_distance("lpips")
    assert in_stage_1.name == "lpips.vgg16"
    torch.testing.assert_close(in_stage_1(2 * a - 1, 2 * b - 1), expected.mean())


@pytest.fixture(scope="module")
def people():
    """The six people of t1, FFHQ-aligned, 512 pixels, in [0, 1]."""
    image = faces.photographs()["t1"]
    aligned = [faces.align(image, face, 512)[0] for face in faces.DlibFrontal().detect(image)]
    return torch.from_numpy(np.stack(aligned)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("side", [32, 64, 160])
@pytest.mark.parametrize("kind", KINDS)
def test_over_dlibs_network_a_worse_picture_is_farther(kind, side, people):
    distance = over_dlib(kind)
    assert distance.name == f"{kind}.dlib"
    clean = F.interpolate(people[:2], (side, side), mode="area")
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    blurred = [F.interpolate(F.avg_pool2d(clean, k), (side, side), mode="bicubic") for k in (2, 4, 8)]
    for worse in (blurred, [clean + sigma * noise for sigma in (0.02, 0.05, 0.1)]):
        far = [float(distance(x, clean)) for x in (clean, *worse)]
        assert far[0] == pytest.approx(0, abs=1e-5)
        assert far == sorted(far)
        assert far[1] > 1e-4


def test_dists_over_dlibs_network_is_its_formula_with_every_map_counting_the_same(people):
    a = F.interpolate(people[:2], (64, 64), mode="area")
    b = a.flip(0)
    maps = [[a, *DlibFeatures()(a)], [b, *DlibFeatures()(b)]]
    expected = []
    for x, y in zip(*maps, strict=True):
        x, y = x.double().flatten(2), y.double().flatten(2)
        mean_x, mean_y = x.mean(2), y.mean(2)
        centred_x, centred_y = x - mean_x[..., None], y - mean_y[..., None]
        covariance = (centred_x * centred_y).mean(2)
        of_means = (2 * mean_x * mean_y + 1e-6) / (mean_x**2 + mean_y**2 + 1e-6)
        structure = (2 * covariance + 1e-6) / ((centred_x**2).mean(2) + (centred_y**2).mean(2) + 1e-6)
        expected.append((of_means.mean(1) + structure.mean(1)) / 2)
    assert len(expected) == 6
    expected = 1 - torch.stack(expected).mean(0)
    torch.testing.assert_close(over_dlib("dists").distance(a, b), expected.float(), atol=1e-4, rtol=0)


def test_lpips_over_dlibs_network_is_its_formula_with_weights_of_1(people):
    a = F.interpolate(people[:2], (64, 64), mode="area")
    maps = DlibFeatures()(a)
    expected = sum((F.normalize(x[:1]) - F.normalize(x[1:])).square().sum(1).mean() for x in maps)
    found = over_dlib("lpips").distance(a[:1], a[1:])
    torch.testing.assert_close(found, expected[None])
    in_stage_1 = perceptual.stage1_distance("dlib")
    assert in_stage_1.name == "lpips.dlib"
    torch.testing.assert_close(in_stage_1(2 * a[:1] - 1, 2 * a[1:] - 1), expected, atol=1e-4, rtol=1e-4)


def test_dlibs_maps_are_the_networks_own_on_pixels_scaled_as_dlib_does(people):
    """The descriptor, from the maps' last stage on: agreement with dlib itself is a test of the network."""
    features = DlibFeatures()
    network, chips = features.network, features.network.chips(people[:1])
    maps = features(chips)
    assert [tuple(x.shape[1:]) for x in maps] == [(32, 72, 72), (32, 35, 35), (64, 17, 17), (128, 8, 8), (256, 4, 4)]
    torch.testing.assert_close(network.stages[-1](maps[-1]).mean((2, 3)) @ network.fc, network(chips))


@pytest.mark.parametrize(
    ("kind", "side"), [*((kind, side) for kind in KINDS for side in (32, 64)), ("ea_dists", 512), ("ea_lpips", 512)]
)
def test_the_gradient_reaches_the_restored_picture_alone_and_leads_to_the_target(kind, side, people):
    distance = over_dlib(kind)
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    target = F.interpolate(people[:1], (side, side), mode="area")
    image = F.interpolate(F.avg_pool2d(target, 4), (side, side)).requires_grad_()
    before = distance(image, target)
    (gradient,) = torch.autograd.grad(before, image)
    assert gradient.isfinite().all()
    assert gradient[..., :-1, :-1].abs().sum((0, 1)).min() > 0  # dlib's first layer leaves out a last odd row
    with torch.no_grad():
        step = 1e-3 * gradient / gradient.abs().mean()
        assert distance(image - step, target) < before


def test_auto_takes_vgg16_where_it_and_its_calibration_are_and_dlibs_network_elsewhere(weights_folder):
    assert perceptual.choose_features("auto") == "dlib"
    assert perceptual.choose_features("vgg16") == "vgg16"
    assert perceptual.choose_stage1("auto") == "dlib"
    (weights_folder / "vgg16-397923af.pth").write_bytes(b"")
    assert perceptual.choose_features("auto", "ea_dists") == "dlib"
    assert perceptual.choose_features("auto", "lpips") == "vgg16"  # its calibration comes with a package
    assert perceptual.choose_stage1("auto") == "lpips"
    (weights_folder / "DISTS_weights-f5e65c96.pth").write_bytes(b"")
    (weights_folder / "vgg19-dcbb9e9d.pth").write_bytes(b"")
    assert perceptual.choose_features("auto", "ea_dists") == "vgg16"
    assert perceptual.choose_stage1("auto") == "vgg19"
    assert perceptual.choose_stage1("dlib") == "dlib"


def test_every_distance_has_its_weights_in_the_table():
    needed = [perceptual.needed(kind, features) for kind in KINDS for features in ("vgg16", "dlib")]
    needed += [perceptual.stage1_needed(kind) for kind in ("vgg19", "lpips", "dlib")]
    assert needed[0] == ["dists", "vgg16"]
    assert {name for names in needed for name in names} <= set(weights.WEIGHTS)
