"""Encoded bytes of any picture -> the square HQ picture of a pair."""

import json
from typing import Literal

import cv2
import numpy as np

from osdface.faces import TEMPLATE, DlibFrontal, Face, align, similarity
from osdface.imagefile import ImageError, open_header, read_image

Fit = Literal["crop", "resize", "pad", "reject"]
Crop = Literal["none", "face"]
SMALLEST = 16  # pixels of a side
DETECTED = 1024  # pixels of the longer side in which faces are looked for
FAR = 8  # times the picture's longer side: no face's square is larger


def check(data: bytes, size: int, fit: Fit, crop: Crop, landmarks: str, max_pixels: int) -> None:
    """What can be said from the header alone. Raises the ImageError that `prepare` would, and decodes nothing."""
    image = open_header(data, max_pixels=max_pixels)
    width, height = image.size
    if min(width, height) < SMALLEST:
        raise ImageError("too_small", f"{width}x{height} pixels are too few ({SMALLEST} at least)")
    if fit != "reject" or crop == "face" or landmarks:
        return
    if width != height:
        raise ImageError("not_square", f"{width}x{height} is not square")
    if width < size:
        raise ImageError("too_small", f"{width}x{height} is smaller than {size}x{size}")


def prepare(data: bytes, size: int, fit: Fit, crop: Crop, landmarks: str, max_pixels: int) -> np.ndarray:
    """The picture as (size, size, 3) uint8 RGB; each axis shrinks by area and is enlarged bicubically.

    landmarks: JSON of the face's 68 points (x, y) in pixels, or "": with them, the face is aligned as FFHQ was made.
    crop: "face" finds the largest face and aligns it. Where neither says what to do, fit does: "crop" keeps the middle
    square, "resize" stretches, "pad" reflects the borders until it is square, "reject" takes squares of `size` or more.
    Raises ImageError for a picture that is refused or has no face, MissingWeights without the detector's file.
    """
    check(data, size, fit, crop, landmarks, max_pixels)
    image = read_image(data, max_pixels=max_pixels)
    if landmarks:
        return _aligned(image, _by_landmarks(image, landmarks), size)
    if crop == "face":
        return _aligned(image, _largest(image), size)
    if fit == "pad":
        return _padded(image, size)
    return resize(image if fit == "resize" else _middle(image), size, size)


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """(H, W, 3) -> (height, width, 3): what shrinks goes by area, what grows is bicubic, each axis for itself."""
    sides = (image.shape[1], image.shape[0])
    smaller = (min(width, sides[0]), min(height, sides[1]))
    if smaller != sides:
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (width, height):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


def _middle(image: np.ndarray) -> np.ndarray:
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def _padded(image: np.ndarray, size: int) -> np.ndarray:
    """Resized first, so that a picture of extreme shape stays small."""
    height, width = (max(1, round(side * size / max(image.shape[:2]))) for side in image.shape[:2])
    top, left = (size - height) // 2, (size - width) // 2
    borders = (top, size - height - top, left, size - width - left)
    return cv2.copyMakeBorder(resize(image, width, height), *borders, cv2.BORDER_REFLECT)


def _largest(image: np.ndarray) -> np.ndarray:
    """The three landmarks of the largest face, in pixels of the picture."""
    small, factor = _shrunk(image, max(image.shape[:2]) / DETECTED)
    faces = DlibFrontal().detect(small)
    if not faces:
        raise ImageError("no_face", "no face was found")
    largest = max(faces, key=lambda face: (face.box[2] - face.box[0]) * (face.box[3] - face.box[1]))
    return (largest.landmarks + 0.5) * factor - 0.5


def _by_landmarks(image: np.ndarray, landmarks: str) -> np.ndarray:
    """Where FFHQ's own square puts the template's three points, in pixels of the picture.

    The square stands on the sum of the line between the eyes and that from eyes to mouth (turned), is four eye
    distances or 3.6 times the way to the mouth wide, whichever is more, and its centre lies a tenth of that way down.
    """
    points = np.array(json.loads(landmarks), float)
    if points.shape != (68, 2) or not np.isfinite(points).all():
        raise ImageError("no_face", "its landmarks are not 68 points")
    left, right, mouth = points[36:42].mean(0), points[42:48].mean(0), points[[48, 54]].mean(0)
    eyes, across = (left + right) / 2, right - left
    down = mouth - eyes
    along = across + np.array([down[1], -down[0]])
    half = max(2 * np.hypot(*across), 1.8 * np.hypot(*down))
    length, centre = np.hypot(*along), eyes + 0.1 * down
    sides = np.array([image.shape[1], image.shape[0]])
    if not (length > 0 and 1 <= half <= FAR * sides.max() and (centre >= 0).all() and (centre < sides).all()):
        raise ImageError("no_face", "its landmarks are of no face within the picture")
    x = along / length * half
    y = np.array([-x[1], x[0]])
    return centre - x - y + TEMPLATE @ np.array([2 * x, 2 * y])


def _aligned(image: np.ndarray, points: np.ndarray, size: int) -> np.ndarray:
    """The crop that takes the three points to the template, from a copy of no more than twice its resolution."""
    scale = np.sqrt(np.linalg.det(similarity(points, TEMPLATE * size)[:, :2]))
    image, factor = _shrunk(image, 0.5 / scale)
    height, width = image.shape[:2]
    return align(image, Face((0, 0, width, height), 1.0, (points + 0.5) / factor - 0.5), size)[0]


def _shrunk(image: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """The picture made smaller by the factor, if that is above 1, and what it came to exactly across and down."""
    height, width = image.shape[:2]
    factor = max(1.0, factor)
    small = resize(image, max(1, round(width / factor)), max(1, round(height / factor)))
    return small, np.array([width / small.shape[1], height / small.shape[0]])
