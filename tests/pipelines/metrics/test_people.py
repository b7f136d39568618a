"""Identity, Deg., IDA and LMD: dlib's with its own weights, the others wired with random ones in published layouts."""

import math

import cv2
import numpy as np
import pytest
import torch
from facexlib.alignment import awing_arch

from osdface import faces, identity, weights
from osdface.identity.arcface import ArcFace, GreyArcFace
from pipelines import metrics
from pipelines.metrics import people


@pytest.fixture(scope="module")
def portraits() -> np.ndarray:
    """Two people, aligned, (2, 128, 128, 3)."""
    photograph = faces.photographs()["t1"]
    found = faces.DlibFrontal().detect(photograph)
    return np.stack([faces.align(photograph, face, 128)[0] for face in found[:2]])


@pytest.fixture
def grey(folder, portraits) -> GreyArcFace:
    """The network of Deg. with random weights, published under DataParallel's names.

    Its statistics are those of pictures, or their descriptors would hardly differ.
    """
    torch.manual_seed(0)
    network = GreyArcFace()
    norms = [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train().momentum = 1
    mixed = torch.from_numpy(portraits).float().mean(3) / 127.5 - 1
    network.embed(torch.cat([mixed, mixed.flip(1), mixed.flip(2), torch.rand(2, 128, 128)])[:, None])
    for norm in norms:
        norm.eval()
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, folder / weights.WEIGHTS["deg"].file)
    return network


def test_a_face_is_its_own_and_more_itself_than_another(portraits):
    (metric,) = metrics.load(names=["identity.dlib"]).metrics
    assert metric(portraits, portraits) == pytest.approx([1, 1], abs=1e-6)
    blurred = np.stack([cv2.GaussianBlur(portrait, (0, 0), 2) for portrait in portraits])
    assert min(metric(blurred, portraits)) > max(metric(portraits[::-1], portraits))
    assert metric(portraits[..., ::-1], portraits) < [0.999, 0.999]  # red is not blue
    both = identity.similarities(list(blurred), list(portraits))
    assert metric(blurred, portraits) == pytest.approx(both, abs=1e-5)


def test_arcface_gives_the_cosine_of_its_descriptors(folder, portraits):
    torch.manual_seed(0)
    network = ArcFace("arcface_r50")
    torch.save(network.state_dict(), folder / weights.WEIGHTS["arcface_r50"].file)
    suite = metrics.load(names=["identity.arcface_r50", "identity.arcface_r100"])
    assert [missing.name for missing in suite.missing] == ["identity.arcface_r100"]
    (metric,) = suite.metrics
    images = torch.from_numpy(portraits).permute(0, 3, 1, 2) / 255
    a, b = network(network.chips(images)).numpy()
    expected = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert metric(portraits, portraits[::-1]) == pytest.approx([expected, expected], abs=1e-5)


def test_deg_is_vqfrs_angle_of_grey_pictures(grey, portraits):
    (metric,) = metrics.load(names=["deg"]).metrics
    found = metric(portraits, portraits[::-1])
    descriptors = []
    for portrait in portraits:
        picture = cv2.resize(cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY), (128, 128), interpolation=cv2.INTER_LINEAR)
        descriptors.append(grey.embed(torch.from_numpy((picture - 127.5) / 127.5)[None, None].float())[0].numpy())
    a, b = descriptors
    expected = np.arccos(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))) / math.pi * 180
    assert found == pytest.approx([expected, expected], rel=1e-3)
    assert expected > 10


def test_deg_drops_pairs_under_one_degree(grey, portraits):
    (metric,) = metrics.load(names=["deg"]).metrics
    assert metric(portraits, portraits) == pytest.approx([0, 0], abs=0.01)
    counted = metric.counts(np.array([0.0, 0.999, 1.0, 60.0, np.nan]))
    assert counted.tolist() == [False, False, True, True, False]


def test_deg_takes_the_ancestors_file_of_the_same_network(grey, folder):
    (folder / "resnet18_110.pth").rename(folder / "arcface_resnet18.pth")
    assert [metric.name for metric in metrics.load(names=["deg", "ida"]).metrics] == ["deg", "ida"]


def test_ida_is_daefrs_radians_with_red_and_blue_exchanged(grey, portraits):
    (metric,) = metrics.load(names=["ida"]).metrics
    descriptors = []
    for portrait in portraits:
        red, green, blue = torch.from_numpy(portrait / 255.0).float().unbind(2)
        picture = 0.2989 * blue + 0.587 * green + 0.114 * red
        descriptors.append(grey.embed(picture[None, None])[0].numpy())  # of 128 pixels already
    a, b = descriptors
    expected = np.arccos(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
    assert metric(portraits, portraits[::-1]) == pytest.approx([expected, expected], rel=1e-3)


def test_landmarks_are_decoded_as_facexlib_does(monkeypatch):
    monkeypatch.setattr(np, "float", float, raising=False)  # it asks for what numpy no longer has
    rng = np.random.default_rng(0)
    heatmaps = rng.random((2, 98, 64, 64), np.float32) * 0.1
    heatmaps[:, :, 1:-1, 1:-1] += rng.random((2, 98, 62, 62), np.float32)  # no peak at the border
    np.testing.assert_array_equal(
        people.decode(torch.from_numpy(heatmaps)), awing_arch.calculate_points(heatmaps.copy())
    )


def test_at_the_border_a_landmark_moves_inwards_and_others_stay():
    heatmaps = torch.zeros(1, 2, 64, 64)
    heatmaps[0, 0, 63, 63], heatmaps[0, 0, 62, 63], heatmaps[0, 0, 63, 62] = 1, 0.5, 0.5
    heatmaps[0, 1, 10, 20], heatmaps[0, 1, 11, 20] = 1, 0.5
    np.testing.assert_array_equal(people.decode(heatmaps)[0], [[63.25, 63.25], [20.5, 10.75]])


def test_lmd_is_the_distance_of_facexlibs_landmarks(folder, portraits, monkeypatch):
    """But for their decoding, which the test before has: random weights put points into corners, where it fails."""
    monkeypatch.setattr(awing_arch, "calculate_points", lambda heatmaps: people.decode(torch.from_numpy(heatmaps)))
    torch.manual_seed(0)
    network = awing_arch.FAN(num_modules=4, num_landmarks=98, device="cpu").eval()
    torch.save({"state_dict": network.state_dict(), "epoch": 1}, folder / weights.WEIGHTS["lmd"].file)
    wide = np.stack([cv2.resize(portrait, (160, 96)) for portrait in portraits])
    with torch.inference_mode():
        points = people.landmarks(network, wide, "cpu")
        theirs = [network.get_landmarks(np.ascontiguousarray(picture[..., ::-1])) for picture in wide]  # takes BGR
    np.testing.assert_allclose(points, np.stack(theirs))
    (metric,) = metrics.load(names=["lmd"]).metrics
    expected = np.linalg.norm(points[0] - points[1], axis=1).mean()
    assert metric(wide[:1], wide[1:]) == pytest.approx([expected])
