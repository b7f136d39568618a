"""Full-reference metrics on uint8 RGB pictures; more is better."""

import numpy as np
from skimage.metrics import mean_squared_error, structural_similarity

WINDOW = 7  # pixels of a side of SSIM's


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio of (H, W, 3) uint8 pictures over all channels, dB.

    Equal pictures count as one value off by one, the least that pictures of this size can differ, so that means over
    pictures stay finite.
    """
    mse = max(float(mean_squared_error(reference, image)), 1 / reference.size)
    return float(10 * np.log10(255**2 / mse))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity of (H, W, 3) uint8 pictures: 7x7 uniform windows, mean over RGB; 1 for equal pictures.

    Pictures have at least 7 pixels a side.
    """
    return float(structural_similarity(reference, image, win_size=WINDOW, channel_axis=2, data_range=255))
