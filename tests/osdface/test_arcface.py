"""ArcFace in torch: against onnxruntime, its files, its crops. Weights are random: wiring, not quality."""

import cv2
import numpy as np
import pytest
import torch
from insightface.model_zoo.arcface_onnx import ArcFaceONNX
from torch import nn

from osdface import faces, identity, weights
from osdface.errors import MissingWeights, UsageError, UserError
from osdface.identity import arcface
from osdface.losses.identity import identity_loss


def randomise(network: nn.Module) -> nn.Module:
    """Statistics and slopes unlike a fresh network's, so that each of them counts."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.4)
    return network


@pytest.fixture(scope="module")
def networks():
    return {"arcface_r50": randomise(arcface.ArcFace("arcface_r50")), "arcface_r18": randomise(arcface.GreyArcFace())}


class Embedded(nn.Module):
    """What published ONNX files hold: the network from its normalised input on."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network.embed(x)


@pytest.mark.parametrize(("name", "channels", "side"), [("arcface_r50", 3, 112), ("arcface_r18", 1, 128)])
def test_descriptors_are_those_of_onnxruntime_as_insightface_runs_it(networks, name, channels, side, tmp_path):
    network, path = networks[name], tmp_path / "exported.onnx"
    torch.onnx.export(Embedded(network), torch.zeros(1, channels, side, side), path, dynamo=False)
    image = faces.photographs()["astronaut"][:side, 180 : 180 + side]  # uint8 RGB
    if channels == 3:
        expected = ArcFaceONNX(str(path)).get_feat(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))  # it takes OpenCV's order
        chip = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    else:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        session = ArcFaceONNX(str(path)).session
        blob = (grey[None, None].astype(np.float32) - 127.5) / 127.5
        (expected,) = session.run(None, {session.get_inputs()[0].name: blob})
        chip = torch.from_numpy(grey)[None, None].float() / 255
    descriptor = network(chip).numpy()
    assert np.abs(descriptor).max() > 0.5
    np.testing.assert_allclose(descriptor, expected, atol=1e-4, rtol=0)


def test_the_networks_have_the_published_sizes():
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in arcface.ArcFace(name).parameters()) for name in arcface.DEPTHS]
        sizes.append(sum(p.numel() for p in arcface.GreyArcFace().parameters()))
    assert sizes == [43_590_848, 65_156_160, 25_627_081]


def test_published_layouts_are_loaded_strictly(networks, tmp_path):
    for name, prefix in (("arcface_r50", ""), ("arcface_r18", "module.")):
        network = networks[name]
        tensors = {prefix + key: tensor for key, tensor in network.state_dict().items() if "num_batches" not in key}
        torch.save(tensors, tmp_path / f"{name}.pth")
        loaded = identity.load(name, tmp_path / f"{name}.pth")
        images = torch.rand(1, 3, 64, 64)
        assert loaded.name == name
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        torch.testing.assert_close(loaded(loaded.chips(images)), network(network.chips(images)), atol=0, rtol=0)
        assert not any(buffer.is_meta for buffer in loaded.buffers())


def empty(name: str) -> dict[str, torch.Tensor]:
    """Tensors of the shapes of a network's, one number on the disk each."""
    with torch.device("meta"):
        network = arcface.GreyArcFace() if name == "arcface_r18" else arcface.ArcFace(name)
    return {key: torch.zeros(()).expand(tensor.shape) for key, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("held", "wanted", "difference"),
    [
        ("arcface_r50", "arcface_r100", r"layer2\.4\.bn1\.weight \(128,\) is missing"),
        ("arcface_r100", "arcface_r50", r"layer2\.4\.bn1\.weight \(128,\) is unknown"),
        ("arcface_r18", "arcface_r50", r"layer1\.0\.bn3\.weight \(64,\) is missing"),
    ],
)
def test_another_networks_file_is_refused_with_the_first_tensor_that_differs(held, wanted, difference, tmp_path):
    torch.save(empty(held), tmp_path / "backbone.pth")
    with pytest.raises(UserError, match=rf"backbone\.pth: not {wanted}'s weights: .*{difference}"):
        identity.load(wanted, tmp_path / "backbone.pth")


def test_what_is_no_state_dict_is_refused_and_never_executed(tmp_path):
    path = tmp_path / "backbone.pth"
    torch.save(nn.Linear(1, 1), path)
    with pytest.raises(UserError, match="it holds more than tensors"):
        identity.load("arcface_r50", path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="something else than a state dict"):
        identity.load("arcface_r50", path)


