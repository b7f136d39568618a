"""Noise. Its randomness is Philox's raw 16-bit words of a seed, sent through tables of quantiles."""

from functools import lru_cache

import cv2
import numpy as np
from scipy.special import ndtri, pdtr

from degradations.operators.pixels import U8, as_uint8

WORDS = 2**16
NORMAL = ndtri((np.arange(WORDS) + 0.5) / WORDS).astype(np.float32)  # 65,536 equally likely values, up to 4.3 sigma
COUNTS = 2**12  # equally likely photon counts for each grey level, up to 3.7 sigma


def gaussian_noise(image: np.ndarray, sigma: float, grey: bool, seed: int) -> np.ndarray:
    """I + sigma / 255 * z, clipped; z is standard normal for each value, or for each pixel where `grey`."""
    drawn = words(seed, image.shape[:2] if grey else image.shape)
    if image.dtype == U8:
        return _added(image, np.rint(NORMAL * np.float32(sigma)).astype(np.int16).take(drawn))
    return _added(image, NORMAL.take(drawn) * np.float32(sigma / 255))


def poisson_noise(image: np.ndarray, scale: float, grey: bool, seed: int) -> np.ndarray:
    """I + scale * (P(n I) / n - I), clipped; P counts photons, n is the number of levels in use, up to a power of two.

    Where `grey`, the noise is that of the picture's luma, for all channels. BasicSR's model.
    """
    levels = as_uint8(image)
    if grey:
        levels = cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY)
    used = int(np.count_nonzero(cv2.calcHist([levels.reshape(-1, 1)], [0], None, [256], [0, 256])))
    photons = 1 << (used - 1).bit_length()
    at = levels.astype(np.int32) * COUNTS + (words(seed, levels.shape) >> 4)
    noise = _surplus(photons).take(at) * np.float32(scale * 255 / photons)
    return _added(image, np.rint(noise).astype(np.int16) if image.dtype == U8 else noise / 255)


@lru_cache(maxsize=9)
def _surplus(photons: int) -> np.ndarray:
    """(256 * COUNTS,) float32: for each 8-bit level the quantiles of P(rate) - rate, rate = photons * level / 255."""
    shares, table = (np.arange(COUNTS) + 0.5) / COUNTS, np.zeros((256, COUNTS), np.float32)
    for level in range(1, 256):
        rate = photons * level / 255
        low, high = max(0, int(rate - 6 * rate**0.5 - 6)), int(rate + 6 * rate**0.5 + 8)
        table[level] = low + np.searchsorted(pdtr(np.arange(low, high), rate), shares) - rate
    return table.ravel()


def words(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Random uint16, the same on every machine."""
    count = int(np.prod(shape))
    raw = np.random.Philox(key=seed).random_raw(-(-count // 4))
    return raw.astype("<u8", copy=False).view("<u2")[:count].reshape(shape)


def _added(image: np.ndarray, noise: np.ndarray) -> np.ndarray:
    if noise.ndim == 2:
        noise = cv2.merge([noise] * 3)
    if image.dtype == U8:
        return cv2.add(image, noise, dtype=cv2.CV_8U)
    return np.clip(image + noise, 0, 1)
