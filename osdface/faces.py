"""Finding faces in a photograph, aligning them as FFHQ does, and pasting them back."""

import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import dlib
import numpy as np

from osdface import weights
from osdface.errors import UserError
from osdface.imagefile import read_image

# Where FFHQ-aligned pictures have the eyes' centres and the nose base, in the unit square. The eyes are facexlib's
# 512-px template (192.98, 239.95) and (318.91, 240.19); dlib's fifth point is the base of the nose, which lies a little
# below that template's nose tip: measured on faces aligned by the eyes and mouth.
TEMPLATE = np.array([[0.377, 0.469], [0.623, 0.469], [0.500, 0.640]])
FEATHER = 0.1  # of the crop's side, over which a pasted face fades into the photograph


class Face(NamedTuple):
    """box: (left, top, right, bottom) in pixels; landmarks: (3, 2), centres of left and right eye, base of the nose."""

    box: tuple[int, int, int, int]
    score: float
    landmarks: np.ndarray


class Detector(Protocol):
    """Finds the faces of a uint8 RGB picture, left to right."""

    def detect(self, image: np.ndarray) -> list[Face]: ...


class DlibFrontal:
    """dlib's frontal detector (one upsampling, threshold 0.2) and its five-point landmarks, both free to use."""

    def __init__(self, threshold: float = 0.2, upsampling: int = 1):
        self.threshold, self.upsampling = threshold, upsampling

    def detect(self, image: np.ndarray) -> list[Face]:
        detector, predictor = _dlib()
        image = np.ascontiguousarray(image)
        boxes, scores, _ = detector.run(image, self.upsampling, self.threshold)
        found = []
        for box, score in zip(boxes, scores, strict=True):
            points = np.array([(point.x, point.y) for point in predictor(image, box).parts()], float)
            eyes = sorted([points[0:2].mean(0), points[2:4].mean(0)], key=lambda eye: eye[0])
            corners = (box.left(), box.top(), box.right(), box.bottom())
            found.append(Face(corners, float(score), np.array([*eyes, points[4]])))
        return sorted(found, key=lambda face: face.box)


@functools.cache
def _dlib() -> tuple:
    return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(weights.find("dlib_landmarks")))


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares similarity (rotation, scale, shift) that takes points (n, 2) to points (n, 2): 2x3."""
    x, y = source[:, 0], source[:, 1]
    one, zero = np.ones(len(x)), np.zeros(len(x))
    system = np.vstack([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, dx, dy = np.linalg.lstsq(system, target.T.ravel(), rcond=None)[0]
    return np.array([[a, -b, dx], [b, a, dy]])


def align(image: np.ndarray, face: Face, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The FFHQ-aligned crop of a face, (size, size, 3) uint8, and the 2x3 matrix from photograph to crop.

    Shrinking goes by area, through a crop at the photograph's own resolution; beyond the border it is reflected.
    """
    matrix = similarity(face.landmarks, TEMPLATE * size)
    factor = max(1, int(np.ceil(1 / np.hypot(*matrix[:, 0]))))
    crop = cv2.warpAffine(
        image, matrix * factor, (size * factor, size * factor), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA), matrix


def whole(image: np.ndarray, size: int) -> tuple[Face, np.ndarray, np.ndarray]:
    """A picture that is one aligned face: itself as a face, its (size, size) crop, and the matrix between them."""
    height, width = image.shape[:2]
    matrix = np.array([[size / width, 0, 0], [0, size / height, 0]])
    kernel = cv2.INTER_AREA if min(height, width) > size else cv2.INTER_CUBIC
    crop = cv2.resize(image, (size, size), interpolation=kernel)
    return Face((0, 0, width, height), 1.0, TEMPLATE * (width, height)), crop, matrix


def is_aligned(image: np.ndarray) -> bool:
    """Whether a square picture is one FFHQ-aligned face already: one is found, and it would hardly be moved."""
    if image.shape[0] != image.shape[1]:
        return False
    side = 256
    found = DlibFrontal().detect(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA))
    if len(found) != 1:
        return False
    return bool(np.abs(found[0].landmarks / side - TEMPLATE).max() < 0.08)


def paste(image: np.ndarray, crop: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The photograph with a restored crop blended in; pixels outside its soft mask stay bit for bit."""
    height, width = image.shape[:2]
    inverse = cv2.invertAffineTransform(matrix)
    back = cv2.warpAffine(crop, inverse, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.warpAffine(_soft_mask(crop.shape[0]), inverse, (width, height), flags=cv2.INTER_LINEAR)[..., None]
    blended = image + mask * (back.astype(np.float32) - image)
    return np.where(mask > 0, blended.round().clip(0, 255), image).astype(np.uint8)


@functools.cache
def _soft_mask(size: int) -> np.ndarray:
    """1 inside, falling smoothly to 0 at the border, (size, size) float32."""
    distance = (np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5) / size
    ramp = np.clip(distance / FEATHER - 0.2, 0, 1)
    smooth = (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
    return np.outer(smooth, smooth)


def photographs() -> dict[str, np.ndarray]:
    """The two real photographs of installed packages: insightface's `t1` (six faces), scikit-image's `astronaut`.

    Raises UserError naming the package that is not installed.
    """
    found = {}
    for name, package, file in (
        ("t1", "insightface", "data/images/t1.jpg"),
        ("astronaut", "skimage", "data/astronaut.png"),
    ):
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / file if spec and spec.origin else None
        if path is None or not path.is_file():
            raise UserError(f"the photograph '{name}' comes with {package}, which is not installed: `make install`")
        found[name] = read_image(path.read_bytes(), str(path))
    return found
