"""The detectors that a name chooses: dlib's frontal one, dlib's CNN, insightface's packs."""

import functools
import importlib.util
import logging
import threading
from pathlib import Path

import dlib
import numpy as np

from osdface import weights
from osdface.errors import MissingWeights, UsageError
from osdface.faces import Detector, DlibFrontal, Face, shrunk, sorted_faces

log = logging.getLogger(__name__)
PACK = "insightface:"
LICENCE = "insightface's pack '%s' is licensed by its authors for non-commercial research only"
SIDE = 640  # pixels that insightface's networks look at


def detector(name: str = DlibFrontal.name) -> Detector:
    """The detector "dlib", "dlib-cnn" or "insightface:PACK" (buffalo_l, say).

    Raises UsageError for another name, MissingWeights where its files are not on this machine.
    """
    if name == DlibFrontal.name:
        return DlibFrontal()
    if name == DlibCnn.name:
        return DlibCnn()
    if name.startswith(PACK) and name != PACK:
        return InsightFace(name.removeprefix(PACK))
    raise UsageError(f"detector '{name}': there are {DlibFrontal.name}, {DlibCnn.name} and {PACK}PACK")


class DlibCnn:
    """dlib's network (max-margin detection) with dlib's landmarks, both free to use.

    Finds turned faces that the frontal detector misses; some 13 s and 1.3 GB each million pixels on a CPU, so that it
    looks at no more than `pixels`. Raises MissingWeights where a file is not on this machine.
    """

    name = "dlib-cnn"

    def __init__(self, pixels: int = 1_000_000):
        self.pixels = pixels
        weights.find("dlib_mmod")

    def detect(self, image: np.ndarray) -> list[Face]:
        small, factor = shrunk(image, self.pixels)
        found = _mmod(threading.get_ident())(small, 0)
        boxes = [(f.rect.left(), f.rect.top(), f.rect.right(), f.rect.bottom()) for f in found]
        return sorted_faces(image, boxes, [f.confidence for f in found], factor)


@functools.lru_cache(maxsize=32)
def _mmod(thread: int) -> dlib.cnn_face_detection_model_v1:
    return dlib.cnn_face_detection_model_v1(str(weights.find("dlib_mmod")))


class InsightFace:
    """The detector of an insightface pack, with its five landmarks. Its licence is said once.

    Raises MissingWeights where insightface or the pack's detector is not on this machine: nothing is fetched.
    """

    def __init__(self, pack: str, threshold: float = 0.5):
        self.name, self.threshold = PACK + pack, threshold
        self._path = str(_pack_file(pack))
        _say_licence(pack)

    def detect(self, image: np.ndarray) -> list[Face]:
        boxes, points = _network(self._path, self.threshold).detect(np.ascontiguousarray(image[..., ::-1]))
        found = []
        for (*box, score), landmarks in zip(boxes, points, strict=True):
            left, top, right, bottom = (round(float(side)) for side in box)
            found.append(Face((left, top, right, bottom), float(score), np.asarray(landmarks, float)))
        return sorted(found, key=lambda face: face.box)


def _pack_file(pack: str) -> Path:
    folder = Path.home() / ".insightface" / "models" / pack
    found = sorted(folder.glob("det_*.onnx"))
    if not found or not importlib.util.find_spec("insightface"):
        raise MissingWeights(
            f"detector '{PACK}{pack}': needs insightface and a det_*.onnx in {folder}; put the pack there, or use "
            f"--detector {DlibFrontal.name}"
        )
    return found[0]


@functools.cache
def _say_licence(pack: str) -> None:
    log.warning(LICENCE, pack)


@functools.lru_cache(maxsize=2)
def _network(path: str, threshold: float):
    from insightface.model_zoo import get_model

    network = get_model(path, providers=["CPUExecutionProvider"])
    network.prepare(ctx_id=-1, input_size=(SIDE, SIDE), det_thresh=threshold)
    return network
