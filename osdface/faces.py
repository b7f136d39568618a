"""Finding faces in a photograph, aligning them as FFHQ does, and pasting them back."""

import functools
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import dlib
import numpy as np

from osdface import weights
from osdface.errors import UserError
from osdface.imagefile import read_image

# Where an FFHQ-aligned picture has the centres of its left and right eye and the base of its nose, in the unit square.
# The eyes are those of facexlib's template for 512 pixels, (192.98, 239.95) and (318.90, 240.19). That template has the
# nose's tip, dlib its base: it is put 0.774 eye distances below the eyes, as in the mean face of dlib's own alignment.
TEMPLATE = np.array([[0.3779, 0.4696], [0.6238, 0.4701], [0.5009, 0.6601]])
# facexlib's own: both eyes, the nose's tip, both corners of the mouth, as detectors with a network find them.
TEMPLATE_OF_FIVE = np.array([[0.3769, 0.4686], [0.6229, 0.4691], [0.5012, 0.6133], [0.3931, 0.7254], [0.6115, 0.7249]])
ALIGNED = 0.08  # of the side: how far landmarks of an aligned picture may be off; 0.05 measured on a head turned far
FEATHER = 0.1  # of the crop's side, over which a pasted face fades into the photograph
# Pixels that the frontal detector looks at, at once: larger pictures are shrunk to them, by FINE at most, or else also
# searched in tiles of that many. It takes some 0.6 s and 50 MB each million, and finds faces of 40 pixels and more: of
# 80 in a photograph of any size.
SEARCHED = 4_000_000
FINE = 2
OVERLAP = 256  # pixels of two tiles: more than a face has that isn't found in the shrunk whole of 500 million pixels
SAME = 0.4  # intersection over union above which two boxes are of one face
ROWS = 512  # of a photograph that a face is pasted into at once: a face may be as large as it


class Face(NamedTuple):
    """box: (left, top, right, bottom) in pixels; landmarks: (3, 2), centres of left and right eye, base of the nose, or
    (5, 2), these eyes, tip of the nose, left and right corner of the mouth."""

    box: tuple[int, int, int, int]
    score: float
    landmarks: np.ndarray


class Detector(Protocol):
    """Finds the faces of a uint8 RGB picture, left to right. `name` is what results record."""

    name: str

    def detect(self, image: np.ndarray) -> list[Face]: ...


