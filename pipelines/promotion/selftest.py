"""A fixed set of degraded faces that every version answers before anybody else's picture reaches it."""

import functools
import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from osdface import procedural
from osdface.imagefile import ImageError, read_image

# Seeds of faces that no training set has by chance, and that are taken for aligned by a wide margin when degraded.
FACES = (7_000_000, 7_000_004, 7_000_006, 7_000_008, 7_000_012, 7_000_016, 7_000_024, 7_000_029)
SIDE, COARSE = 256, 96  # pixels


@functools.cache
def pictures(count: int) -> tuple[bytes, ...]:
    """Aligned procedural faces, blurred and coarse, as PNG: the same bytes every time. count: up to 8."""
    return tuple(_coded(_degraded(procedural.render(procedural.sample(seed), SIDE))) for seed in FACES[:count])


def _degraded(face: np.ndarray) -> np.ndarray:
    small = cv2.resize(cv2.GaussianBlur(face, (0, 0), 1.5), (COARSE, COARSE), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def _coded(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def faults(given: Sequence[bytes], answers: Sequence[bytes | np.ndarray], deviation: float) -> list[str]:
    """What is wrong with the answers to these pictures, each an encoded picture or a uint8 RGB array.

    deviation: least standard deviation of an answer, in levels: what a network makes of not-a-number is all black.
    """
    images = []
    for number, answer in enumerate(answers, 1):
        try:
            images.append(answer if isinstance(answer, np.ndarray) else read_image(answer))
        except ImageError as error:
            return [f"answer {number} is no picture ({error.reason})"]
    if len(images) != len(given):
        return [f"{len(images)} answers to {len(given)} pictures"]
    found = []
    for number, (before, image) in enumerate(zip(map(read_image, given), images, strict=True), 1):
        if image.shape != before.shape:
            found.append(f"answer {number} has {image.shape[1]}x{image.shape[0]} pixels")
        elif float(image.std()) < deviation:
            found.append(f"answer {number} is of one colour (deviation {image.std():.2g})")
    if not found and all(np.array_equal(images[0], image) for image in images[1:]):
        found.append("all answers are the same picture")
    return found
