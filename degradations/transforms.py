"""The degradation operators as Albumentations transforms, usable alone in anybody's `A.Compose`.

Each draws its parameters as plain JSON numbers in `get_params` and applies them in a pure `apply`: a call replays from
its parameters alone. Pictures are uint8, or float32 in [0, 1], and stay what they were; colour order is RGB.
"""

from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np

Number = float | int


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    """A rotated Gaussian on a (size, size) grid, float32, sum 1; angle in radians; sigmas in pixels."""
    half = np.arange(size, dtype=np.float64) - size // 2
    x, y = np.meshgrid(half, half)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kernel = np.exp(-0.5 * ((u / sigma_x) ** 2 + (v / sigma_y) ** 2))
    return (kernel / kernel.sum()).astype(np.float32)


class Blur(A.ImageOnlyTransform):
    """Gaussian blur: `iso` draws one sigma, `aniso` two and an angle in [-pi, pi] (GFPGAN's model).

    kernel_size: odd sizes [low, high]; sigma: [low, high]; both pixels of the picture given. Borders are reflected.
    """

    def __init__(
        self,
        kernel_size: Sequence[int] = (41, 41),
        kernels: Sequence[str] = ("iso", "aniso"),
        kernel_prob: Sequence[float] = (0.5, 0.5),
        sigma: Sequence[Number] = (0.1, 10),
        p: float = 1.0,
    ):
        super().__init__(p=p)
        self.kernel_size, self.kernels, self.kernel_prob, self.sigma = kernel_size, kernels, kernel_prob, sigma

    def get_params(self) -> dict[str, Any]:
        rng = self.random_generator
        low, high = self.kernel_size
        kind = str(rng.choice(list(self.kernels), p=list(self.kernel_prob)))
        size = low + 2 * int(rng.integers((high - low) // 2 + 1))
        sigma_x, sigma_y = (float(value) for value in rng.uniform(*self.sigma, size=2))
        angle = float(rng.uniform(-np.pi, np.pi))
        if kind == "iso":
            sigma_y, angle = sigma_x, 0.0
        return {"kernel_size": size, "sigma_x": sigma_x, "sigma_y": sigma_y, "angle": angle}

    def apply(
        self, img: np.ndarray, kernel_size: int, sigma_x: float, sigma_y: float, angle: float, **_: Any
    ) -> np.ndarray:
        if sigma_x == sigma_y:  # a round Gaussian is separable: the same numbers, far fewer of them
            line = cv2.getGaussianKernel(kernel_size, sigma_x, cv2.CV_32F)
            return cv2.sepFilter2D(img, -1, line, line)
        return cv2.filter2D(img, -1, gaussian_kernel(kernel_size, sigma_x, sigma_y, angle))


class Downsample(A.ImageOnlyTransform):
    """Bilinear resize to 1/r of the size, r drawn from `factor`; r < 1 enlarges. The picture comes out smaller.

    Sides end in int(side / r), but not below `floor` pixels.
    """

    def __init__(self, factor: Sequence[Number] = (1, 8), floor: int = 4, p: float = 1.0):
        super().__init__(p=p)
        self.factor, self.floor = factor, floor

    def get_params(self) -> dict[str, Any]:
        return {"factor": float(self.random_generator.uniform(*self.factor)), "floor": self.floor}

    def apply(self, img: np.ndarray, factor: float, floor: int, **_: Any) -> np.ndarray:
        height, width = (max(floor, int(side / factor)) for side in img.shape[:2])
        return cv2.resize(img, (width, height), interpolation=cv2.INTER_LINEAR)


class Noise(A.ImageOnlyTransform):
    """Gaussian noise, independent for each channel; sigma [low, high] in 1/255. Clipped to the picture's range."""

    def __init__(self, sigma: Sequence[Number] = (0, 20), p: float = 1.0):
        super().__init__(p=p)
        self.sigma = sigma

    def get_params(self) -> dict[str, Any]:
        rng = self.random_generator
        return {"sigma": float(rng.uniform(*self.sigma)), "seed": int(rng.integers(2**53))}

    def apply(self, img: np.ndarray, sigma: float, seed: int, **_: Any) -> np.ndarray:
        noise = np.random.Generator(np.random.Philox(seed)).standard_normal(img.shape, np.float32)
        noisy = np.clip(_as_float(img) + noise * np.float32(sigma / 255), 0, 1)
        return _as(img.dtype, noisy)


class JPEG(A.ImageOnlyTransform):
    """JPEG compression by libjpeg at a whole quality drawn from [low, high]; through 8 bits."""

    def __init__(self, quality: Sequence[int] = (60, 100), p: float = 1.0):
        super().__init__(p=p)
        self.quality = quality

    def get_params(self) -> dict[str, Any]:
        low, high = self.quality
        return {"quality": int(self.random_generator.integers(low, high + 1))}

    def apply(self, img: np.ndarray, quality: int, **_: Any) -> np.ndarray:
        bgr = np.ascontiguousarray(_as(np.dtype(np.uint8), img)[..., ::-1])
        coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        decoded: Any = cv2.imdecode(coded, cv2.IMREAD_COLOR)
        return _as(img.dtype, np.ascontiguousarray(decoded[..., ::-1]))


class ResizeTo(A.ImageOnlyTransform):
    """Bilinear resize to (height, width)."""

    def __init__(self, height: int = 512, width: int = 512, p: float = 1.0):
        super().__init__(p=p)
        self.height, self.width = height, width

    def get_params(self) -> dict[str, Any]:
        return {"height": self.height, "width": self.width}

    def apply(self, img: np.ndarray, height: int, width: int, **_: Any) -> np.ndarray:
        return cv2.resize(img, (width, height), interpolation=cv2.INTER_LINEAR)


def _as_float(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.float32 else image.astype(np.float32) / 255


def _as(dtype: np.dtype, image: np.ndarray) -> np.ndarray:
    """The picture as uint8 or as float32 in [0, 1]."""
    if image.dtype == dtype:
        return image
    if dtype == np.uint8:
        return (image * 255).round().clip(0, 255).astype(np.uint8)
    return image.astype(np.float32) / 255


OPERATORS: dict[str, type[A.ImageOnlyTransform]] = {
    operator.__name__: operator for operator in (Blur, Downsample, Noise, JPEG, ResizeTo)
}
