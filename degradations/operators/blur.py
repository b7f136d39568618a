"""Blur by drawn kernels, and its opposite."""

import cv2
import numpy as np

from degradations.operators import kernels
from degradations.operators.convolve import by_line, convolve, convolve_by_line
from degradations.operators.kernels import Kind
from degradations.operators.pixels import U8

HALVED = 6.0  # sigma, pixels, from which unsharp masking blurs at half the size


def blur(
    image: np.ndarray, kind: Kind, kernel_size: int, sigma_x: float, sigma_y: float, angle: float, beta: float
) -> np.ndarray:
    """By `kernels.kernel` of these parameters; a round Gaussian goes by rows and columns."""
    if kind == "iso":
        return convolve_by_line(image, kernels.line(kernel_size, sigma_x))
    return convolve(image, kernels.kernel(kind, kernel_size, sigma_x, sigma_y, angle, beta))


def sinc(image: np.ndarray, kernel_size: int, cutoff: float) -> np.ndarray:
    """By the circular low-pass filter `kernels.sinc`."""
    return convolve(image, kernels.sinc(kernel_size, cutoff))


def usm(image: np.ndarray, weight: float, radius: int, threshold: float) -> np.ndarray:
    """mask * clip(I + weight * (I - B)) + (1 - mask) * I, where B is the blurred picture and mask the blurred
    |I - B| > threshold / 255 (Real-ESRGAN's unsharp masking)."""
    top = 255 if image.dtype == U8 else 1
    residual = image - _smooth(image, radius)
    mask = (np.abs(residual) > threshold * top / 255).astype(image.dtype) * image.dtype.type(top)
    soft = _smooth(mask, radius) * np.float32(1 / top)
    sharp = np.clip(image + residual * np.float32(weight), 0, top)
    out = image + soft * (sharp - image)
    return np.rint(out).astype(U8) if image.dtype == U8 else out


def _smooth(image: np.ndarray, radius: int) -> np.ndarray:
    """Blurred by a round Gaussian of OpenCV's sigma for this kernel size, float32, not rounded to 8 bits.

    A wide one is made of half as wide a one at half the size, less what going there and back blurs.
    """
    sigma = 0.15 * radius + 0.35
    if image.dtype != U8:
        return convolve_by_line(image, kernels.line(radius, sigma))
    if sigma < HALVED:
        return by_line(image, kernels.line(radius, sigma))
    height, width = image.shape[:2]
    edge = radius // 2 + 5 & ~1
    wide = cv2.copyMakeBorder(image, edge, edge + height % 2, edge, edge + width % 2, cv2.BORDER_REFLECT_101)
    half = by_line(cv2.pyrDown(wide), kernels.line(radius // 2 | 1, (sigma**2 - 2) ** 0.5 / 2))
    whole = cv2.pyrUp(np.rint(half * 16))[edge : edge + height, edge : edge + width]  # sums of whole numbers: exact
    return whole * np.float32(1 / 16)
