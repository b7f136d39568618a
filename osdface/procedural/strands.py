"""Hair of every kind as drawn strands, each lit by its own direction (Kajiya and Kay, Rendering Fur, 1989)."""

from dataclasses import dataclass

import cv2
import numpy as np

from osdface.procedural.field import Array, Window, linear, normalised, over, window
from osdface.procedural.head import Head
from osdface.procedural.lighting import Light

NEAR, FAR = 1.1, -0.9  # the depths that a layer can tell apart
SUBPIXEL = 4  # binary digits
DEPTHS, LEVELS = 40, 10  # strands are drawn in so many groups, far and dark ones first


@dataclass(frozen=True)
class Layer:
    """Drawn strands within the window `at`: brightness and shine where `alpha` covers, and depth in camera axes."""

    at: Window

    tone: Array
    shine: Array
    depth: Array
    alpha: Array

    def over(self, canvas: Array, hair: Array, light: Light, visible: Array | None = None) -> None:
        """Lay these strands, of the colour `hair` in linear light, on the canvas (in place)."""
        gleam = self.shine[..., None] * (0.35 * hair + 0.055) * light.colour
        colour = self.tone[..., None] * (hair * (0.4 + 0.6 * light.colour)) + gleam
        canvas[self.at] = over(canvas[self.at], colour, self.alpha if visible is None else visible)

    def whole(self, values: Array, side: int) -> Array:
        """Values over the window as values over the picture."""
        full = np.zeros((side, side), np.float32)
        full[self.at] = values
        return full


class Sheet:
    """A layer being drawn."""

    def __init__(self, side: int):
        self.side, self.image = side, np.zeros((side, side, 4), np.uint8)
        self.places: list[Array] = []

    def draw(self, points: Array, tone: Array, shine: Array, thickness: float, smooth: bool = True) -> None:
        """Lines through `points` (N, K, 3), in the picture with depth; tone and shine (N, K - 1) of each piece.

        `thickness` in half picture sides; thinner than a pixel is drawn as a pixel. Not `smooth`: with hard edges, fast.
        """
        self.places.append(points[..., :2].reshape(-1, 2))
        pieces = np.stack([points[:, :-1], points[:, 1:]], 2).reshape(-1, 2, 3)
        pixels = ((np.clip(pieces[..., :2], -3, 3) + 1) * (self.side / 2) - 0.5) * 2**SUBPIXEL
        near = np.clip((pieces[..., 2].mean(1) - FAR) / (NEAR - FAR), 0, 1)
        tones, shines = np.clip(tone.ravel() / 2, 0, 1), np.clip(shine.ravel() / 2, 0, 1)
        level = np.clip((tones + shines) * LEVELS, 0, LEVELS - 1).astype(np.int32)
        group = (near * (DEPTHS - 1)).astype(np.int32) * LEVELS + level
        order = np.argsort(group, kind="stable")
        pixels, bounds = (
            pixels[order].round().astype(np.int32),
            np.searchsorted(group[order], np.arange(DEPTHS * LEVELS + 1)),
        )
        values = np.stack([tones, shines, near], 1)[order]
        wide, kind = max(1, round(thickness * self.side / 2)), cv2.LINE_AA if smooth else cv2.LINE_8
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            if stop > start:
                colour = (*(float(value) * 255 for value in values[start:stop].mean(0)), 255.0)
                cv2.polylines(self.image, list(pixels[start:stop]), False, colour, wide, kind, SUBPIXEL)

    def layer(self) -> Layer:
        at = window(np.concatenate(self.places or [np.zeros((1, 2))]), 0.04, self.side)
        image = self.image[at].astype(np.float32) / 255
        alpha = image[..., 3]
        tone, shine, near = (image[..., k] / np.maximum(alpha, 1 / 255) for k in range(3))
        return Layer(at, 2 * tone, 2 * shine, FAR + (NEAR - FAR) * near, alpha)


def lit(points: Array, normal: Array, light: Light, shift: Array, exponent: float = 26) -> tuple[Array, Array]:
    """Tone and shine (N, K - 1) of strands through camera `points` (N, K, 3) on a volume facing `normal` (N, K - 1, 3).

    `shift` (N, 1) tips each strand's highlight a little along it.
    """
    tangent = normalised(points[:, 1:] - points[:, :-1] + np.float32(1e-6))
    facing = np.clip(0.35 + 0.65 * (normal @ light.key), 0.05, 1)
    along = tangent @ light.key
    diffuse = np.sqrt(np.clip(1 - along**2, 0, 1)) * facing * light.colour.mean()
    tipped = normalised(tangent + shift[..., None] * normal)
    shine = np.clip(1 - (tipped @ light.half) ** 2, 0, 1) ** (exponent / 2) * facing
    around = 0.35 * light.ground.mean() + (0.22 - 0.22 * normal[..., 1]) * light.sky.mean()
    return 0.95 * diffuse + around, shine


def on_skin(
    head: Head, light: Light, u: Array, v: Array, step: Array, length: Array, lift: float, draw: np.random.Generator
) -> Array:
    """Short curved hairs rooted at (u, v), growing along `step` (N, 2) of the frontal view: picture points (N, 4, 3)."""
    along = np.linspace(0, 1, 4, dtype=np.float32)[None, :, None]
    root = head.surface(u, v)[:, None, :] + np.float32([0, 0, 0.004])
    bend = draw.normal(0, 0.22, (len(u), 1, 2)).astype(np.float32)
    flat = (step[:, None, :] + bend * along) * length[:, None, None] * along
    rise = lift * length[:, None, None] * along * (1.2 - 0.5 * along)
    return head.project(root + np.concatenate([flat, rise.astype(np.float32)], -1))


def dark(hair: Array, skin: Array) -> Array:
    """Colour of brows and beards: as the hair's, never lighter than a good deal below the skin's."""
    return np.minimum(linear(hair) * 0.75, 0.45 * linear(skin))
