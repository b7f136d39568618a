"""Procedural faces: pictures for those who have none, the training and test data of the embedded default.

A face is a set of seeded numbers: an identity, and what changes from picture to picture. Drawing is a pure function of
them. Coordinates: the unit square of an FFHQ-aligned picture is [-1, 1] both ways, y downwards; eyes near y = -0.06.
"""

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from osdface import files
from osdface.errors import UsageError, UserError

VERSION = "1"  # of the drawing: part of every picture's provenance
METADATA = "metadata.jsonl"

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Identity:
    """What stays from picture to picture of one person; lengths in half picture sides, colours RGB in [0, 1]."""

    width: float
    jaw: float
    chin: float
    eye_distance: float
    eye_size: float
    eye_tilt: float
    iris: tuple[float, float, float]
    brow_height: float
    brow_thickness: float
    brow_arch: float
    nose_length: float
    nose_width: float
    mouth_width: float
    lips: float
    skin: tuple[float, float, float]
    freckles: float
    age: float
    hair: tuple[float, float, float]
    hair_style: str
    hair_curl: float
    hairline: float
    beard: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """What changes: pose (radians and shifts), expression, light, accessories, clothes, background."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    shift: tuple[float, float]
    smile: float
    mouth_open: float
    eyes_open: float
    brow_raise: float
    gaze: float
    light: tuple[float, float]
    contrast: float
    warmth: float
    glasses: float
    cloth: tuple[float, float, float]
    background: str
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    seed: int


@dataclasses.dataclass(frozen=True)
class Face:
    identity: Identity
    scene: Scene

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Face":
        def tuples(value: Any) -> Any:
            return tuple(map(tuples, value)) if isinstance(value, list) else value

        parts = [{key: tuples(value) for key, value in data[name].items()} for name in ("identity", "scene")]
        return cls(Identity(**parts[0]), Scene(**parts[1]))


STYLES = ("short", "long", "curly", "bald", "fringe")
HAIR = (
    (0.07, 0.05, 0.04),
    (0.16, 0.09, 0.05),
    (0.33, 0.19, 0.09),
    (0.62, 0.45, 0.22),
    (0.42, 0.15, 0.06),
    (0.55, 0.54, 0.52),
)
SKIN = ((0.36, 0.22, 0.15), (0.52, 0.34, 0.24), (0.68, 0.48, 0.36), (0.82, 0.62, 0.50), (0.92, 0.75, 0.65))
IRIS = ((0.22, 0.12, 0.06), (0.35, 0.22, 0.10), (0.30, 0.42, 0.48), (0.28, 0.40, 0.24), (0.42, 0.55, 0.68))
BACKGROUNDS = ("gradient", "bokeh", "foliage", "room")


def _rng(*words: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def sample(seed: int, identity: int | None = None) -> Face:
    """The face of a seed; pictures that share `identity` (the seed itself unless given) show one person."""
    identity = seed if identity is None else identity
    return Face(_identity(_rng(1, identity), identity), _scene(_rng(2, seed), seed))


def _blend(rng: np.random.Generator, palette: tuple, spread: float = 0.06) -> tuple:
    """A colour between two neighbours of a palette, a little off."""
    at = rng.uniform(0, len(palette) - 1)
    low = int(at)
    colour = (1 - at + low) * np.array(palette[low]) + (at - low) * np.array(palette[min(low + 1, len(palette) - 1)])
    return tuple(float(value) for value in np.clip(colour * rng.normal(1, spread, 3), 0.02, 0.97))


def _muted(rng: np.random.Generator) -> tuple:
    """A colour as rooms and clothes have it: any brightness, little saturation."""
    grey = rng.uniform(0.08, 0.85)
    return tuple(
        float(value) for value in np.clip(grey + rng.uniform(0.02, 0.45) * (rng.uniform(0, 0.9, 3) - grey), 0.02, 0.95)
    )


def _identity(rng: np.random.Generator, seed: int) -> Identity:
    u, skin = rng.uniform, _blend(rng, SKIN)
    hair = HAIR[rng.integers(len(HAIR) if np.mean(skin) > 0.45 else 2)]  # dark skin goes with dark hair
    style = str(rng.choice(STYLES, p=[0.32, 0.30, 0.18, 0.06, 0.14]))
    return Identity(
        width=u(0.50, 0.60), jaw=u(0.62, 0.92), chin=u(0.80, 0.93), eye_distance=u(0.225, 0.265),
        eye_size=u(0.085, 0.115), eye_tilt=u(-0.12, 0.12), iris=_blend(rng, IRIS), brow_height=u(0.13, 0.18),
        brow_thickness=u(0.018, 0.042), brow_arch=u(0.01, 0.05), nose_length=u(0.30, 0.38), nose_width=u(0.09, 0.14),
        mouth_width=u(0.19, 0.26), lips=u(0.03, 0.065), skin=skin, freckles=max(0.0, u(-1.5, 1)),
        age=u(0, 1) ** 2, hair=hair, hair_style=style,
        hair_curl=u(0, 1), hairline=u(-0.66, -0.50), beard=max(0.0, u(-2, 1)), seed=seed,
    )  # fmt: skip


def _scene(rng: np.random.Generator, seed: int) -> Scene:
    u, n = rng.uniform, rng.normal
    return Scene(
        yaw=float(np.clip(n(0, 0.2), -0.42, 0.42)), pitch=float(np.clip(n(0, 0.06), -0.12, 0.12)),
        roll=float(np.clip(n(0, 0.035), -0.08, 0.08)), scale=u(0.95, 1.06), shift=(n(0, 0.012), n(0, 0.012)),
        smile=u(-0.2, 1), mouth_open=max(0.0, u(-1.2, 1)), eyes_open=u(0.62, 1.05), brow_raise=u(-0.012, 0.025),
        gaze=u(-0.3, 0.3), light=(u(-0.9, 0.9), u(-0.9, 0.1)), contrast=u(0.35, 0.75), warmth=u(-0.06, 0.08),
        glasses=float(u() < 0.16) * u(0.5, 1), cloth=_muted(rng), background=str(rng.choice(BACKGROUNDS)),
        colours=(_muted(rng), _muted(rng)), seed=seed,
    )  # fmt: skip


# Drawing: each layer takes the canvas and returns it with itself on top.


def _step(value: Array, edge: float | Array, softness: float) -> Array:
    """0 where value < edge, 1 where above, smooth over +-softness."""
    t = np.clip((value - edge) / (2 * softness) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _bump(x: Array, y: Array, cx: float, cy: float, rx: float, ry: float) -> Array:
    return np.exp(-(((x - cx) / rx) ** 2) - ((y - cy) / ry) ** 2)


def _noise(rng: np.random.Generator, side: int, cells: int | tuple[int, int]) -> Array:
    """Smooth noise of unit deviation with so many cells (across, down), whatever the side in pixels."""
    across, down = (cells, cells) if isinstance(cells, int) else cells
    grid = rng.standard_normal((down + 1, across + 1), np.float32)
    kernel = cv2.INTER_AREA if max(across, down) > side else cv2.INTER_CUBIC
    return cv2.resize(grid, (side, side), interpolation=kernel)


def _over(canvas: Array, colour: Any, alpha: Array) -> Array:
    """`colour` (3,) or (H, W, 3) laid over the canvas with (H, W) opacity."""
    return canvas + alpha[..., None] * (np.asarray(colour, np.float32) - canvas)


class _Painter:
    """One drawing: coordinate grids of picture (x, y) and of the turned head (u, v), and the parameters."""

    def __init__(self, face: Face, side: int):
        self.id, self.scene, self.side = face.identity, face.scene, side
        axis = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
        self.x, self.y = np.meshgrid(axis, axis)
        self.soft = 1.6 / side  # half a pixel's softness of an edge, twice
        s = self.scene
        cos, sin = np.cos(s.roll) / s.scale, np.sin(s.roll) / s.scale
        dx, dy = self.x - s.shift[0], self.y - s.shift[1]
        u, v = cos * dx + sin * dy, cos * dy - sin * dx
        depth = np.sqrt(np.clip(1 - (u / 0.7) ** 2 - (v / 1.1) ** 2, 0, 1))
        self.silhouette = u, v
        self.u, self.v = (u - 0.34 * s.yaw * depth).astype(np.float32), (v - 0.3 * s.pitch * depth).astype(np.float32)
        self.skin = np.array(self.id.skin, np.float32)

    def paint(self) -> Array:
        canvas = self.background()
        canvas = self.hair_behind(canvas)
        canvas = self.body(canvas)
        canvas = self.head(canvas)
        canvas = self.hair_front(canvas)
        canvas = self.glasses(canvas)
        return self.camera(canvas)

    # behind the face

    def background(self) -> Array:
        rng, (one, two) = _rng(3, self.scene.seed), np.array(self.scene.colours, np.float32)
        mix = np.clip(0.5 + 0.35 * self.y * rng.choice([-1, 1]) + 0.2 * self.x + 0.12 * _noise(rng, self.side, 3), 0, 1)
        canvas = one + mix[..., None] * (two - one)
        if self.scene.background == "bokeh":
            for _ in range(14):
                cx, cy, r = rng.uniform(-1, 1), rng.uniform(-1, 0.6), rng.uniform(0.06, 0.2)
                disc = 1 - _step(np.hypot(self.x - cx, self.y - cy), r, 0.02)
                canvas = _over(canvas, rng.uniform(0.3, 1, 3), 0.35 * disc)
        elif self.scene.background == "foliage":
            for cells in (8, 20, 50):
                canvas = canvas * (1 + 0.16 * _noise(rng, self.side, cells)[..., None])
        elif self.scene.background == "room":
            for _ in range(4):
                at, colour = rng.uniform(-1, 1), rng.uniform(0.1, 0.8, 3)
                canvas = _over(canvas, colour, 0.6 * _step(self.x, at, 0.012) * (1 - _step(self.x, at + 0.35, 0.012)))
        return canvas

    def mane(self) -> Array:
        """Where there is hair around the head, 0 to 1."""
        u, v = self.silhouette
        long = self.id.hair_style == "long"
        wide = self.id.width + (0.20 if self.id.hair_style == "curly" else 0.13)
        radius = np.hypot(u / wide, (np.minimum(v, -0.1) + 0.1) / 0.72)
        below = 1 - _step(v, 1.3 if long else 0.12, 0.05)
        edge = 1 + 0.04 * self.id.hair_curl * _noise(_rng(4, self.id.seed), self.side, 14)
        edge = edge + 0.03 * np.sin(5 * v + self.id.seed) * _step(v, 0.1, 0.3)
        return (1 - _step(radius, edge, 0.02)) * below

    def hair_behind(self, canvas: Array) -> Array:
        return canvas if self.id.hair_style == "bald" else _over(canvas, self.strands(0.75), self.mane())

    def body(self, canvas: Array) -> Array:
        u, v = self.silhouette
        neck_width = 0.72 * self.id.width * self.id.jaw + 0.06
        neck = (1 - _step(np.abs(u), neck_width + 0.12 * np.clip(v - 0.75, 0, 1), 0.015)) * _step(v, 0.45, 0.05)
        shade = 0.55 + 0.3 * _step(v, 0.95, 0.25) - 0.25 * np.abs(u / neck_width) ** 2
        canvas = _over(canvas, self.skin * np.clip(shade, 0.2, 1)[..., None], neck)
        rng = _rng(5, self.scene.seed)
        slope = 0.86 + 0.22 * np.abs(u) ** 1.6 - 0.10 * np.exp(-(((np.abs(u) - neck_width) / 0.1) ** 2))
        cloth = _step(v, slope, 0.012)
        weave = 1 + 0.10 * _noise(rng, self.side, (6, 160)) + 0.08 * _noise(rng, self.side, (160, 30))
        folds = 0.75 + 0.18 * _noise(rng, self.side, (7, 4))
        texture = np.array(self.scene.cloth, np.float32) * (weave * folds)[..., None]
        return _over(canvas, texture, cloth)

    # the face

    def outline(self) -> Array:
        """1 inside the face's outline: an ellipse above, narrowing to the chin."""
        u, v = self.silhouette
        down = np.clip((v + 0.05) / (self.id.chin + 0.05), 0, 1)
        half = self.id.width * np.sqrt(np.clip(1 - ((v + 0.05) / 0.78) ** 2, 0, 1)) - 0.02
        jaw = self.id.width * (1 - (1 - self.id.jaw) * down**1.5) * np.sqrt(np.clip(1 - down**4.2, 0, 1)) - 0.02
        half = np.where(v < -0.05, half, jaw)
        return _step(half - np.abs(u), 0.0, 0.014)

    def relief(self) -> Array:
        """The head's height over the picture plane."""
        i, s, u, v = self.id, self.scene, self.u, self.v
        a, b = self.silhouette
        dome = 0.75 * np.sqrt(np.clip(1.05 - (a / (i.width + 0.06)) ** 2 - ((b - 0.05) / 0.98) ** 2, 0.0, 1))
        nose_base = -0.06 + i.nose_length
        ridge = (
            np.exp(-((u / (0.045 + 0.03 * np.clip(v, 0, 1))) ** 2))
            * _step(v, -0.16, 0.1)
            * (1 - _step(v, nose_base, 0.03))
        )
        height = dome + 0.11 * ridge * np.clip((v + 0.25) / 0.5, 0.25, 1)
        height += 0.085 * _bump(u, v, 0, nose_base - 0.045, 0.06, 0.06)
        for side in (-1, 1):
            height += 0.05 * _bump(u, v, side * i.nose_width * 0.8, nose_base - 0.03, 0.035, 0.035)
            height -= 0.085 * _bump(u, v, side * i.eye_distance * 0.96, -0.07, 0.13, 0.075)
            height += 0.030 * _bump(u, v, side * i.eye_distance, -0.075, 0.075, 0.045)
            height += 0.035 * _bump(u, v, side * i.eye_distance, -0.06 - i.brow_height, 0.16, 0.05)
            height += 0.05 * (1 + 0.5 * s.smile) * _bump(u, v, side * 0.29, 0.17 - 0.03 * s.smile, 0.14, 0.12)
            fold = _bump(u, v, side * (i.mouth_width * 0.95 + 0.05), 0.36, 0.03, 0.12)
            height -= (0.012 + 0.02 * i.age) * max(s.smile, 0.15) * fold
        height += 0.03 * _bump(u, v, 0, 0.46, i.mouth_width, 0.09) + 0.045 * _bump(u, v, 0, i.chin - 0.12, 0.13, 0.09)
        height -= 0.02 * _bump(u, v, 0, 0.575, 0.14, 0.035)
        for line in range(3):
            height -= 0.006 * i.age * np.exp(-(((v + 0.40 + 0.06 * line) / 0.008) ** 2)) * (np.abs(u) < 0.3)
        return height

    def shading(self) -> tuple[Array, Array]:
        """Diffuse and specular light on the relief."""
        height = self.relief()
        height = cv2.GaussianBlur(height, (0, 0), max(self.side / 160, 0.6))
        gy, gx = np.gradient(height, 2 / self.side)
        inverse = 1 / np.sqrt(1 + gx**2 + gy**2)
        lx, ly = self.scene.light
        light = np.array([lx, ly, 1.15], np.float32)
        light /= np.linalg.norm(light)
        facing = (-gx * light[0] - gy * light[1] + light[2]) * inverse
        half = light + np.array([0, 0, 1], np.float32)
        half /= np.linalg.norm(half)
        gleam = np.clip((-gx * half[0] - gy * half[1] + half[2]) * inverse, 0, 1) ** 24
        return np.clip(facing, 0, 1), gleam

    def complexion(self) -> Array:
        """Skin colour before light: redness, pores, freckles, stubble."""
        i, u, v, rng = self.id, self.u, self.v, _rng(6, self.id.seed)
        tone = self.skin * (1 + 0.035 * _noise(rng, self.side, 7) + 0.025 * _noise(rng, self.side, 140))[..., None]
        red = sum(_bump(u, v, side * 0.30, 0.16, 0.14, 0.11) for side in (-1, 1)) + 0.8 * _bump(
            u, v, 0, 0.24, 0.08, 0.06
        )
        tone = tone * (1 + red[..., None] * np.array([0.05, -0.07, -0.06], np.float32))
        spots = _step(_noise(rng, self.side, 110), 1.7, 0.25) * _bump(u, v, 0, 0.1, 0.45, 0.22)
        tone = tone * (1 - 0.35 * i.freckles * spots[..., None])
        for _ in range(int(rng.integers(0, 4))):
            mole = _bump(u, v, rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.7), 0.012, 0.012)
            tone = tone * (1 - 0.5 * mole[..., None])
        chin = _step(v, 0.33 + 0.25 * np.abs(u), 0.07) * (1 - _bump(u, v, 0, 0.47, i.mouth_width * 1.05, 0.06))
        jawline = np.maximum(chin, _step(np.abs(u), i.width * 0.82, 0.05) * _step(v, -0.05, 0.08))
        stubble = np.clip(0.75 + 0.35 * _noise(rng, self.side, (200, 120)), 0, 1) * jawline * min(i.beard * 1.3, 0.9)
        return _over(tone, np.array(i.hair) * 0.8, stubble)

    def head(self, canvas: Array) -> Array:
        diffuse, gleam = self.shading()
        k = self.scene.contrast
        light = (1 - k) + k * 1.35 * diffuse
        # Light that went through skin comes out red: shadows turn warmer than they turn dark.
        warm = np.stack([light**0.85, light, light**1.08], -1)
        colour = self.complexion() * warm
        colour = self.lips(colour, light)
        colour = self.nostrils(colour)
        colour += (0.16 * gleam * (1 - 0.6 * min(self.id.beard, 1)))[..., None]
        for side in (-1, 1):
            colour = self.brow(colour, side)
            colour = self.eye(colour, side, light)
        canvas = self.ears(canvas, light)
        return _over(canvas, colour, self.outline())

    def ears(self, canvas: Array, light: Array) -> Array:
        u, v = self.silhouette
        for side in (-1, 1):
            at = side * (self.id.width + 0.015) - 0.10 * self.scene.yaw
            body = np.hypot((u - at) / 0.065, (v - 0.04) / 0.15)
            inner = _bump(u, v, at + side * 0.01, 0.03, 0.028, 0.09)
            colour = self.skin * (0.92 - 0.45 * inner)[..., None] * np.clip(light, 0.5, 1)[..., None]
            canvas = _over(canvas, colour, 1 - _step(body, 1, 0.08))
        return canvas

    def eye(self, canvas: Array, side: int, light: Array) -> Array:
        i, s = self.id, self.scene
        du = (self.u - side * i.eye_distance) * side
        dv = self.v + 0.06 + i.eye_tilt * du
        w, opening = i.eye_size, i.eye_size * 0.5 * s.eyes_open * (1 - 0.12 * s.smile)
        arc = np.clip(1 - (du / w) ** 2, 0, 1)
        upper, lower = -opening * arc**0.62, 0.72 * opening * arc**0.8
        inside = _step(dv - upper, 0, self.soft * 1.5) * (1 - _step(dv - lower, 0, self.soft * 1.5)) * (np.abs(du) < w)
        radius = i.eye_size * 0.50
        ring = np.hypot(du - side * s.gaze * 0.35 * w, dv + 0.06 * opening) / radius
        white = np.float32([0.90, 0.88, 0.86]) * (0.55 + 0.45 * np.clip(light, 0, 1.1) - 0.25 * (1 - arc))[..., None]
        rays = 1 + 0.22 * _noise(_rng(7, i.seed, side + 1), self.side, 90)
        iris = np.array(i.iris, np.float32) * (1.35 - 0.75 * _step(ring, 0.8, 0.2))[..., None] * rays[..., None]
        ball = _over(white, iris, 1 - _step(ring, 1, 0.10))
        ball = _over(ball, (0.02, 0.02, 0.02), 1 - _step(ring, 0.42, 0.08))
        lid_shadow = np.clip((dv - upper) / (0.7 * opening + 1e-3), 0, 1)
        ball = ball * (0.45 + 0.55 * lid_shadow)[..., None]
        glint_u, glint_v = side * (0.35 * s.light[0] * radius), -0.45 * radius
        glint = np.hypot(du - side * s.gaze * 0.35 * w - glint_u, dv - glint_v) / (0.22 * radius)
        ball = _over(ball, (1, 1, 1), 0.95 * (1 - _step(glint, 1, 0.4)))
        crease = np.exp(-(((dv - upper + 0.034) / 0.009) ** 2)) * arc
        canvas = canvas * (1 - 0.35 * crease)[..., None]
        bag = np.exp(-(((dv - lower - 0.03) / 0.014) ** 2)) * arc
        canvas = canvas * (1 - (0.06 + 0.12 * i.age) * bag)[..., None]
        canvas = _over(canvas, ball, inside)
        lash = np.exp(-(((dv - upper) / 0.0095) ** 2)) * (np.abs(du) < w * 1.04)
        lower_lash = 0.4 * np.exp(-(((dv - lower) / 0.006) ** 2)) * (np.abs(du) < w)
        return _over(canvas, (0.06, 0.04, 0.03), np.clip(0.9 * lash + lower_lash, 0, 1))

    def brow(self, canvas: Array, side: int) -> Array:
        i, s = self.id, self.scene
        du = (self.u - side * i.eye_distance) * side
        line = -0.06 - i.brow_height - s.brow_raise - i.brow_arch * (1 - ((du - 0.03) / 0.16) ** 2)
        span = _step(du, -0.135, 0.03) * (1 - _step(du, 0.165, 0.03))
        thick = i.brow_thickness * (1.15 - 2.2 * np.clip(du, -0.1, 0.3))
        body = np.exp(-(((self.v - line) / thick) ** 2)) * span
        hairs = np.clip(0.62 + 0.45 * _noise(_rng(8, i.seed, side + 1), self.side, (120, 40)), 0, 1)
        dark = np.minimum(np.array(i.hair, np.float32) * 0.5, 0.45 * self.skin)
        return _over(canvas, dark, np.clip(1.25 * body * hairs, 0, 0.95))

    def nostrils(self, canvas: Array) -> Array:
        base = -0.06 + self.id.nose_length
        for side in (-1, 1):
            hole = _bump(self.u, self.v, side * self.id.nose_width * 0.48, base + 0.008, 0.030, 0.014)
            canvas = canvas * (1 - 0.72 * hole)[..., None]
            wing = _bump(self.u, self.v, side * self.id.nose_width * 1.18, base - 0.03, 0.016, 0.045)
            canvas = canvas * (1 - 0.22 * wing)[..., None]
        under = _bump(self.u, self.v, 0, base + 0.045, 0.09, 0.03)
        return canvas * (1 - 0.16 * under)[..., None]

    def lips(self, canvas: Array, light: Array) -> Array:
        i, s, u = self.id, self.scene, self.u
        w = i.mouth_width * (1 + 0.14 * s.smile)
        along = np.clip(np.abs(u) / w, 0, 1)
        middle = 0.46 - 0.055 * s.smile * (along**2 - 0.4)
        gap = 0.055 * s.mouth_open * np.sqrt(1 - along**2)
        bow = 1 - 0.30 * np.exp(-((u / 0.028) ** 2)) + 0.12 * np.exp(-(((np.abs(u) - 0.05) / 0.04) ** 2))
        upper = middle - gap * 0.4 - i.lips * 0.8 * np.sqrt(1 - along) * bow
        lower = middle + gap + i.lips * 1.1 * np.sqrt(1 - along**2)
        within = (np.abs(u) < w).astype(np.float32)
        lip = _step(self.v - upper, 0, 0.008) * (1 - _step(self.v - lower, 0, 0.008)) * within
        red = self.skin * np.float32([0.92, 0.60, 0.58]) * light[..., None]
        wet = _bump(u, self.v, 0.03, 0.0, w * 0.5, 1) * np.exp(
            -(((self.v - middle - gap - 0.45 * i.lips) / 0.012) ** 2)
        )
        canvas = _over(canvas, red * (1 + 0.06 * _noise(_rng(9, i.seed), self.side, (90, 20)))[..., None], 0.85 * lip)
        canvas = canvas + (0.12 * wet * lip)[..., None]
        hole = _step(self.v - (middle - gap * 0.4), 0, 0.006) * (1 - _step(self.v - (middle + gap), 0, 0.006)) * within
        mouth = np.full_like(canvas, 1) * np.float32([0.16, 0.05, 0.05])
        tooth = (1 - _step(self.v - (middle + 0.45 * gap), 0, 0.01)) * (
            0.86 - 0.18 * np.abs(np.sin(u / 0.047 * np.pi)) ** 16
        )
        mouth = _over(mouth, np.float32([0.90, 0.88, 0.82]), np.clip(tooth * (1 - 0.6 * along), 0, 1))
        canvas = _over(canvas, mouth, hole * float(s.mouth_open > 0.12))
        seam = np.exp(-(((self.v - middle) / 0.007) ** 2)) * (np.abs(u) < w * 1.03) * float(s.mouth_open <= 0.12)
        corner = sum(_bump(u, self.v, side * w, 0.46 - 0.033 * s.smile, 0.02, 0.016) for side in (-1, 1))
        return canvas * (1 - np.clip(0.62 * seam + 0.3 * corner, 0, 1))[..., None]

    # over the face

    def strands(self, brightness: float = 1.0) -> Array:
        """Hair colour: noise drawn out along the fall of the hair, a band of light across it."""
        u, v = self.silhouette
        rng = _rng(10, self.id.seed)
        angle = np.arctan2(u + 0.12 * np.sin(self.id.seed), -(v + 0.05)) / np.pi
        wave = 0.02 * self.id.hair_curl * np.sin(14 * v + 3 * u)
        position = np.clip((angle + wave + 1) / 2, 0, 1) * 2047
        radius = np.clip(np.hypot(u, v + 0.05) / 1.6, 0, 1) * 63
        fibres = sum(rng.standard_normal((64 // k, 2048 // k), np.float32).repeat(k, 0).repeat(k, 1) for k in (2, 8))
        fibres = cv2.GaussianBlur(fibres, (0, 0), sigmaX=1.0, sigmaY=9)
        spread = fibres.std() + 1e-6
        lines = cv2.remap(fibres / spread, position.astype(np.float32), radius.astype(np.float32), cv2.INTER_LINEAR)
        gloss = np.exp(-(((np.hypot(u * 0.9, v + 0.05) - 0.62 + 0.02 * lines) / 0.09) ** 2)) * np.clip(
            0.6 - self.scene.light[1] * 0.5, 0, 1
        )
        tone = (
            brightness
            * (0.85 + 0.32 * lines + 0.75 * gloss)
            * (0.9 + 0.12 * np.clip(self.scene.light[0] * u * 2, -1, 1))
        )
        return np.array(self.id.hair, np.float32) * np.clip(tone, 0.15, 3)[..., None]

    def hair_front(self, canvas: Array) -> Array:
        style = self.id.hair_style
        if style == "bald":
            return canvas
        u, v = self.silhouette
        rng = _rng(11, self.id.seed)
        wide = self.id.width + {"curly": 0.17, "long": 0.09}.get(style, 0.05)
        cap = 1 - _step(
            np.hypot(u / wide, (v + 0.1) / 0.78), 1 + 0.05 * (style == "curly") * _noise(rng, self.side, 18), 0.02
        )
        part = 0.18 * np.sin(self.id.seed * 1.7)
        line = self.id.hairline + 0.55 * np.abs(u - part) ** 2.2 / self.id.width**2 * (0.62 if style == "long" else 0.5)
        line = np.where(np.abs(u) > self.id.width * 0.86, line + 0.35, line)
        if style == "fringe":
            line = -0.36 + 0.06 * u * np.sign(part) + 0.25 * np.abs(u) ** 2
        line = line + 0.022 * _noise(rng, self.side, (70, 6)) + 0.012 * _noise(rng, self.side, (30, 3))
        top = cap * (1 - _step(v, line, 0.018))
        if style == "long":
            drape = _step(np.abs(u), self.id.width * 0.93 + 0.02 * np.sin(6 * v), 0.02)
            top = np.maximum(top, drape * self.mane() * _step(v, -0.3, 0.25))
        shadow = cv2.GaussianBlur(top.astype(np.float32), (0, 0), self.side / 40) * (1 - top) * self.outline()
        canvas = canvas * (1 - 0.4 * shadow)[..., None]
        return _over(canvas, self.strands(), top)

    def glasses(self, canvas: Array) -> Array:
        if not self.scene.glasses:
            return canvas
        rng = _rng(12, self.scene.seed)
        frame, power = rng.uniform(0.02, 0.35, 3), rng.choice([2.0, 3.2])
        for side in (-1, 1):
            du, dv = np.abs((self.u - side * self.id.eye_distance) / 0.185), np.abs((self.v + 0.045) / 0.135)
            ring = (du**power + dv**power) ** (1 / power)
            glare = _step(self.u * 0.7 - self.v - side * 0.1, 0.06, 0.03) * (
                1 - _step(self.u * 0.7 - self.v - side * 0.1, 0.12, 0.03)
            )
            canvas = _over(canvas, (0.95, 0.97, 1.0), 0.22 * glare * (1 - _step(ring, 0.95, 0.03)) * self.scene.glasses)
            canvas = _over(canvas, frame, np.exp(-(((ring - 1) / 0.07) ** 4)))
        bridge = np.exp(-(((self.v + 0.07) / 0.013) ** 4)) * (np.abs(self.u) < self.id.eye_distance - 0.17)
        temples = (
            np.exp(-(((self.v + 0.07) / 0.012) ** 4)) * (np.abs(self.u) > self.id.eye_distance + 0.18) * self.outline()
        )
        return _over(canvas, frame, np.clip(bridge + temples, 0, 1))

    def camera(self, canvas: Array) -> Array:
        warmth = self.scene.warmth
        exposure = 1 + 0.55 * max(0.0, 0.5 - float(self.skin.mean()))  # a camera meters the face
        canvas = canvas * np.float32([1 + warmth, 1, 1 - warmth]) * exposure
        canvas = canvas * (1 - 0.10 * (self.x**2 + self.y**2))[..., None]
        return np.clip(canvas, 0, 1) ** (1 / 1.12)


def render(face: Face, size: int) -> Array:
    """Draw a face: (size, size, 3) uint8 RGB. The same face looks the same at every size."""
    factor = 2 if size <= 256 else 1
    picture = (_Painter(face, size * factor).paint() * 255).round().astype(np.uint8)
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA) if factor > 1 else picture


def make(
    out: Path,
    count: int,
    size: int = 512,
    seed: int = 0,
    per_identity: int = 1,
    workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write `000000.png` ... and metadata.jsonl (Hugging Face's imagefolder layout), which comes last.

    Picture k has seed + k, and the identity of the first of its `per_identity` pictures. Finished pictures of the same
    call are kept. Raises UsageError for impossible numbers, UserError for a folder that holds something else.
    """
    if count < 1 or per_identity < 1 or workers < 1:
        raise UsageError("--count, --per-identity and --workers are 1 at least")
    if not 32 <= size <= 1024:
        raise UsageError(f"--size {size}: between 32 and 1024 pixels")
    plan = {"version": VERSION, "count": count, "size": size, "seed": seed, "per_identity": per_identity}
    _claim(out, plan)
    seeds = [(k, seed + k, seed + k - k % per_identity) for k in range(count)]
    lines = []
    draw = partial(_draw, out=out, size=size)
    with ProcessPoolExecutor(workers) as pool:
        for done, line in enumerate(pool.map(draw, seeds, chunksize=4), 1):
            lines.append(json.dumps(line))
            if progress:
                progress("faces", done, count)
    files.write(out / METADATA, "\n".join(lines) + "\n")


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Take the folder for this plan, or refuse it."""
    note = out / ".faces.json"
    try:
        if note.exists():
            if json.loads(note.read_text()) != plan:
                raise UserError(f"{out}: holds other procedural faces ({note.read_text()}); give another folder")
        elif out.exists() and any(out.iterdir()):
            raise UserError(f"{out}: holds files that are no procedural faces; give an empty or new folder")
        else:
            files.write(note, json.dumps(plan))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another folder") from None


def _draw(numbers: tuple[int, int, int], out: Path, size: int) -> dict[str, Any]:
    """Draw one picture unless it is there (renamed into place, so whole); its line of metadata.jsonl."""
    cv2.setNumThreads(1)
    index, seed, identity = numbers
    face, path = sample(seed, identity), out / f"{index:06d}.png"
    if not path.exists():
        coded = cv2.imencode(".png", render(face, size)[..., ::-1])[1]
        files.write(path, coded.tobytes())
    return {"file_name": path.name, "group": identity, "seed": seed, "version": VERSION, "parameters": face.to_json()}
