"""What is around the face: background, clothes, glasses."""

import cv2
import numpy as np

from osdface.procedural.field import (
    Array,
    blur,
    bump,
    f32,
    linear,
    noise,
    normalised,
    over,
    picture_axes,
    rgb,
    smooth_noise,
    step,
    tinted,
)
from osdface.procedural.head import Head
from osdface.procedural.lighting import Light, lit_cloth
from osdface.procedural.parameters import Scene, rng
from osdface.procedural.relief import EYES
from osdface.procedural.strands import Layer, Sheet

BLURRED = 128  # out of focus: drawn this small and enlarged
SHOULDERS = 0.72  # clothes and their shadow lie below this y

# background


def background(scene: Scene, side: int) -> Array:
    """(side, side, 3) in linear light, by the kind that the scene names."""
    x, y = picture_axes(BLURRED)
    one, two = linear(scene.colours)
    far = KINDS[scene.background](scene, x + 0 * y, y + 0 * x, rng(31, scene.seed), one, two)
    enlarged = cv2.resize(f32(far), (side, side), interpolation=cv2.INTER_CUBIC)
    if scene.background == "wall":
        u, v = picture_axes(side)
        plaster = noise(u, v, 45, scene.seed + 31, side) + 0.7 * noise(u, v, 160, scene.seed + 32, side)
        enlarged = enlarged * rgb(1 + 0.06 * plaster)
    return np.clip(enlarged, 0.001, 3)


def _studio(scene: Scene, x: Array, y: Array, draw: np.random.Generator, one: Array, two: Array) -> Array:
    right, down, size = draw.uniform(-0.6, 0.6), draw.uniform(-0.6, 0.3), draw.uniform(0.4, 1.5)
    return tinted(0.45 + 0.75 * np.exp(-((x - right) ** 2 + (y - down) ** 2) / size), one)


def _bokeh(scene: Scene, x: Array, y: Array, draw: np.random.Generator, one: Array, two: Array) -> Array:
    canvas = 0.35 * one + tinted(np.clip(0.5 + 0.5 * y, 0, 1), 0.25 * (two - one))
    hue = draw.uniform(0.2, 1.0, 3)
    for _ in range(int(draw.integers(14, 34))):
        radius = draw.uniform(0.05, 0.17)
        right, down = x - draw.uniform(-1, 1), y - draw.uniform(-1, 0.8)
        distance = np.sqrt(right * right + down * down)
        disc = (1 - step(distance, radius, 0.02)) * (0.75 + 0.35 * bump(distance, radius, 0.03))
        canvas = canvas + tinted(disc, hue * draw.uniform(0.4, 1.2, 3) * draw.uniform(0.05, 0.7))
    return canvas


def _foliage(scene: Scene, x: Array, y: Array, draw: np.random.Generator, one: Array, two: Array) -> Array:
    leaves = np.zeros_like(x)
    for cells, weight in ((5, 0.5), (11, 0.5), (24, 0.35)):
        leaves += weight * smooth_noise(scene.seed + cells, BLURRED, cells)
    green = draw.uniform(0.05, 0.16), draw.uniform(0.14, 0.26), draw.uniform(0.02, 0.07)
    sky = step(smooth_noise(scene.seed + 3, BLURRED, 9) - 0.8 * y, 1.2, 0.5)
    canvas = over(tinted(np.exp(0.75 * leaves), green), (0.75, 0.85, 0.9), 0.8 * sky)
    return blur(canvas, draw.uniform(0.01, 0.05), BLURRED)


def _room(scene: Scene, x: Array, y: Array, draw: np.random.Generator, one: Array, two: Array) -> Array:
    canvas = tinted(0.8 + 0.25 * x * float(draw.choice([-1, 1])), one)
    for _ in range(int(draw.integers(4, 9))):
        left, top = draw.uniform(-1.2, 1), draw.uniform(-1.2, 0.8)
        right, bottom = left + draw.uniform(0.1, 0.8), top + draw.uniform(0.1, 1.2)
        box = step(x, left) * (1 - step(x, right)) * step(y, top) * (1 - step(y, bottom))
        window_pane = draw.uniform() > 0.8
        canvas = over(canvas, f32([1.2, 1.25, 1.3]) if window_pane else two * draw.uniform(0.3, 1.6), box)
    return blur(canvas, draw.uniform(0.02, 0.09), BLURRED)


