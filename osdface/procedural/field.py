"""Small pieces that every layer is drawn with: steps, bumps, noise, colours, laying one thing over another."""

from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from osdface.procedural.parameters import rng

Array = np.ndarray
Window = tuple[slice, slice]
TILE = 512  # texels of a side of the noise that all textures are cut from


def f32(values: Any) -> Array:
    """As float32: a double would double the work of all that it meets."""
    return np.asarray(values, np.float32)


# values


def step(value: Array, edge: Any = 0.0, softness: float = 0.01) -> Array:
    """0 where value < edge, 1 where above, smooth over +-softness."""
    t = np.clip((value - edge) * np.float32(0.5 / softness) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)


def bump(x: Array, centre: Any, radius: float) -> Array:
    """A Gaussian of height 1 that falls to 1/e at `radius` from the centre."""
    t = (x - f32(centre)) * np.float32(1 / radius)
    return np.exp(-t * t)


# colours; numpy is slow over a last axis of three, OpenCV is not


def linear(colour: Any) -> Array:
    """sRGB in [0, 1] to linear light."""
    return np.power(f32(colour), np.float32(2.2))


def rgb(values: Array) -> Array:
    """One value a pixel, (H, W), in all three channels."""
    return cv2.merge([values, values, values])


def tinted(values: Array, colour: Any) -> Array:
    """Values (H, W) times a colour (3,): (H, W, 3)."""
    return cv2.merge([values * np.float32(channel) for channel in colour])


def over(canvas: Array, colour: Any, alpha: Array) -> Array:
    """`colour`, (3,) or (H, W, 3), laid over the canvas (H, W, 3) with opacity (H, W)."""
    if np.ndim(colour) == 1:
        return canvas * rgb(1 - alpha) + tinted(alpha, colour)
    return canvas + rgb(alpha) * (colour - canvas)


# vectors


def normalised(vectors: Array) -> Array:
    """Vectors (..., 3) at length 1."""
    x, y, z = cv2.split(vectors.reshape(-1, 1, 3))
    scale = 1 / np.sqrt(x * x + y * y + z * z + np.float32(1e-12))
    return cv2.merge([x * scale, y * scale, z * scale]).reshape(vectors.shape)


def along(vectors: Array, axis: Array) -> Array:
    """Dot products of vectors (N, K, 3) with an axis (3,): (N, K)."""
    return cv2.transform(vectors, axis[None])


def rotated(vectors: Array, rotation: Array) -> Array:
    """Vectors (N, K, 3), each turned by a matrix (3, 3)."""
    return cv2.transform(vectors, rotation)


# places


def window(places: Array, margin: float, side: int) -> Window:
    """The pixels (rows, columns) around places (N, 2) of the picture, `margin` half picture sides wider."""
    low = np.floor((places.min(0) + 1 - margin) * (side / 2)).astype(int)
    high = np.ceil((places.max(0) + 1 + margin) * (side / 2)).astype(int)
    (left, top), (right, bottom) = np.clip(low, 0, side), np.clip(high, 0, side)
    return slice(int(top), int(bottom)), slice(int(left), int(right))


def picture_axes(side: int, at: Window = (slice(None), slice(None))) -> tuple[Array, Array]:
    """x as a row and y as a column, of the centres in [-1, 1] of the pixels in a window."""
    axis = f32((np.arange(side) + 0.5) * (2 / side) - 1)
    rows, columns = at
    return axis[None, columns], axis[rows, None]


# textures


@lru_cache(maxsize=16)
def _tile(level: int) -> Array:
    """Periodic noise of TILE / 2**level texels; each level is the mean of the one below, so fine detail fades."""
    if level == 0:
        grid = f32(rng(0).standard_normal((TILE, TILE)))
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
    dx, dy = rng(9, seed).uniform(0, 1, 2)
    u, v = x * np.float32(across / TILE) + np.float32(dx), y * np.float32(down / TILE) + np.float32(dy)
    tile, shape = _tile(level), np.broadcast_shapes(x.shape, y.shape)
    to = np.float32(len(tile))
    u, v = (np.ascontiguousarray(np.broadcast_to((p - np.floor(p)) * to, shape)) for p in (u, v))
    return cv2.remap(tile, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def smooth_noise(seed: int, side: int, cells: int | tuple[int, int]) -> Array:
    """Noise of unit deviation over the whole picture with so many cells (across, down): (side, side)."""
    across, down = (cells, cells) if isinstance(cells, int) else cells
    grid = f32(rng(8, seed).standard_normal((down + 1, across + 1)))
    return cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)


def blur(image: Array, radius: float, side: int) -> Array:
    """Gaussian blur with a deviation of `radius` half picture sides; a wide one is made on a smaller image."""
    deviation = max(radius * side / 2, 0.3)
    shrink = 2 ** max(0, int(np.log2(deviation / 2)))
    if shrink == 1:
        return cv2.GaussianBlur(image, (0, 0), deviation)
    high, wide = image.shape[:2]
    small = cv2.resize(image, (-(-wide // shrink), -(-high // shrink)), interpolation=cv2.INTER_AREA)
    return cv2.resize(cv2.GaussianBlur(small, (0, 0), deviation / shrink), (wide, high), interpolation=cv2.INTER_LINEAR)
