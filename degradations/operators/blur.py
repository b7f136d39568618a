"""Blur by drawn kernels, and its opposite."""

import numpy as np

from degradations.operators import kernels
from degradations.operators.convolve import by_line, convolve, convolve_by_line
from degradations.operators.kernels import Kind
from degradations.operators.pixels import U8


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
    line = kernels.line(radius, 0.15 * radius + 0.35)  # OpenCV's sigma for a kernel's size
    top = 255 if image.dtype == U8 else 1
    blurred = by_line(image, line) if image.dtype == U8 else convolve_by_line(image, line)
    residual = image - blurred
    mask = (np.abs(residual) > threshold * top / 255).astype(U8) * np.uint8(255)
    soft = by_line(mask, line) * np.float32(1 / 255)
    sharp = np.clip(image + residual * np.float32(weight), 0, top)
    out = image + soft * (sharp - image)
    return np.rint(out).astype(U8) if image.dtype == U8 else out
