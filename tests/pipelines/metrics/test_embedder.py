"""The evaluation network and the metrics over it: the file that ships, and the training that made it."""

import json

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open

from benchmarks import embedder as training
from osdface.errors import MissingWeights, UserError
from osdface.procedural import VERSION, render, sample
from pipelines.metrics import embedder
from pipelines.metrics.embedder import Embedder

FRESH = training.VERIFICATION + 1_000_000  # of the seeds kept for verification, ones that the file's figure did not use
IDENTITIES = 40


@pytest.fixture(scope="module")
def network() -> Embedder:
    return embedder.load()


@pytest.fixture(scope="module")
def people() -> np.ndarray:
    """Two pictures each of people whom training never saw, (IDENTITIES, 2, 64, 64, 3) uint8."""
    seeds = range(FRESH, FRESH + 2 * IDENTITIES, 2)
    return np.stack([[render(sample(seed + k, seed), Embedder.SIDE) for k in range(2)] for seed in seeds])


@pytest.fixture(scope="module")
def by_name() -> dict:
    suite = embedder.metrics()
    assert not suite.missing
    return {metric.name: metric for metric in (*suite.metrics, *suite.distributions)}


def blurred(pictures: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(picture, (0, 0), sigma) for picture in pictures])


def test_the_file_says_what_it_is():
    with safe_open(embedder.FILE, "pt") as file:
        about = json.loads(file.metadata()["about"])
        assert all(file.get_tensor(name).dtype == torch.float16 for name in file.keys())  # noqa: SIM118
    assert about["licence"] == "Apache-2.0"
    assert about["generator"].startswith("osdface.procedural ")  # of any version: the next test is of this one's faces
    assert float(about["verification_accuracy"]) >= 0.95
    assert embedder.FILE.stat().st_size <= 2_500_000


def test_it_tells_people_apart_whom_it_never_saw(network, people):
    figures = training.verification(network, people, FRESH, torch.device("cpu"))
    assert figures["accuracy"] >= 0.9  # 80 pairs: the error of 0.95 is 0.025
    assert figures["lookalikes"] >= 0.75


def test_descriptors_have_length_one_and_large_pictures_are_brought_to_its_size(network, people):
    small = torch.from_numpy(people[:4, 0]).permute(0, 3, 1, 2) / 255
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.allclose(network(small).norm(dim=1), torch.ones(4), atol=1e-5)
    assert network.sized(large).shape == small.shape
    assert (network(small) * network(large)).sum(1).min() > 0.9
    assert [tuple(one.shape[1:]) for one in network.maps(large)] == [
        (width, side, side) for width, side in zip(Embedder.WIDTHS, (64, 32, 16, 8, 4), strict=True)
    ]


def test_identity_is_one_for_the_same_picture_and_falls_as_it_is_spoilt(by_name, people):
    identity, pictures = by_name["identity.procedural"], people[:16, 0]
    same, soft, softer, another, stranger = (
        np.mean(identity(other, pictures))
        for other in (pictures, blurred(pictures, 1), blurred(pictures, 4), people[:16, 1], pictures[::-1])
    )
    assert same == pytest.approx(1, abs=1e-5)
    assert same > soft > softer
    assert same > another > stranger + 0.2
    assert identity.better == "higher"
    assert identity.counts(np.array([0.5, np.nan])).tolist() == [True, False]


@pytest.mark.parametrize("name", ["lpips.procedural", "dists.procedural"])
def test_perceptual_distance_is_nought_for_equal_pictures_and_grows_with_blur(by_name, people, name):
    distance, pictures = by_name[name], people[:8, 0]
    found = [distance(blurred(pictures, sigma), pictures) for sigma in (0.5, 1, 2, 4)]
    assert distance(pictures, pictures) == pytest.approx([0] * 8, abs=1e-5)
    assert (np.diff(found, axis=0) > 0).all()
    assert min(found[0]) > 1e-4
    assert distance.better == "lower"


