"""Operators that change which pixels there are."""

from typing import Literal

import cv2
import numpy as np

Mode = Literal["area", "bilinear", "bicubic"]
MODES = {"nearest": cv2.INTER_NEAREST, "area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
SMALLEST = 4  # no side gets shorter, pixels


def downsample(image: np.ndarray, factor: float) -> np.ndarray:
    """Bilinear, without smoothing, to sides of floor(side / factor), 4 pixels at least."""
    return resize(image, *downsampled(image.shape, factor), "bilinear")


def downsampled(shape: tuple[int, ...], factor: float) -> tuple[int, int]:
    """The height and width that a picture of this shape gets."""
    return max(SMALLEST, int(shape[0] // factor)), max(SMALLEST, int(shape[1] // factor))


def resize(image: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    """OpenCV's resize: bilinear and bicubic (a = -0.75) do not smooth, area averages when it shrinks."""
    if image.dtype == np.float32:
        return np.clip(cv2.resize(image, (width, height), interpolation=MODES[mode]), 0, 1)
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)  # this thread's; Intel's bicubic gives another 8-bit step here and there than OpenCV's
    try:
        return cv2.resize(image, (width, height), interpolation=MODES[mode])
    finally:
        cv2.ipp.setUseIPP(before)


def shift(image: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """Moved dx pixels to the right and dy down; the edge is mirrored, edge pixel included."""
    height, width = image.shape[:2]
    top, left = max(dy, 0), max(dx, 0)
    wide = cv2.copyMakeBorder(image, top, max(-dy, 0), left, max(-dx, 0), cv2.BORDER_REFLECT)
    return wide[top - dy :, left - dx :][:height, :width]
