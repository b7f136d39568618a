"""Blurring by a kernel.

A uint8 picture is convolved with a kernel of whole numbers (weights in units of 1/UNIT), so that its exact result is a
whole number of units, which float32 holds or comes close enough to; half a unit is added before rounding to 8 bits, so
no result can lie on the edge between two values. Whatever the path and the processor's vector width, the pixels are the
same, and the path is a question of speed alone.
"""

import cv2
import numpy as np

COARSE = 2**12  # units for the DFT, whose error stays below half of one (docs/degradations.md)
FINE = 2**14  # units where sums are exact: 255 * 2^14 leaves a kernel with negative weights two bits of float32's 24
DIRECT = 11  # taps; from 13 on filter2D takes a DFT in small tiles, and one large one takes a third of its time


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The picture blurred by a (size, size) kernel; the border is mirrored without its edge pixel."""
    if image.dtype == np.float32:
        return np.clip(cv2.filter2D(image, -1, kernel.astype(np.float32)), 0, 1)
    weights = _whole(kernel, COARSE)
    outside = (len(weights) - _extent(weights)) // 2
    inside = slice(outside, len(weights) - outside)
    if _extent(weights) > DIRECT:
        return _by_dft(image, weights[inside, inside])
    kernel = kernel[inside, inside]
    fine = _whole(kernel / kernel.sum(), FINE) / FINE
    exact = cv2.filter2D(image.astype(np.float32), -1, fine.astype(np.float32))
    return cv2.add(exact, (0.5 / FINE,) * 4, dtype=cv2.CV_8U)


def convolve_by_line(image: np.ndarray, line: np.ndarray) -> np.ndarray:
    """The picture blurred by the outer product of a line of weights, none negative, with itself."""
    if image.dtype == np.float32:
        return cv2.sepFilter2D(image, -1, line.astype(np.float32), line.astype(np.float32))
    return cv2.add(by_line(image, line), (2.0**-17,) * 4, dtype=cv2.CV_8U)


def by_line(image: np.ndarray, line: np.ndarray) -> np.ndarray:
    """The same for a uint8 picture, not rounded: float32 multiples of 2^-16, exact.

    Rows first, to sixteenths of an 8-bit step: 12 bits, times 12 bits of weights, fill float32's 24.
    """
    across, down = (_trimmed(np.diff(np.rint(np.cumsum(line) * unit), prepend=0)) for unit in (2**16, 2**12))
    rows = cv2.filter2D(image.astype(np.float32), -1, (across[None] / 2**12).astype(np.float32))
    return cv2.filter2D(np.rint(rows, out=rows), -1, (down[:, None] / 2**16).astype(np.float32))


def _by_dft(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    reach = len(weights) - 1
    tall, wide = cv2.getOptimalDFTSize(height + reach), cv2.getOptimalDFTSize(width + reach)
    half = reach // 2
    border = (half, tall - height - half, half, wide - width - half)
    spectrum = np.zeros((tall, wide), np.float32)
    spectrum[: reach + 1, : reach + 1] = weights[::-1, ::-1] / (COARSE * tall * wide)
    cv2.dft(spectrum, spectrum)
    plane, blurred = np.empty_like(spectrum), []
    for channel in cv2.split(cv2.copyMakeBorder(image, *border, cv2.BORDER_REFLECT_101)):
        cv2.subtract(channel, 128, plane, dtype=cv2.CV_32F)  # a smaller mean, a smaller error
        cv2.dft(plane, plane)
        cv2.mulSpectrums(plane, spectrum, 0, plane)
        cv2.dft(plane, plane, cv2.DFT_INVERSE | cv2.DFT_REAL_OUTPUT)
        inner = plane[reach : reach + height, reach : reach + width]
        blurred.append(cv2.add(inner, 128 + 0.5 / COARSE, dtype=cv2.CV_8U))
    return cv2.merge(blurred)


def _whole(kernel: np.ndarray, unit: int) -> np.ndarray:
    """The kernel in whole units. The sum over any rectangle from the corner is the nearest: no low frequencies err."""
    table = np.rint(kernel.cumsum(0).cumsum(1) * unit)
    return np.diff(np.diff(table, axis=0, prepend=0), axis=1, prepend=0)


def _extent(weights: np.ndarray) -> int:
    """How many taps across are left without the rings of zeros around them."""
    away = np.abs(np.arange(len(weights)) - len(weights) // 2)
    return 2 * int(np.maximum(away[:, None], away)[weights != 0].max()) + 1


def _trimmed(line: np.ndarray) -> np.ndarray:
    reach = int(np.abs(np.flatnonzero(line) - len(line) // 2).max())
    return line[len(line) // 2 - reach :][: 2 * reach + 1]
