"""Blur kernels: (size, size) float64, sum 1, centrally symmetric. Formulas as in BasicSR (data/degradations.py)."""

from typing import Literal

import numpy as np
from scipy.special import j1

Kind = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]


def kernel(
    kind: Kind, kernel_size: int, sigma_x: float, sigma_y: float, angle: float = 0.0, beta: float = 1.0
) -> np.ndarray:
    """With q = (u / sigma_x)^2 + (v / sigma_y)^2 along axes turned by `angle` (radians): exp(-q^beta / 2), which is the
    Gaussian for beta 1, or for a plateau 1 / (1 + q^beta)."""
    x, y = _grid(kernel_size)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    q = ((u / sigma_x) ** 2 + (v / sigma_y) ** 2) ** beta
    weights = 1 / (1 + q) if kind.startswith("plateau") else np.exp(-0.5 * q)
    return weights / weights.sum()


def line(kernel_size: int, sigma: float) -> np.ndarray:
    """The one-dimensional Gaussian (size,), sum 1, whose outer product with itself is the round one."""
    weights = np.exp(-0.5 * (np.arange(kernel_size) - kernel_size // 2) ** 2 / sigma**2)
    return weights / weights.sum()


def sinc(kernel_size: int, cutoff: float) -> np.ndarray:
    """The ideal circular low-pass filter, cut to size: w J1(w r) / (2 pi r), w = pi * cutoff radians per pixel."""
    omega, r = np.pi * cutoff, np.hypot(*_grid(kernel_size))
    r[kernel_size // 2, kernel_size // 2] = 1  # replaced by the limit, below
    weights = omega * j1(omega * r) / (2 * np.pi * r)
    weights[kernel_size // 2, kernel_size // 2] = omega**2 / (4 * np.pi)
    return weights / weights.sum()


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    half = np.arange(size, dtype=np.float64) - size // 2
    x, y = np.meshgrid(half, half)
    return x, y
