"""Giving a restored picture the colours of the one it was made from."""

import cv2
import numpy as np

from osdface.modes import ColourFix

LEVELS = 5  # of the wavelets: colours are what is coarser than 2^5 pixels
SMOOTH = np.array([1, 2, 1], np.float32) / 4


def fix(restored: np.ndarray, given: np.ndarray, how: ColourFix) -> np.ndarray:
    """`restored` (H, W, 3) float32 in [0, 1] with the colours of `given`, of the same shape and range.

    "wavelet": what is coarser than 32 pixels comes from `given`. "adain": each channel gets its mean and deviation.
    "none", as published: unchanged.
    """
    if how == "none":
        return restored
    fixed = _adain(restored, given) if how == "adain" else restored - _coarse(restored) + _coarse(given)
    return fixed.clip(0, 1)


def _adain(restored: np.ndarray, given: np.ndarray) -> np.ndarray:
    (mean, deviation), (wanted, wide) = ((x.mean((0, 1)), x.std((0, 1))) for x in (restored, given))
    return (restored - mean) / (deviation + 1e-5) * wide + wanted


def _coarse(image: np.ndarray) -> np.ndarray:
    """What is left of a picture after the à trous wavelets of all levels are taken from it."""
    for level in range(LEVELS):
        kernel = np.zeros(2 * 2**level + 1, np.float32)
        kernel[:: 2**level] = SMOOTH
        image = cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    return image
