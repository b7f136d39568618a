"""Small pieces that every layer is drawn with: steps, bumps, noise, colours, laying one thing over another."""

from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from osdface.procedural.parameters import rng

Array = np.ndarray
Window = tuple[slice, slice]
TILE = 512  # texels of a side of the noise that all textures are cut from


def step(value: Array, edge: Any = 0.0, softness: float = 0.01) -> Array:
    """0 where value < edge, 1 where above, smooth over +-softness."""
    t = np.clip((value - edge) * np.float32(0.5 / softness) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)


def bump(x: Array, centre: float, radius: float) -> Array:
    """A Gaussian of height 1 that falls to 1/e at `radius`."""
    t = (x - np.float32(centre)) * np.float32(1 / radius)
    return np.exp(-t * t)


def over(canvas: Array, colour: Any, alpha: Array) -> Array:
    """`colour`, (3,) or (H, W, 3), laid over the canvas (H, W, 3) with opacity (H, W)."""
    return canvas + alpha[..., None] * (np.asarray(colour, np.float32) - canvas)


def linear(colour: Any) -> Array:
    """sRGB in [0, 1] to linear light."""
    return np.power(np.asarray(colour, np.float32), np.float32(2.2))


def normalised(vectors: Array) -> Array:
    return vectors / np.sqrt(np.einsum("...i,...i", vectors, vectors)[..., None] + np.float32(1e-12))


def window(places: Array, margin: float, side: int) -> Window:
    """The pixels (rows, columns) around places (N, 2) of the picture, `margin` half picture sides wider."""
    low = np.floor((places.min(0) + 1 - margin) * (side / 2)).astype(int)
    high = np.ceil((places.max(0) + 1 + margin) * (side / 2)).astype(int)
    (left, top), (right, bottom) = np.clip(low, 0, side), np.clip(high, 0, side)
    return slice(int(top), int(bottom)), slice(int(left), int(right))


def picture_axes(side: int) -> tuple[Array, Array]:
    """x as a row and y as a column, of the pixels' centres in [-1, 1]."""
    axis = ((np.arange(side) + 0.5) * (2 / side) - 1).astype(np.float32)
    return axis[None, :], axis[:, None]


@lru_cache(maxsize=16)
def _tile(level: int) -> Array:
    """Periodic noise of TILE / 2**level texels; a level is the mean of the one below, so fine detail fades with size."""
    if level == 0:
        grid = rng(0).standard_normal((TILE, TILE)).astype(np.float32)
        wrapped = cv2.GaussianBlur(np.pad(grid, 8, mode="wrap"), (0, 0), 0.6)[8:-8, 8:-8]
        return wrapped / wrapped.std()
    below = _tile(level - 1)
    return cv2.resize(below, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def noise(x: Array, y: Array, scale: Any, seed: int, side: int) -> Array:
    """Noise of about unit deviation with `scale` (one number, or across and down) features to the unit of length.

    `side` is the picture's side in pixels: what it cannot resolve is averaged away.
    """
    across, down = (scale, scale) if isinstance(scale, int | float) else scale
    level = int(np.clip(np.ceil(np.log2(max(max(across, down) * 2 / side, 1e-3))), 0, 6))
    dx, dy = rng(9, seed).uniform(0, TILE, 2)
    shape, shrink = np.broadcast_shapes(x.shape, y.shape), 1 / 2**level
    u = np.broadcast_to((x * across + dx) % TILE * shrink, shape).astype(np.float32)
    v = np.broadcast_to((y * down + dy) % TILE * shrink, shape).astype(np.float32)
    return cv2.remap(_tile(level), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def smooth_noise(seed: int, side: int, cells: int | tuple[int, int], channels: int = 1) -> Array:
    """Noise of unit deviation over the whole picture with so many cells (across, down): (side, side[, channels])."""
    across, down = (cells, cells) if isinstance(cells, int) else cells
    grid = rng(8, seed).standard_normal((down + 1, across + 1, channels)).astype(np.float32)
    return cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)


def blur(image: Array, radius: float, side: int) -> Array:
    """Gaussian blur with a deviation of `radius` half picture sides."""
    return cv2.GaussianBlur(image, (0, 0), max(radius * side / 2, 0.3))
