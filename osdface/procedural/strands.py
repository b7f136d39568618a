"""Hair of every kind as drawn strands, each lit by its own direction (Kajiya and Kay, Rendering Fur, 1989)."""

from dataclasses import dataclass

import cv2
import numpy as np

from osdface.procedural.field import Array, Window, along, f32, linear, normalised, over, rgb, tinted, window
from osdface.procedural.head import Head
from osdface.procedural.lighting import Light
from osdface.procedural.parameters import Colour

NEAR, FAR = 1.1, -0.9  # the depths that a layer can tell apart
BRIGHTEST = 2  # the tone and shine that a layer can hold
SUBPIXEL = 4  # binary digits
DEPTHS, LEVELS = 28, 10  # strands are drawn in so many groups, far and dark ones first


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
        if not self.alpha.size:
            return
        gleam = (0.45 * hair + 0.03) * light.colour
        colour = tinted(self.tone, hair * (0.4 + 0.6 * light.colour)) + tinted(self.shine, gleam)
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
        """Lines through `points` (N, K, 3), in the picture with depth, in P pieces of one tone and shine (N, P) each.

        K - 1 is a multiple of P. `thickness` in half picture sides; thinner than a pixel is drawn as a pixel. Not
        `smooth`: with hard edges, fast.
        """
        if not len(points):
            return
        self.places.append(points[..., :2].reshape(-1, 2))
        pieces = _pieces(points, tone.shape[1])
        pixels = ((np.clip(pieces[..., :2], -3, 3) + 1) * (self.side / 2) - 0.5) * 2**SUBPIXEL
        near = np.clip((pieces[..., 2].mean(1) - FAR) / (NEAR - FAR), 0, 1)
        tones, shines = (np.clip(values.ravel() / BRIGHTEST, 0, 1) for values in (tone, shine))
        level = np.clip((tones + shines) * LEVELS, 0, LEVELS - 1).astype(np.uint16)
        group = (near * (DEPTHS - 1)).astype(np.uint16) * np.uint16(LEVELS) + level
        order = np.argsort(group, kind="stable")
        pixels, values = pixels[order].round().astype(np.int32), np.stack([tones, shines, near], 1)[order]
        starts = np.flatnonzero(np.diff(group[order].astype(int), prepend=-1))
        stops = np.append(starts[1:], len(order))
        colours = 255 * np.add.reduceat(values, starts) / (stops - starts)[:, None]
        wide, kind = max(1, round(thickness * self.side / 2)), cv2.LINE_AA if smooth else cv2.LINE_8
        for start, stop, colour in zip(starts, stops, colours.tolist(), strict=True):
            cv2.polylines(self.image, list(pixels[start:stop]), False, (*colour, 255), wide, kind, SUBPIXEL)

    def layer(self) -> Layer:
        """What was drawn."""
        at = window(np.concatenate(self.places or [np.full((1, 2), -9)]), 0.04, self.side)
        alpha, *channels = (f32(self.image[at][..., k]) * np.float32(1 / 255) for k in (3, 0, 1, 2))
        tone, shine, near = (channel / np.maximum(alpha, 1 / 255) for channel in channels)
        return Layer(at, BRIGHTEST * tone, BRIGHTEST * shine, FAR + (NEAR - FAR) * near, alpha)


def _pieces(points: Array, count: int) -> Array:
    """Lines (N, K, 3) cut into so many pieces each that share their ends: (N * count, (K - 1) / count + 1, 3)."""
    steps = (points.shape[1] - 1) // count
    index = np.arange(count)[:, None] * steps + np.arange(steps + 1)
    return points[:, index].reshape(-1, steps + 1, 3)


def lit(points: Array, normal: Array, light: Light, shift: Array, exponent: float = 26) -> tuple[Array, Array]:
    """Tone and shine (N, K - 1) of strands through camera `points` (N, K, 3) on a volume facing `normal` (N, K - 1, 3).

    `shift` (N, 1) tips each strand's highlight a little along it.
    """
    tangent = normalised(points[:, 1:] - points[:, :-1] + f32(1e-6))
    facing = np.clip(0.35 + 0.65 * along(normal, light.key), 0.05, 1)
    towards = along(tangent, light.key)
    diffuse = np.sqrt(np.clip(1 - towards * towards, 0, 1)) * facing * light.colour.mean()
    tipped = normalised(tangent + rgb(np.broadcast_to(shift, facing.shape)) * normal)
    tilt, mirror = along(tipped, light.half), np.clip(along(normal, light.half), 0, 1)
    shine = np.clip(1 - tilt * tilt, 0, 1) ** (exponent / 2) * facing * mirror * mirror
    around = 0.35 * light.ground.mean() + (0.22 - 0.22 * normal[..., 1]) * light.sky.mean()
    return 0.95 * diffuse + around, shine


def on_skin(
    head: Head, u: Array, v: Array, ahead: Array, length: Array, lift: float, draw: np.random.Generator
) -> Array:
    """Short curved hairs rooted at (u, v), growing `ahead` (N, 2) on the frontal view: picture points (N, 4, 3)."""
    along = np.linspace(0, 1, 4, dtype=np.float32)[None, :, None]
    reach = f32(length)[:, None, None] * along
    root = head.surface(u, v)[:, None, :] + f32([0, 0, 0.004])
    bend = f32(draw.normal(0, 0.22, (len(u), 1, 2)))
    flat = (f32(ahead)[:, None, :] + bend * along) * reach
    return head.project(root + np.concatenate([flat, lift * reach * (1.2 - 0.5 * along)], -1))


def dark(hair: Colour, skin: Colour) -> Array:
    """Colour of brows and beards, (3,) linear: as the hair's, never lighter than a good deal below the skin's."""
    return np.minimum(linear(hair) * 0.75, 0.45 * linear(skin))