def test_fid_is_nought_for_the_same_pictures_and_grows_with_blur(by_name, people):
    fid, pictures = by_name["fid.procedural"], people[:, 0]
    own = fid.features(pictures)
    assert own.shape == (IDENTITIES, sum(Embedder.WIDTHS[: embedder.FID_MAPS]))
    assert own.dtype == np.float64
    same, others, soft, softer = (
        fid.distance(fid.features(other), own)
        for other in (pictures, people[:, 1], blurred(pictures, 2.5), blurred(pictures, 4))
    )
    assert same == pytest.approx(0, abs=1e-6)
    assert same < others < soft < softer


def test_names_and_labels(by_name):
    assert tuple(by_name) == embedder.NAMES
    assert {(metric.network, len(metric.digest), metric.reference) for metric in by_name.values()} == {
        ("procedural", 16, True)
    }


def test_without_its_file_its_metrics_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(embedder, "FILE", tmp_path / "embedder.safetensors")
    suite = embedder.metrics()
    assert not suite.metrics
    assert not suite.distributions
    assert [(m.name, m.file, m.where) for m in suite.missing] == [
        (name, "embedder.safetensors", str(tmp_path)) for name in embedder.NAMES
    ]
    with pytest.raises(MissingWeights, match="python -m benchmarks.embedder"):
        embedder.load()


def test_another_networks_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="weight"):
        embedder.load(tmp_path / "other.safetensors")


def test_training_learns_and_is_repeatable(people):
    def train(steps: int):
        return training.train(people[:4], steps, 8, 2e-3, 0, torch.device("cpu"), bf16=False)

    _, losses = train(12)
    margin = training.SCALE * training.MARGIN  # which the loss has on top at the end, and does not at the start
    assert np.mean(losses[-3:]) - margin < 0.8 * losses[0]
    (network, losses), (again, same) = train(2), train(2)
    assert losses == same
    assert torch.equal(network.descriptor.weight, again.descriptor.weight)


def test_the_command_writes_a_file_that_loads_and_draws_its_faces_once(tmp_path, capsys, monkeypatch):
    out = tmp_path / "new.safetensors"
    command = f"--out {out} --identities 3 --per-identity 2 --verify 2 --steps 2 --batch 4 --workers 1".split()
    monkeypatch.setattr(training, "ProcessPoolExecutor", InThisProcess)
    training.main(command)
    first = out.read_bytes()
    monkeypatch.setattr(training, "_draw", None)  # a second call would fail
    training.main(command)
    assert out.read_bytes() == first
    assert embedder.load(out).descriptor.weight.abs().sum() > 0
    assert "verification_accuracy: " in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"faces-{VERSION}-{training.TRAINING}-3x2.npy",
        f"faces-{VERSION}-{training.VERIFICATION}-2x4.npy",
        "new.safetensors",
    ]


class InThisProcess:
    """A pool without processes, which take seconds to start."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, *arguments, chunksize):
        return map(function, *arguments)


def test_lookalikes_are_others_with_the_same_hair():
    seeds = range(FRESH, FRESH + 200)
    partners = training._lookalikes(seeds)
    assert (partners != np.arange(200)).all()
    style = [sample(seed).identity.hair_style for seed in seeds]
    assert np.mean([style[k] == style[partner] for k, partner in enumerate(partners)]) > 0.9


def test_spoiling_keeps_the_range_and_compression_only_what_is_asked():
    pictures = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = training.spoiled(pictures, torch.Generator().manual_seed(1))
    assert seen.shape == pictures.shape
    assert 0 <= seen.min() < seen.max() <= 1
    assert not torch.equal(seen, pictures)
    quantum = torch.tensor([-1.0, 0.02, 0.2, 0.5, -1.0, 9.0]).reshape(-1, 1, 1, 1, 1, 1)
    error = (training._compressed(pictures, quantum) - pictures).square().mean((1, 2, 3)).sqrt()
    assert error[[0, 4]].max() < 1e-5
    assert 0.001 < error[1] < error[2] < error[3] < error[5]
