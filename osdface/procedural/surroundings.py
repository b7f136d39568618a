"""What is around the face: background, clothes, glasses."""

import cv2
import numpy as np

from osdface.procedural.field import (
    Array,
    blur,
    bump,
    linear,
    noise,
    normalised,
    over,
    picture_axes,
    smooth_noise,
    step,
)
from osdface.procedural.head import Head
from osdface.procedural.lighting import Light, lit_cloth
from osdface.procedural.parameters import Scene, rng
from osdface.procedural.relief import EYES
from osdface.procedural.strands import Sheet

BLURRED = 128  # out of focus: drawn this small and enlarged


def background(scene: Scene, side: int) -> Array:
    """(side, side, 3) in linear light, by the kind that the scene names."""
    x, y = picture_axes(BLURRED)
    draw, one, two = rng(31, scene.seed), *linear(scene.colours)
    far = KINDS[scene.background](scene, x + 0 * y, y + 0 * x, draw, one, two)
    enlarged = cv2.resize(far.astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    if scene.background == "wall":
        u, v = picture_axes(side)
        plaster = noise(u, v, 45, scene.seed + 31, side) + 0.7 * noise(u, v, 160, scene.seed + 32, side)
        enlarged = enlarged * (1 + 0.06 * plaster[..., None])
    return np.clip(enlarged, 0.001, 3)


def _studio(scene: Scene, x: Array, y: Array, draw: np.random.Generator, one: Array, two: Array) -> Array:
    glow = np.exp(-((x - draw.uniform(-0.6, 0.6)) ** 2 + (y - draw.uniform(-0.6, 0.3)) ** 2) / draw.uniform(0.4, 1.5))
    return one * (0.45 + 0.75 * glow)[..., None]


def _bokeh(scene: Scene, x: Array, y: Array, draw: np.random.Generator, one: Array, two: Array) -> Array:
    canvas = 0.35 * one + 0.25 * (two - one) * np.clip(0.5 + 0.5 * y, 0, 1)[..., None]
    hue = draw.uniform(0.2, 1.0, 3)
    for _ in range(int(draw.integers(14, 34))):
        radius = draw.uniform(0.05, 0.17)
        distance = np.hypot(x - draw.uniform(-1, 1), y - draw.uniform(-1, 0.8))
        disc = (1 - step(distance, radius, 0.02)) * (0.75 + 0.35 * bump(distance, radius, 0.03))
        canvas = canvas + disc[..., None] * hue * draw.uniform(0.4, 1.2, 3) * draw.uniform(0.05, 0.7)
    return canvas


def _foliage(scene: Scene, x: Array, y: Array, draw: np.random.Generator, one: Array, two: Array) -> Array:
    leaves = sum(
        weight * smooth_noise(scene.seed + cells, BLURRED, cells)[...]
        for cells, weight in ((5, 0.5), (11, 0.5), (24, 0.35))
    )
    green = np.array([draw.uniform(0.05, 0.16), draw.uniform(0.14, 0.26), draw.uniform(0.02, 0.07)])
    canvas = green * np.exp(0.75 * leaves)[..., None]
    sky = step(smooth_noise(scene.seed + 3, BLURRED, 9) - 0.8 * y, 1.2, 0.5)
    return blur(over(canvas, (0.75, 0.85, 0.9), 0.8 * sky).astype(np.float32), draw.uniform(0.01, 0.05), BLURRED)


def _room(scene: Scene, x: Array, y: Array, draw: np.random.Generator, one: Array, two: Array) -> Array:
    canvas = np.broadcast_to(one, (*x.shape, 3)) * (0.8 + 0.25 * x * draw.choice([-1, 1]))[..., None]
    for _ in range(int(draw.integers(4, 9))):
        left, top, wide, high = (
            draw.uniform(-1.2, 1),
            draw.uniform(-1.2, 0.8),
            draw.uniform(0.1, 0.8),
            draw.uniform(0.1, 1.2),
        )
        box = (
            step(x, left, 0.01)
            * (1 - step(x, left + wide, 0.01))
            * step(y, top, 0.01)
            * (1 - step(y, top + high, 0.01))
        )
        colour = two * draw.uniform(0.3, 1.6) if draw.uniform() < 0.8 else np.array([1.2, 1.25, 1.3])
        canvas = over(canvas, colour, box)
    return blur(canvas.astype(np.float32), draw.uniform(0.02, 0.09), BLURRED)


def _wall(scene: Scene, x: Array, y: Array, draw: np.random.Generator, one: Array, two: Array) -> Array:
    stain = 1 + 0.10 * smooth_noise(scene.seed + 4, BLURRED, 5)
    return one * (stain * (0.85 + 0.3 * x * draw.uniform(-1, 1) - 0.15 * y))[..., None]


def _sky(scene: Scene, x: Array, y: Array, draw: np.random.Generator, one: Array, two: Array) -> Array:
    high, low = np.array([0.18, 0.36, 0.70]) * draw.uniform(0.6, 1.3), np.array([0.75, 0.80, 0.85])
    canvas = high + (np.clip(0.5 + 0.5 * y, 0, 1) ** 0.8)[..., None] * (low - high)
    clouds = step(
        smooth_noise(scene.seed + 5, BLURRED, (4, 7)) + 0.5 * smooth_noise(scene.seed + 6, BLURRED, 13), 0.7, 1.0
    )
    land = step(y + 0.06 * smooth_noise(scene.seed + 7, BLURRED, 7), draw.uniform(0.2, 0.9), 0.05)
    return over(over(canvas, (0.95, 0.95, 0.96), 0.7 * clouds), two * 0.6, land)


KINDS = {"studio": _studio, "bokeh": _bokeh, "foliage": _foliage, "room": _room, "wall": _wall, "sky": _sky}


def clothes(canvas: Array, head: Head, light: Light) -> Array:
    """Shoulders under cloth with folds and weave, cut as the scene says."""
    scene, side = head.face.scene, head.side
    x, y = picture_axes(side)
    draw = rng(33, scene.seed)
    a = np.abs(x - 0.25 * head.project(np.array([[0.0, 0.5, -0.1]], np.float32))[0, 0])
    shoulder = 0.84 + 0.30 * np.clip(a - 0.30, 0, 2) ** 1.1
    lowest = {"crew": 1.0, "v-neck": 1.25, "shirt": 1.12, "turtleneck": 0.86}[scene.clothes] + draw.uniform(-0.04, 0.04)
    sharp = {"crew": 2.2, "v-neck": 1.0, "shirt": 1.15, "turtleneck": 2.0}[scene.clothes]
    opening = {"crew": 0.46, "v-neck": 0.44, "shirt": 0.43, "turtleneck": 0.52}[scene.clothes]
    ends = 0.84 + 0.30 * (opening - 0.30) ** 1.1
    cut = lowest - (lowest - ends) * np.clip(a / opening, 0, 1) ** sharp
    edge = np.maximum(cut, shoulder * (a > opening) + (cut * (a <= opening)))
    alpha = step(y, edge, 2 / side)
    folds = smooth_noise(scene.seed + 9, side, (6, 4)) + 0.5 * smooth_noise(scene.seed + 10, side, (14, 6))
    slope_y, slope_x = np.gradient(0.05 * folds, 2 / side)
    bulge = 0.05 * np.exp(-(((y - edge - 0.03) / 0.03) ** 2))
    normal = np.stack([0.5 * x - slope_x, -0.35 - slope_y - 8 * bulge * (y - edge - 0.03), np.ones_like(folds)], -1)
    albedo = _weave(scene, x, y, folds, draw, side)
    seam = np.exp(-(((y - edge - 0.055) / 0.006) ** 2))
    shade = np.clip(0.9 * head.facing + 0.25 * np.clip(-folds, 0, 2) + 0.5 * seam, 0, 1)
    under = np.clip(1 - np.abs(y - edge + 0.03) / 0.035, 0, 1) * (1 - alpha) * (a < opening)
    canvas = canvas * (1 - 0.45 * under)[..., None]
    return over(canvas, lit_cloth(light, albedo, normalised(normal.astype(np.float32)), shade), alpha)


def _weave(scene: Scene, x: Array, y: Array, folds: Array, draw: np.random.Generator, side: int) -> Array:
    """Cloth's colour: plain, striped or checked, woven or knitted."""
    one, two = linear(scene.cloth)
    bent_x, bent_y = x + 0.012 * folds, y + 0.012 * folds
    pattern, pitch = draw.integers(0, 4), draw.uniform(0.035, 0.12)
    bars = [step(np.sin(np.pi * place / pitch), 0.1, 0.25) for place in (bent_x, bent_y)]
    mix = (0 * folds, bars[1], 0.5 * (bars[0] + bars[1]), 0 * folds)[pattern]
    thread = 0.09 * noise(x, y, (200, 26), scene.seed + 13, side) + 0.09 * noise(x, y, (26, 200), scene.seed + 14, side)
    rib = 0.16 * np.cos(2 * np.pi * bent_x / 0.022) * float(pattern == 3) * min(1.0, side / 300)
    return over(np.broadcast_to(one, (*folds.shape, 3)), two, mix) * np.clip(1 + thread + rib, 0.2, 2)[..., None]


def glasses(canvas: Array, head: Head, light: Light) -> Array:
    """Frames drawn in space before the eyes, their shadow on the skin, what the lenses mirror."""
    i, s, side = head.face.identity, head.face.scene, head.side
    if s.glasses == "none":
        return canvas
    wide, high, power = {
        "round": (0.165, 0.155, 2.0),
        "oval": (0.19, 0.125, 2.3),
        "square": (0.19, 0.135, 4.0),
        "rimless": (0.18, 0.12, 3.0),
    }[s.glasses]
    turn = np.linspace(0, 2 * np.pi, 65)
    front = float(head.surface(np.zeros(1), np.full(1, EYES + 0.06))[0, 2]) + 0.05
    cos, sin = np.cos(turn), np.sin(turn)
    ring = np.stack(
        [np.sign(cos) * np.abs(cos) ** (2 / power) * wide, np.sign(sin) * np.abs(sin) ** (2 / power) * high], -1
    )
    rims, lens = Sheet(side), np.zeros((side, side), np.uint8)
    rim = {"rimless": 0.006, "round": 0.016, "oval": 0.014, "square": 0.026}[s.glasses]
    for sign in (-1, 1):
        u, v = sign * (i.eye_distance * 1.03) + ring[:, 0], EYES + 0.025 + ring[:, 1]
        seen = head.project(np.stack([u, v, front - 0.55 * u**2], -1).astype(np.float32))
        tone = 1.0 + 0.35 * (ring[:-1, 1] < 0) + 0.2 * np.cos(3 * turn[:-1] + sign)
        rims.draw(seen[None], tone[None], 0 * tone[None], rim)
        cv2.fillPoly(lens, [(((seen[:, :2] + 1) * side / 2 - 0.5) * 16).round().astype(np.int32)], 255, cv2.LINE_AA, 4)
        start = np.array(
            [sign * (i.eye_distance * 1.03 + wide), EYES - 0.01, front - 0.55 * (i.eye_distance + wide) ** 2]
        )
        ear = np.array([sign * (i.width + 0.035), EYES + 0.0, 0.0])
        temple = head.project((start + np.linspace(0, 1, 6)[:, None] * (ear - start)).astype(np.float32))
        visible = (temple[:-1, 0] - temple[1:, 0]) * sign < 0.004
        if visible.all():
            rims.draw(temple[None], np.full((1, 5), 0.9), np.zeros((1, 5)), max(rim, 0.012))
    inner = i.eye_distance * 1.03 - wide
    bridge = np.stack(
        [
            np.linspace(-inner, inner, 9),
            EYES - 0.015 - 0.03 * np.cos(np.linspace(-1.5, 1.5, 9)),
            np.full(9, front + 0.01),
        ],
        -1,
    )
    rims.draw(head.project(bridge.astype(np.float32))[None], np.full((1, 8), 1.1), np.zeros((1, 8)), max(rim, 0.012))
    layer = rims.layer()
    moved = np.float32([[1, 0, -0.05 * light.key[0] * side / 2], [0, 1, (0.02 - 0.05 * light.key[1]) * side / 2]])
    shadow = blur(cv2.warpAffine(layer.whole(layer.alpha, side), moved, (side, side)), 0.010, side) * head.inside
    canvas = canvas * (1 - 0.42 * shadow)[..., None]
    x, y = picture_axes(side)
    band = x * 0.8 - y - 0.3 * light.key[0]
    glare = 0.05 + 0.20 * step(np.sin(5.5 * band + s.seed), 0.72, 0.22) + 0.05 * np.clip(-y, 0, 1)
    canvas = over(canvas, light.sky + 0.35, glare * (lens.astype(np.float32) / 255) * 0.55)
    layer.over(canvas, linear(s.frame), light)
    return canvas
