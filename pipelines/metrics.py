"""Full-reference metrics on uint8 RGB pictures, by name."""

from collections.abc import Callable

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

Metric = Callable[[np.ndarray, np.ndarray], float]


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio over RGB, dB; infinite for equal pictures."""
    return float(peak_signal_noise_ratio(reference, image, data_range=255))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity, 7x7 windows, mean over RGB; 1 for equal pictures."""
    return float(structural_similarity(reference, image, channel_axis=2, data_range=255))


METRICS: dict[str, Metric] = {"psnr": psnr, "ssim": ssim}