def _wall(scene: Scene, x: Array, y: Array, draw: np.random.Generator, one: Array, two: Array) -> Array:
    stain = 1 + 0.10 * smooth_noise(scene.seed + 4, BLURRED, 5)
    return tinted(stain * (0.85 + 0.3 * x * draw.uniform(-1, 1) - 0.15 * y), one)


def _sky(scene: Scene, x: Array, y: Array, draw: np.random.Generator, one: Array, two: Array) -> Array:
    high, low = f32([0.18, 0.36, 0.70]) * draw.uniform(0.6, 1.3), f32([0.75, 0.80, 0.85])
    canvas = high + tinted(np.clip(0.5 + 0.5 * y, 0, 1) ** 0.8, low - high)
    wisps = smooth_noise(scene.seed + 5, BLURRED, (4, 7)) + 0.5 * smooth_noise(scene.seed + 6, BLURRED, 13)
    land = step(y + 0.06 * smooth_noise(scene.seed + 7, BLURRED, 7), draw.uniform(0.2, 0.9), 0.05)
    return over(over(canvas, (0.95, 0.95, 0.96), 0.7 * step(wisps, 0.7, 1.0)), two * 0.6, land)


KINDS = {"studio": _studio, "bokeh": _bokeh, "foliage": _foliage, "room": _room, "wall": _wall, "sky": _sky}

# clothes

# by cut: how far down it reaches in the middle, how sharply, how wide it opens
CUTS = {
    "crew": (1.0, 2.2, 0.46),
    "v-neck": (1.25, 1.0, 0.44),
    "shirt": (1.12, 1.15, 0.43),
    "turtleneck": (0.86, 2.0, 0.52),
}


def clothes(canvas: Array, head: Head, light: Light) -> None:
    """Shoulders under cloth with folds and weave, cut as the scene says."""
    scene, side, draw = head.face.scene, head.side, rng(33, head.face.scene.seed)
    at = slice(int((SHOULDERS + 1) * side / 2), side), slice(0, side)
    x, y = picture_axes(side, at)
    a = np.abs(x - 0.25 * head.project(f32([[0.0, 0.5, -0.1]]))[0, 0])
    edge = _cloth_edge(scene, a, draw)
    alpha, below = step(y, edge, 2 / side), y - edge
    collar = np.clip(1 - np.abs(below + 0.03) / 0.035, 0, 1) * (1 - alpha) * (a < CUTS[scene.clothes][2])
    folds = (smooth_noise(scene.seed + 9, side, (6, 4)) + 0.5 * smooth_noise(scene.seed + 10, side, (14, 6)))[at]
    slope_y, slope_x = np.gradient(0.05 * folds, 2 / side)
    hem = 0.4 * bump(below, 0.03, 0.03) * (below - 0.03)
    normal = normalised(cv2.merge([0.5 * x - slope_x, -0.35 - slope_y - hem, np.ones_like(folds)]))
    seam = 0.5 * bump(below, 0.055, 0.006)
    shade = np.clip(0.9 * head.facing[at] + 0.25 * np.clip(-folds, 0, 2) + seam, 0, 1)
    cloth = lit_cloth(light, _weave(scene, x, y, folds, draw, side), normal, shade)
    canvas[at] = over(canvas[at] * rgb(1 - 0.45 * collar), cloth, alpha)


def _cloth_edge(scene: Scene, a: Array, draw: np.random.Generator) -> Array:
    """y of the cloth's upper edge at the distance `a` from the middle: the neckline, then the shoulder's slope."""
    lowest, sharp, opening = CUTS[scene.clothes]
    lowest = lowest + draw.uniform(-0.04, 0.04)
    shoulder = 0.84 + 0.30 * np.clip(a - 0.30, 0, 2) ** 1.1
    ends = 0.84 + 0.30 * (opening - 0.30) ** 1.1
    neckline = lowest - (lowest - ends) * np.clip(a / opening, 0, 1) ** sharp
    return np.where(a > opening, np.maximum(neckline, shoulder), neckline)


