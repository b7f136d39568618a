"""A photograph before and after the network: which of its faces are restored, and how they come back into it.

Colours are uint8 or uint16, RGB; a photograph of 16 bits is looked at in 8, and gets its faces back in 16.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from osdface import colour, faces
from osdface.faces import Detector, Face
from osdface.imagefile import ImageError
from osdface.modes import Wishes


class Crop(NamedTuple):
    """A face to restore. number: from 1, left to right; crop: (S, S, 3) uint8; matrix: 2x3, photograph to crop."""

    number: int
    face: Face
    crop: np.ndarray
    matrix: np.ndarray


class Plan(NamedTuple):
    """crops: what goes through the network. left: faces that stay as they are, by number, and why."""

    crops: list[Crop]
    left: list[tuple[int, Face, str]]


def plan(image: np.ndarray, size: int, wishes: Wishes, detector: Detector) -> Plan:
    """The faces of a photograph (H, W, 3) to restore at `size` pixels.

    Raises ImageError ("no_face") for a number that no face has.
    """
    image = in_8_bits(image)
    if wishes.faces == "aligned" or faces.is_aligned(image):
        return Plan([Crop(1, *faces.whole(image, size))], [])
    found = dict(enumerate(detector.detect(image), 1))
    if unknown := set(wishes.numbers) - set(found):
        raise ImageError("no_face", f"has {len(found)} faces, and none is number {min(unknown)}")
    reasons = {number: _left(number, found, wishes) for number in found}
    crops = [Crop(n, face, *faces.align(image, face, size)) for n, face in found.items() if not reasons[n]]
    return Plan(crops, [(n, found[n], reason) for n, reason in reasons.items() if reason])


def _left(number: int, found: dict[int, Face], wishes: Wishes) -> str:
    """Why a face stays as it is, "" if it doesn't. One that was asked for by its number may be small."""
    if wishes.numbers:
        return "" if number in wishes.numbers else "not chosen"
    if wishes.largest and number != max(found, key=lambda n: _width(found[n])):
        return "not the largest"
    width = _width(found[number])
    return f"{width} pixels across, less than {wishes.min_face}" if width < wishes.min_face else ""


def _width(face: Face) -> int:
    return face.box[2] - face.box[0]


def finish(image: np.ndarray, crops: Sequence[Crop], restored: Sequence[np.ndarray], wishes: Wishes) -> np.ndarray:
    """The photograph, of its own depth, with what the network made of each crop ((S, S, 3) float32 in [0, 1])."""
    height, width = image.shape[:2]
    finished = resized(image, (width * wishes.upscale, height * wishes.upscale))
    for crop, made in zip(crops, restored, strict=True):
        made = colour.fix(made, crop.crop.astype(np.float32) / 255, wishes.colour_fix)
        matrix = faces.from_enlarged(crop.matrix, wishes.upscale)
        faces.paste_into(finished, made * np.iinfo(image.dtype).max, matrix, wishes.strength)
    return finished


def blend(image: np.ndarray, made: np.ndarray, wishes: Wishes) -> np.ndarray:
    """What the network made of a whole picture, (h, w, 3) float32 in [0, 1], in the picture's own depth."""
    limit = np.iinfo(image.dtype).max
    given = cv2.resize(image, made.shape[1::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32) / limit
    made = colour.fix(made, given, wishes.colour_fix)
    return ((given + wishes.strength * (made - given)) * limit).round().astype(image.dtype)


def resized(image: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """A copy of (width, height) pixels, by Lanczos where that is another size."""
    if image.shape[1::-1] == sides:
        return image.copy()
    return cv2.resize(image, sides, interpolation=cv2.INTER_LANCZOS4)


def in_8_bits(image: np.ndarray) -> np.ndarray:
    """uint8 or uint16 -> uint8."""
    if image.dtype == np.uint8:
        return image
    return cv2.convertScaleAbs(image, alpha=1 / 257)
