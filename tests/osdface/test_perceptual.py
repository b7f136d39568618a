"""Loading of the perceptual networks, with random weights in the published files' layout: wiring, not quality."""

import pytest
import torch
from torchvision.models import vgg16, vgg19

from osdface.errors import MissingWeights, UserError
from osdface.losses.perceptual import EdgeAwareDISTS, VGG19Distance, sobel


@pytest.fixture
def weights_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "nowhere"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def feature_tensors(network) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = network().state_dict()
    return {k: torch.randn(v.shape) * 0.02 for k, v in shapes.items() if k.startswith("features.")}


def test_a_missing_file_is_named_and_nothing_stands_in_for_it(weights_folder):
    with pytest.raises(MissingWeights, match=r"vgg19-dcbb9e9d\.pth"):
        VGG19Distance()
    with pytest.raises(MissingWeights, match="DISTS_weights"):
        EdgeAwareDISTS()


def test_vgg19_distance_compares_conv5_4(weights_folder):
    tensors = feature_tensors(vgg19)
    torch.save(tensors, weights_folder / "vgg19-dcbb9e9d.pth")
    distance = VGG19Distance()
    a, b = (torch.rand(1, 3, 32, 32) * 2 - 1 for _ in range(2))
    with torch.device("meta"):
        features = vgg19().features
    features.load_state_dict({k.removeprefix("features."): v for k, v in tensors.items()}, assign=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def transcription(x):
        x = ((x + 1) / 2 - mean[:, None, None]) / std[:, None, None]
        for layer in features[:35]:
            x = layer(x)
        return x

    torch.testing.assert_close(distance(a, b), ((transcription(a) - transcription(b)) ** 2).mean())


def test_another_networks_file_is_refused(weights_folder):
    torch.save({"something": torch.zeros(1)}, weights_folder / "vgg19-dcbb9e9d.pth")
    with pytest.raises(UserError, match="not VGG19"):
        VGG19Distance()


def test_ea_dists_is_dists_of_pictures_plus_dists_of_edges(weights_folder):
    with torch.device("meta"):
        classifier = {k: v for k, v in vgg16().state_dict().items() if not k.startswith("features.")}
    zeros = {k: torch.zeros(1).expand(v.shape) for k, v in classifier.items()}  # one number on disk each
    torch.save(feature_tensors(vgg16) | zeros, weights_folder / "vgg16-397923af.pth")
    tensors = {name: torch.rand(1, 1475, 1, 1) for name in ("alpha", "beta")}
    torch.save(tensors, weights_folder / "DISTS_weights-f5e65c96.pth")
    loss = EdgeAwareDISTS("luma")
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    edges = (sobel(x, "luma").repeat(1, 3, 1, 1) for x in (a, b))
    torch.testing.assert_close(loss(a, b), loss.dists(a, b).mean() + loss.dists(*edges).mean())
    assert float(loss(a, a)) == pytest.approx(0, abs=1e-4)
    torch.testing.assert_close(loss.dists.alpha, tensors["alpha"])
