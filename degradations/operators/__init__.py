"""The arithmetic of degradation: pure functions of an RGB picture, uint8 or float32 in [0, 1], which stays what it was.

For uint8 the arithmetic is on whole numbers wherever it can be, so that pictures do not depend on a processor's vector
units; docs/degradations.md says what is guaranteed. For float32 it is the formula in floating point.
"""

from collections.abc import Callable

import numpy as np

from degradations.operators import blur, colour, noise, size

RUN: dict[str, Callable[..., np.ndarray]] = {
    "Blur": blur.blur,
    "Sinc": blur.sinc,
    "USM": blur.usm,
    "Downsample": size.downsample,
    "Resize": size.resize,
    "Shift": size.shift,
    "GaussianNoise": noise.gaussian_noise,
    "PoissonNoise": noise.poisson_noise,
    "JPEG": colour.jpeg,
    "ColourShift": colour.colour_shift,
    "ColourJitter": colour.colour_jitter,
    "Grey": colour.grey,
    "Haze": colour.haze,
    "UnevenLight": colour.uneven_light,
}
