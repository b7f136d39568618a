"""Detectors by name."""

import logging

import numpy as np
import pytest

from osdface import detectors, faces
from osdface.errors import MissingWeights, UsageError


def test_names():
    assert detectors.detector().name == detectors.detector("dlib").name == "dlib"
    assert detectors.detector("dlib-cnn").name == "dlib-cnn"
    for name in ("insightface:", "yolo", ""):
        with pytest.raises(UsageError, match="there are dlib, dlib-cnn and insightface:PACK"):
            detectors.detector(name)


def test_the_network_of_dlib_finds_a_face_where_the_frontal_detector_does():
    image = faces.photographs()["astronaut"][:256, 100:356]
    (known,), (found,) = faces.DlibFrontal().detect(image), detectors.detector("dlib-cnn").detect(image)
    assert np.abs(found.landmarks - known.landmarks).max() < 8
    assert found.score > 0.5


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """A pack's file under a home of its own, and a network in its place that knows two faces."""
    monkeypatch.setattr(detectors.Path, "home", lambda: tmp_path)
    detectors._say_licence.cache_clear()
    folder = tmp_path / ".insightface" / "models" / "buffalo_x"
    folder.mkdir(parents=True)
    (folder / "det_10g.onnx").write_bytes(b"")

    class Network:
        def detect(self, image):
            self.shown = image
            points = faces.TEMPLATE_OF_FIVE * 100
            return np.array([[200, 0, 300, 100, 0.8], [10, 20, 110, 120, 0.9]]), np.stack(
                [points + np.array([200, 0]), points]
            )

    network = Network()
    monkeypatch.setattr(detectors, "_network", lambda path, threshold: network)
    return network


def test_an_insightface_pack_is_asked_in_its_own_order_of_colours(pack, caplog):
    image = np.zeros((400, 400, 3), np.uint8)
    image[..., 0] = 255
    with caplog.at_level(logging.WARNING):
        found, _ = (detectors.detector("insightface:buffalo_x").detect(image) for _ in range(2))
    assert pack.shown[0, 0].tolist() == [0, 0, 255]
    assert [face.box for face in found] == [(10, 20, 110, 120), (200, 0, 300, 100)]
    assert [record.getMessage() for record in caplog.records if "non-commercial" in record.getMessage()] == [
        detectors.LICENCE % "buffalo_x"
    ]
    _, matrix = faces.align(image, found[1], 64)  # five points have a template of their own
    points = found[1].landmarks @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(points, faces.TEMPLATE_OF_FIVE * 64 - 0.5, atol=1e-6)


def test_a_pack_that_is_not_there_is_refused_and_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(detectors.Path, "home", lambda: tmp_path)
    with pytest.raises(MissingWeights, match=r"insightface:buffalo_l.*det_\*\.onnx in .*or use --detector dlib"):
        detectors.detector("insightface:buffalo_l")
    assert list(tmp_path.iterdir()) == []
