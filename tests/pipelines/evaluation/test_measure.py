"""Measuring a chunk: what metrics are given, features of sets, and the way through columns of Ray's."""

import numpy as np
import pytest

from pipelines import metrics
from pipelines.evaluation import actors
from pipelines.evaluation.measure import Job, Measurer, restored
from pipelines.evaluation.pictures import Matched
from pipelines.metrics.protocol import Suite


class Mean:
    """A metric and a distribution: the mean level, and of sets the mean colours."""

    name, better, network, digest, reference = "mean", "higher", "", "", True

    def __call__(self, images, references=None):
        assert images.shape == references.shape
        return [None if image.mean() > 200 else float(image.mean()) for image in images]

    def counts(self, values):
        return np.isfinite(values)

    def features(self, images):
        return images.mean((1, 2), np.float64)

    def distance(self, features, references=None):
        return 0.0


@pytest.fixture
def job(written, tmp_path, monkeypatch) -> Job:
    """Four faces of two sizes, each of one level, the references of one more; the last has no value."""
    shapes, levels = [(16, 16), (16, 24), (16, 16), (16, 24)], [0, 10, 20, 250]
    made = {f"{i}.png": np.full((*shape, 3), levels[i], np.uint8) for i, shape in enumerate(shapes)}
    written(tmp_path / "restored", made)
    written(tmp_path / "hq", {name: image + np.uint8(1) for name, image in made.items()})
    monkeypatch.setattr(metrics, "load", lambda device, names, references: Suite([Mean()], [Mean()]))
    return Job(Matched({"restored": str(tmp_path / "restored"), "reference": str(tmp_path / "hq")}), {})


def test_pictures_of_several_sizes_are_measured_together_and_keep_their_order(job):
    measured = Measurer(job)(range(4))
    assert [one.row["restored_mean"] for one in measured] == [0, 10, 20, None]
    assert [one.number for one in measured] == [0, 1, 2, 3]
    assert [one.row["key"] for one in measured] == ["0", "1", "2", "3"]
    assert measured[2].features["restored", "mean"].tolist() == [20, 20, 20]
    assert measured[2].features["reference", "mean"].tolist() == [21, 21, 21]
    assert {what: image.shape for what, image in measured[1].shown.items()} == {
        "restored": (192, 192, 3),
        "reference": (192, 192, 3),
    }


def test_what_goes_through_ray_comes_back(job):
    measured = Measurer(job)([2, 3])
    columns = actors._columns(measured)
    rows = [{name: values[i] for name, values in columns.items()} for i in range(2)]
    for row, expected in zip(rows, measured, strict=True):
        got = actors._measured(row)
        assert got.number == expected.number
        assert got.row == expected.row
        assert got.features.keys() == expected.features.keys()
        assert all(np.array_equal(got.features[at], expected.features[at]) for at in got.features)
        assert all(np.array_equal(got.shown[what], expected.shown[what]) for what in got.shown)


def test_restored_pictures_come_back_at_their_own_sizes():
    class Half:
        """Restores at half the size."""

        def restore(self, images):
            return images[..., ::2, ::2]

    lq = [np.full((16, 16, 3), 40, np.uint8), np.full((32, 16, 3), 80, np.uint8), np.full((16, 16, 3), 120, np.uint8)]
    made = restored(Half(), lq)
    assert all(np.array_equal(one, other) for one, other in zip(made, lq, strict=True))