class DlibFrontal:
    """dlib's frontal detector (one upsampling, threshold 0.2) and its five-point landmarks, both free to use.

    Looks at no more than `pixels` of a picture at once; landmarks are found in all of them. Raises MissingWeights where
    the landmarks' file is not on this machine.
    """

    name = "dlib"

    def __init__(self, threshold: float = 0.2, upsampling: int = 1, pixels: int = SEARCHED):
        self.threshold, self.upsampling, self.pixels = threshold, upsampling, pixels

    def detect(self, image: np.ndarray) -> list[Face]:
        small, factor = shrunk(image, self.pixels)
        found = self._boxes(small, factor, (0, 0))
        if factor > FINE:
            for left, top, tile in tiles(image, self.pixels):
                found += self._boxes(*shrunk(tile, tile.shape[0] * tile.shape[1] // FINE**2), (left, top))
            found = distinct(found)
        return sorted_faces(image, [box for box, _ in found], [score for _, score in found], 1)

    def _boxes(self, small: np.ndarray, factor: float, shift: tuple[int, int]) -> list[tuple[tuple, float]]:
        """Boxes and scores in a picture that was shrunk by `factor` from one that begins at `shift`: of the whole."""
        boxes, scores, _ = _dlib(threading.get_ident())[0].run(small, self.upsampling, self.threshold)
        sides = [np.array(_sides(box)) * factor + [*shift, *shift] for box in boxes]
        return list(zip([tuple(map(round, box)) for box in sides], scores, strict=True))


def tiles(image: np.ndarray, pixels: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Overlapping parts of a picture, of `pixels` each once shrunk by FINE, with their left and top; views of it."""
    side = FINE * int(pixels**0.5)
    step = max(side - FINE * OVERLAP, side // 2)
    for top in _starts(image.shape[0], side, step):
        for left in _starts(image.shape[1], side, step):
            yield left, top, image[top : top + side, left : left + side]


def _starts(length: int, side: int, step: int) -> list[int]:
    """Where tiles begin, the last at `length - side`: none is narrower than the others."""
    return sorted({min(start, max(0, length - side)) for start in range(0, max(1, length - side + step), step)})


def distinct(found: list[tuple[tuple, float]]) -> list[tuple[tuple, float]]:
    """Boxes with scores, without those that share most of theirs with one of a higher score."""
    kept: list[tuple[tuple, float]] = []
    for box, score in sorted(found, key=lambda one: -one[1]):
        if all(_shared(box, other) < SAME for other, _ in kept):
            kept.append((box, score))
    return kept


def _shared(one: tuple, other: tuple) -> float:
    """Intersection over union of two boxes."""
    left, top, right, bottom = np.maximum(one[:2], other[:2]).tolist() + np.minimum(one[2:], other[2:]).tolist()
    common = max(0, right - left) * max(0, bottom - top)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


def shrunk(image: np.ndarray, pixels: int) -> tuple[np.ndarray, float]:
    """A picture of at most `pixels`, by area, and how many of the given picture's make one of its own."""
    factor = max(1.0, (image.shape[0] * image.shape[1] / pixels) ** 0.5)
    if factor > 1:
        width, height = (max(1, int(side / factor)) for side in image.shape[1::-1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image), factor


def sorted_faces(image: np.ndarray, boxes: list[tuple], scores: list[float], factor: float) -> list[Face]:
    """The faces of boxes that were found in a picture shrunk by `factor`, with dlib's landmarks, left to right."""
    predictor, found = _dlib(threading.get_ident())[1], []
    image = np.ascontiguousarray(image)
    for sides, score in zip(boxes, scores, strict=True):
        box = tuple(round(side * factor) for side in sides)
        # Two corners of the eye on the picture's right, two of the one on its left, and the base of the nose.
        parts = predictor(image, dlib.rectangle(*box)).parts()
        points = np.array([(point.x, point.y) for point in parts], float)
        landmarks = np.array([points[2:4].mean(0), points[0:2].mean(0), points[4]])
        found.append(Face(box, float(score), landmarks))
    return sorted(found, key=lambda face: face.box)


def _sides(box: dlib.rectangle) -> tuple[int, int, int, int]:
    return box.left(), box.top(), box.right(), box.bottom()


@functools.lru_cache(maxsize=32)
def _dlib(thread: int) -> tuple:
    """Detector and landmarks of a thread: they let go of Python's lock, and a detector must not be used by two."""
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

    The matrix takes centres of pixels to centres of pixels. Shrinking goes by area, through a crop at no less than the
    photograph's own resolution; beyond the border it is reflected.
    """
    template = TEMPLATE if len(face.landmarks) == len(TEMPLATE) else TEMPLATE_OF_FIVE
    matrix = similarity(face.landmarks, template * size - 0.5)
    factor = max(1, int(np.ceil(1 / _scale(matrix))))
    sides = (size * factor, size * factor)
    fine = cv2.warpAffine(image, _resized(matrix, factor), sides, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA), matrix


def whole(image: np.ndarray, size: int) -> tuple[Face, np.ndarray, np.ndarray]:
    """A picture that is one aligned face: itself as a face, its (size, size) crop, and the matrix between them."""
    height, width = image.shape[:2]
    matrix = _resized(np.eye(2, 3), np.array([size / width, size / height]))
    kernel = cv2.INTER_AREA if min(height, width) > size else cv2.INTER_CUBIC
    crop = cv2.resize(image, (size, size), interpolation=kernel)
    return Face((0, 0, width, height), 1.0, TEMPLATE * (width, height) - 0.5), crop, matrix


def is_aligned(image: np.ndarray) -> bool:
    """Whether a square picture is an FFHQ-aligned face already: it has a face whose alignment would hardly move it."""
    if image.shape[0] != image.shape[1]:
        return False
    side = 256  # small pictures are enlarged: dlib finds no face below 40 pixels
    target = TEMPLATE * side - 0.5
    found = DlibFrontal().detect(whole(image, side)[1])
    return any(np.abs(face.landmarks - target).max() < ALIGNED * side for face in found)


def paste_into(pasted: np.ndarray, crop: np.ndarray, matrix: np.ndarray, strength: float = 1.0) -> None:
    """Blend a crop (S, S, 3) into a photograph (H, W, 3) of the same range, uint8 or uint16; `matrix` is to the crop.

    In place, since a photograph may be large and have many faces. Pixels outside the crop's soft mask stay bit for bit.
    A crop that covers all of the photograph replaces it. Of its change, the part `strength`, 0 to 1, is made.
    """
    size = len(crop)
    if _scale(matrix) > 1:  # shrinking goes by area here too
        small = max(1, round(size / _scale(matrix)))
        matrix, size = _resized(matrix, small / size), small
        crop = cv2.resize(crop, (small, small), interpolation=cv2.INTER_AREA)
    height, width = pasted.shape[:2]
    inverse = cv2.invertAffineTransform(matrix)
    covers = _covers(matrix, size, width, height)
    corners = _apply(inverse, _corners(size, size))
    left, top = np.floor(corners.min(0)).astype(int).clip(0)
    right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, (width, height))
    if left >= right or top >= bottom:
        return
    for row in range(int(top), int(bottom), ROWS):
        part = pasted[row : min(row + ROWS, int(bottom)), left:right]
        sides, shifted = part.shape[1::-1], inverse - [[0, 0, left], [0, 0, row]]
        back = cv2.warpAffine(crop, shifted, sides, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        mask: np.ndarray | float = 1.0
        if not covers:
            mask = cv2.warpAffine(_soft_mask(size), shifted, sides, flags=cv2.INTER_LINEAR)[..., None]
        change = strength * mask * (back.astype(np.float32) - part)
        part[:] = (part + change).round().clip(0, np.iinfo(pasted.dtype).max)


def from_enlarged(matrix: np.ndarray, factor: int) -> np.ndarray:
    """The matrix to the same crop from a photograph that was made `factor` times larger."""
    enlarged = matrix / np.array([factor, factor, 1])
    enlarged[:, 2] += matrix[:, :2].sum(1) * (1 / factor - 1) / 2  # of the centre of the first pixel
    return enlarged


@functools.lru_cache(maxsize=8)
def _soft_mask(size: int) -> np.ndarray:
    """1 inside, falling smoothly to 0 at the border, with rounded corners: (size, size) float32."""
    distance = (np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5) / size
    ramp = np.clip(distance / FEATHER - 0.2, 0, 1)
    smooth = (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
    return np.outer(smooth, smooth)


def _resized(matrix: np.ndarray, factor: float | np.ndarray) -> np.ndarray:
    """The matrix to the same crop at `factor` times its size (one number, or across and down)."""
    factors = np.broadcast_to(factor, 2)
    shift = np.zeros((2, 3))
    shift[:, 2] = (factors - 1) / 2  # of the centre of the first pixel
    return matrix * factors[:, None] + shift


def _scale(matrix: np.ndarray) -> float:
    """Pixels of the crop to a pixel of the photograph."""
    return float(np.sqrt(np.linalg.det(matrix[:, :2])))


def _corners(width: int, height: int) -> np.ndarray:
    return np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def _covers(matrix: np.ndarray, size: int, width: int, height: int) -> bool:
    """Whether the crop covers the whole photograph."""
    inside = _apply(matrix, _corners(width, height))
    return bool(((inside > -0.51) & (inside < size - 0.49)).all())


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