def _weave(scene: Scene, x: Array, y: Array, folds: Array, draw: np.random.Generator, side: int) -> Array:
    """Cloth's colour: plain, striped or checked, woven or knitted."""
    one, two = linear(scene.cloth)
    bent_x, bent_y = x + 0.012 * folds, y + 0.012 * folds
    pattern, pitch = draw.choice(["plain", "striped", "checked", "ribbed"]), draw.uniform(0.035, 0.12)
    across, down = (step(np.sin(np.pi / pitch * place), 0.1, 0.25) for place in (bent_x, bent_y))
    mix = {"striped": down, "checked": 0.5 * (across + down)}.get(pattern, 0 * folds)
    threads = noise(x, y, (200, 26), scene.seed + 13, side) + noise(x, y, (26, 200), scene.seed + 14, side)
    relief = 1 + 0.09 * threads
    if pattern == "ribbed":
        relief = relief + 0.16 * np.cos(2 * np.pi / 0.022 * bent_x) * min(1.0, side / 300)
    return (one + tinted(mix, two - one)) * rgb(np.clip(relief, 0.2, 2))


# glasses

# by kind: half width, half height, the outline's superellipse exponent, the rim's thickness
FRAMES = {
    "round": (0.165, 0.155, 2.0, 0.016),
    "oval": (0.19, 0.125, 2.3, 0.014),
    "square": (0.19, 0.135, 4.0, 0.026),
    "rimless": (0.18, 0.12, 3.0, 0.006),
}


def glasses(canvas: Array, head: Head, light: Light) -> None:
    """Frames drawn in space before the eyes, their shadow on the skin, what the lenses mirror."""
    s, side = head.face.scene, head.side
    if s.glasses == "none":
        return
    frame, lenses = _frame(head)
    moved = f32([[1, 0, -0.05 * light.key[0] * side / 2], [0, 1, (0.02 - 0.05 * light.key[1]) * side / 2]])
    shadow = blur(cv2.warpAffine(frame.whole(frame.alpha, side), moved, (side, side)), 0.010, side) * head.inside
    x, y = picture_axes(side)
    streaks = step(np.sin(5.5 * (x * 0.8 - y - 0.3 * light.key[0]) + s.seed % 7), 0.72, 0.22)
    glare = (0.05 + 0.20 * streaks + 0.05 * np.clip(-y, 0, 1)) * lenses * 0.55
    canvas[:] = over(canvas * rgb(1 - 0.42 * shadow), light.sky + 0.35, glare)
    frame.over(canvas, linear(s.frame), light)


def _frame(head: Head) -> tuple[Layer, Array]:
    """The drawn frame, and the lenses' coverage (side, side)."""
    i, side, turn = head.face.identity, head.side, np.linspace(0, 2 * np.pi, 65)
    wide, high, power, rim = FRAMES[head.face.scene.glasses]
    thick, middle = max(rim, 0.012), i.eye_distance * 1.03
    front = float(head.surface(f32([0]), f32([EYES + 0.06]))[0, 2]) + 0.05
    cos, sin = np.cos(turn), np.sin(turn)
    across, down = (np.sign(p) * np.abs(p) ** (2 / power) * half for p, half in ((cos, wide), (sin, high)))
    sheet, lenses = Sheet(side), np.zeros((side, side), np.uint8)
    for sign in (-1, 1):
        u = sign * middle + across
        ring = head.project(f32(np.stack([u, EYES + 0.025 + down, front - 0.55 * u**2], -1)))
        tone = 1.0 + 0.35 * (down[:-1] < 0) + 0.2 * np.cos(3 * turn[:-1] + sign)
        sheet.draw(ring[None], tone[None], 0 * tone[None], rim)
        outline = (((ring[:, :2] + 1) * side / 2 - 0.5) * 16).round().astype(np.int32)
        cv2.fillPoly(lenses, [outline], 255, cv2.LINE_AA, 4)
        hinge = f32([sign * (middle + wide), EYES - 0.01, front - 0.55 * (i.eye_distance + wide) ** 2])
        ear = f32([sign * (i.width + 0.035), EYES, 0.0])
        temple = head.project(hinge + np.linspace(0, 1, 6, dtype=np.float32)[:, None] * (ear - hinge))
        if (np.diff(temple[:, 0]) * sign > -0.004).all():  # else hidden behind the cheek
            sheet.draw(temple[None], np.full((1, 1), 0.9), np.zeros((1, 1)), thick)
    bow = np.linspace(-1, 1, 9)
    bridge = np.stack([bow * (middle - wide), EYES - 0.015 - 0.03 * np.cos(1.5 * bow), np.full(9, front + 0.01)], -1)
    sheet.draw(head.project(f32(bridge))[None], np.full((1, 1), 1.1), np.zeros((1, 1)), thick)
    return sheet.layer(), f32(lenses) / 255