@pytest.mark.parametrize("side", [64, 512])
def test_the_crop_puts_ffhqs_five_points_where_arcface_wants_them(side):
    network = arcface.ArcFace("arcface_r50")
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    for point, wanted in zip(faces.TEMPLATE_OF_FIVE, arcface.TEMPLATE, strict=True):
        column, row = point * side - 0.5
        spot = torch.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * (side / 40) ** 2))
        chip = network.chips(spot.expand(1, 3, -1, -1))[0, 0]
        assert chip.shape == (112, 112)
        axis = torch.arange(112)
        found = np.array([float((chip.sum(0) * axis).sum()), float((chip.sum(1) * axis).sum())]) / float(chip.sum())
        np.testing.assert_allclose(found, arcface.MATRIX[:, :2] @ point + arcface.MATRIX[:, 2], atol=0.05)
        assert np.linalg.norm(found - wanted) < 2.6  # what no similarity takes from the one template to the other


def test_the_crop_is_a_warp_by_the_similarity():
    """Against OpenCV, which insightface aligns with, at the chip's own scale."""
    smooth = cv2.GaussianBlur(np.random.default_rng(0).random((150, 150, 3), np.float32), (0, 0), 4)
    pixels = arcface.MATRIX @ np.array([[1 / 150, 0, 0.5 / 150], [0, 1 / 150, 0.5 / 150], [0, 0, 1]])
    expected = cv2.warpAffine(smooth, pixels, (112, 112))
    chip = arcface.ArcFace("arcface_r50").chips(torch.from_numpy(smooth).permute(2, 0, 1)[None])
    np.testing.assert_allclose(chip[0].permute(1, 2, 0), expected, atol=2e-3)


def test_the_grey_chip_is_the_whole_pictures_luma():
    images = torch.rand(2, 3, 64, 64)
    chips = arcface.GreyArcFace().chips(images)
    luma = 0.2989 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    assert chips.shape == (2, 1, 128, 128)
    for row, column in ((0, 0), (1, 2)):  # positions of 64 pixels that lie 1/4 or 3/4 between two
        expected = luma[0, row : row + 2, column : column + 2]
        weighted = 0.75 * 0.75 * expected[0, 0] + 0.75 * 0.25 * (expected[0, 1] + expected[1, 0])
        weighted = weighted + 0.25 * 0.25 * expected[1, 1]
        torch.testing.assert_close(chips[0, 0, 2 * row + 1, 2 * column + 1], weighted)


@pytest.mark.parametrize(("name", "side"), [("arcface_r50", 64), ("arcface_r18", 64), ("arcface_r18", 256)])
def test_the_gradient_of_eq_13_reaches_the_restored_picture_alone(networks, name, side):
    network = networks[name]
    restored, target = (torch.rand(1, 3, side, side, requires_grad=True) for _ in range(2))
    assert network.chips(restored.bfloat16()).dtype == torch.float32
    identity_loss(network, network.chips(restored), network.chips(target)).backward()
    assert restored.grad.isfinite().all()
    assert (restored.grad.abs().sum((0, 1)) > 0).float().mean() > 0.3
    assert target.grad is None
    step = 1e-2 * restored.grad / restored.grad.norm()
    with torch.no_grad():
        losses = [
            float(identity_loss(network, network.chips(restored + sign * step), network.chips(target)))
            for sign in (1, -1)
        ]
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(float(restored.grad.norm()), rel=0.1)


def test_auto_is_insightfaces_where_it_is_and_dlibs_elsewhere_never_that_of_deg(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder = home / "weights"
    folder.mkdir(parents=True)
    (folder / weights.WEIGHTS["arcface_r18"].file).write_bytes(b"")
    assert identity.choose("auto") == "dlib"
    assert identity.load("dlib").name == "dlib"
    with pytest.raises(MissingWeights, match=r"arcface_r50\.pth is not on this machine"):
        identity.load("arcface_r50")
    (folder / weights.WEIGHTS["arcface_r50"].file).write_bytes(b"")
    assert identity.choose("auto") == "arcface_r50"
    assert identity.choose("arcface_r18") == "arcface_r18"
    with pytest.raises(UsageError, match="identity network 'arcface' does not exist; known: dlib, arcface_r50"):
        identity.choose("arcface")
