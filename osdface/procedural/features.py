"""Eyes and mouth, painted on the head within their own windows."""

import numpy as np

from osdface.procedural.field import Array, Window, bump, linear, noise, over, step, window
from osdface.procedural.head import Head
from osdface.procedural.lighting import Light
from osdface.procedural.parameters import rng
from osdface.procedural.relief import EYES, lips
from osdface.procedural.skin import tone

IRIS_RADIUS = 0.046


def _box(head: Head, u: float, v: float, half_u: float, half_v: float) -> Window:
    """The pixels around a box of the frontal view."""
    corner_u = np.array([u - half_u, u + half_u, u - half_u, u + half_u])
    corner_v = np.array([v - half_v, v - half_v, v + half_v, v + half_v])
    return window(head.project(head.surface(corner_u, corner_v))[:, :2], 0.01, head.side)


def lid_lines(head: Head, along: Array) -> tuple[Array, Array]:
    """v offsets of the upper and lower lid from the eye's axis, over `along` in [-1, 1] (towards the temple)."""
    i, s = head.face.identity, head.face.scene
    opening = 0.046 * i.eye_height * s.eyes_open * (1 - 0.10 * max(s.smile, 0.0))
    t = np.clip(along, -1, 1)
    arch = np.clip(1 - t**2, 0, 1)
    upper = -opening * arch**0.72 * (1 - 0.10 * t)
    lower = 0.036 * i.eye_height * (1 - 0.22 * max(s.smile, 0.0)) * arch**0.85 * (1 + 0.16 * t)
    return upper.astype(np.float32), lower.astype(np.float32)


def eyes(canvas: Array, head: Head, light: Light) -> Array:
    i = head.face.identity
    for sign in (-1, 1):
        at = _box(head, sign * i.eye_distance, EYES - 0.01, 0.19, 0.14)
        canvas[at] = _eye(canvas[at], head, light, sign, at)
    return canvas


def _eye(patch: Array, head: Head, light: Light, sign: int, at: Window) -> Array:
    i, s = head.face.identity, head.face.scene
    du = (head.u[at] - sign * i.eye_distance) * sign
    dv = head.v[at] - EYES + i.eye_tilt * du
    along = du / i.eye_size
    upper, lower = lid_lines(head, along)
    soft = 2.2 / head.side / head.zoom
    within = np.abs(along) < 1
    opened = step(dv, upper, soft) * (1 - step(dv, lower, soft)) * within
    patch = _lids(patch, head, along, dv, upper, lower)
    ball = _ball(head, light, sign, du, dv, along, upper, lower)
    return over(patch, ball, opened)


def _lids(patch: Array, head: Head, along: Array, dv: Array, upper: Array, lower: Array) -> Array:
    i = head.face.identity
    arch = np.clip(1.05 - along**2, 0, 1)
    gap = (0.016 + 0.020 * i.crease) * (0.5 + 0.5 * np.sqrt(arch))
    fold = np.exp(-(((dv - upper + gap) / 0.0075) ** 2)) * np.sqrt(arch) * (0.25 + 0.55 * min(1.0, 1.6 * i.crease))
    patch = patch * (1 - fold[..., None] * np.float32([0.50, 0.62, 0.66]))
    rim = np.exp(-(((dv - lower - 0.006) / 0.006) ** 2)) * arch
    patch = over(patch, patch * np.float32([1.25, 1.02, 1.0]), 0.7 * rim)
    line = np.exp(-(((dv - upper + 0.002) / 0.0062) ** 2)) * np.sqrt(arch) * (np.abs(along) < 1.03)
    under = 0.35 * np.exp(-(((dv - lower - 0.001) / 0.0045) ** 2)) * arch * step(along, -0.5, 0.3)
    return over(patch, tone(i) * np.float32([0.10, 0.07, 0.06]), np.clip(0.85 * line + under, 0, 1))


def _ball(head: Head, light: Light, sign: int, du: Array, dv: Array, along: Array, upper: Array, lower: Array) -> Array:
    i, s = head.face.identity, head.face.scene
    gaze_u = 0.10 * np.clip(s.gaze[0] - 0.8 * s.yaw, -0.4, 0.4) * sign
    gaze_v = 0.10 * np.clip(s.gaze[1], -0.2, 0.2) - 0.004
    x, y = du - np.float32(gaze_u), dv - np.float32(gaze_v)
    ring, angle = np.hypot(x, y) / IRIS_RADIUS, np.arctan2(y, x)
    facing = np.clip(0.72 + 0.5 * (light.key[0] * sign * along * 0.6 + light.key[1] * dv / 0.1), 0.2, 1.2)
    white = np.float32([0.66, 0.60, 0.56]) * (
        1 - 0.45 * np.clip(np.abs(along), 0, 1)[..., None] ** 2.5 * np.float32([0.8, 1, 1])
    )
    veins = 0.08 * np.clip(noise(du, dv, (30, 90), i.seed + 11, head.side), 0, 2) * np.abs(along)
    white = white * float(0.5 + 0.9 * tone(i).mean()) * (1 - veins[..., None] * np.float32([0.2, 1, 1]))
    ball = over(white, _iris(head, ring, angle), 1 - step(ring, 1.0, 0.09))
    ball = over(ball, (0.006, 0.005, 0.005), 1 - step(ring, 0.36 + 0.08 * (1 - s.key), 0.07))
    corner = np.exp(-(((along + 0.93) / 0.13) ** 2))
    ball = over(ball, tone(i) * np.float32([1.0, 0.55, 0.5]), 0.75 * corner)
    lid = 0.30 + 0.70 * np.clip((dv - upper) / 0.034, 0, 1) ** 0.8
    lid = lid * (0.75 + 0.25 * np.clip((lower - dv) / 0.012, 0, 1))
    ball = ball * (lid * (facing * (0.45 + 0.55 * s.key) + 0.35))[..., None]
    tear = np.exp(-(((dv - lower + 0.004) / 0.003) ** 2)) * np.clip(1 - along**2, 0, 1)
    ball = ball + 0.22 * tear[..., None] * light.colour
    return ball + _reflections(light, sign, x, y)[..., None]


def _iris(head: Head, ring: Array, angle: Array) -> Array:
    """Fibres round the pupil, a lighter collar, a dark rim; more light on the lower half, where the lid lets it in."""
    i, draw = head.face.identity, rng(12, head.face.identity.seed)
    fibres = np.zeros_like(ring)
    for count in (17, 29, 43, 61):
        fibres += draw.uniform(0.5, 1) * np.cos(count * angle + draw.uniform(0, 6.3) + draw.uniform(-3, 3) * ring)
    collar = np.exp(-(((ring - 0.52) / 0.14) ** 2))
    bright = 1.25 + 0.16 * fibres * np.clip(ring, 0, 1) + 0.35 * collar + 0.45 * np.sin(angle) * np.clip(ring, 0, 1)
    bright = bright * (1 - 0.75 * step(ring, 0.90, 0.12))
    amber = linear(i.iris) * np.float32([1.25, 1.0, 0.7])
    return over(
        linear(i.iris) * np.clip(bright, 0.1, 3)[..., None], amber * np.clip(bright, 0.1, 3)[..., None], 0.6 * collar
    )


def _reflections(light: Light, sign: int, x: Array, y: Array) -> Array:
    """The key light and a weaker second one mirrored by the cornea."""
    place_x, place_y = sign * 0.55 * light.half[0] * IRIS_RADIUS * 1.6, 0.55 * light.half[1] * IRIS_RADIUS * 1.6 - 0.006
    big = (
        np.maximum(np.abs(x - place_x) / 0.011, np.abs(y - place_y) / 0.012)
        + 0.35 * np.hypot(x - place_x, y - place_y) / 0.012
    )
    small = np.hypot(x + place_x, y + place_y - 0.008) / 0.007
    return 1.5 * (1 - step(big, 1.1, 0.25)) + 0.25 * (1 - step(small, 1, 0.5))


def mouth(canvas: Array, head: Head, light: Light) -> Array:
    i = head.face.identity
    at = _box(head, 0, i.mouth_height + 0.01, 0.34, 0.17)
    patch, u, v = canvas[at], head.u[at], head.v[at]
    curve, soft = lips(i, head.face.scene, u), 2.2 / head.side / head.zoom
    across = np.clip(np.abs(u) / curve.half, 0, 1)
    within = 1 - step(np.abs(u), curve.half, 0.006)
    lip = step(v, curve.top, 0.006 + soft) * (1 - step(v, curve.bottom, 0.008 + soft)) * within
    creases = noise(u, v, (110, 16), i.seed + 13, head.side)
    red = np.float32([0.98, 0.60, 0.62]) - np.float32([0.0, 0.07, 0.05]) * (i.redness - 0.3)
    upper = np.where(v < curve.seam, np.float32(0.80), np.float32(1.0))
    painted = patch * red * (upper * (1 + 0.055 * creases))[..., None]
    lower_middle = curve.seam + 0.65 * curve.gap + 0.42 * (curve.bottom - curve.seam - 0.65 * curve.gap)
    wet = (
        np.exp(-(((v - lower_middle) / 0.014) ** 2))
        * bump(u, 0.05 * light.key[0], 0.5 * curve.half)
        * (1 + 0.5 * creases)
    )
    painted = painted + 0.09 * np.clip(wet, 0, 2)[..., None] * light.colour
    patch = over(patch, painted, 0.88 * lip)
    low, high = curve.seam - 0.35 * curve.gap, curve.seam + 0.65 * curve.gap
    inside = step(v, low, 0.004 + soft / 2) * (1 - step(v, high, 0.004 + soft / 2)) * within * (curve.gap > 0.003)
    patch = over(patch, _inside(u, v, low, high, across, patch, i.seed), inside)
    seam = np.exp(-(((v - np.where(curve.gap > 0.003, low, curve.seam)) / 0.0065) ** 2)) * (
        1 - step(np.abs(u), curve.half, 0.012)
    )
    patch = patch * (1 - 0.80 * seam[..., None] * np.float32([0.85, 1, 1]))
    canvas[at] = patch
    return canvas


def _inside(u: Array, v: Array, low: Array, high: Array, across: Array, patch: Array, seed: int) -> Array:
    """Teeth of the upper row before the dark, with the tongue below where the mouth is wide open."""
    place = np.abs(u) / 0.043
    place = place + 0.12 * place**2
    between = np.exp(-(((place - np.round(place)) / 0.07) ** 2)) * (place < 4.6)
    edge = low + 0.046 - 0.010 * across**2 - 0.003 * np.cos(2 * np.pi * place)
    tooth = (1 - step(v, edge, 0.003)) * (1 - 0.45 * between)
    shade = (
        np.clip((v - low) / 0.012, 0.35, 1) * (1 - 0.75 * across**1.7) * float(np.clip(patch.mean() * 3.2, 0.25, 1.1))
    )
    shade = shade * np.clip((high - low - 0.008) / 0.02, 0, 1)  # a narrow gap shows none
    enamel = np.float32([0.68, 0.62, 0.52]) * shade[..., None]
    tongue = np.float32([0.16, 0.035, 0.035]) * step(v, high - 0.028, 0.02)[..., None] + np.float32(
        [0.02, 0.007, 0.006]
    )
    return over(tongue, enamel, tooth)


def nostrils(canvas: Array, head: Head) -> Array:
    i = head.face.identity
    base = EYES + i.nose_length
    at = _box(head, 0, base, 0.24, 0.10)
    a, v = np.abs(head.u[at]), head.v[at]
    wing = i.nose_width * 0.46
    hole = bump(a, wing, 0.031) * np.exp(-(((v - base - 0.004 + 0.25 * (a - wing)) / 0.013) ** 2))
    under = bump(a, 0, i.nose_width) * bump(v, base + 0.03, 0.025)
    crease = np.exp(-(((a - i.nose_width * 1.16) / 0.011) ** 2)) * bump(v, base - 0.03, 0.032)
    dark = np.clip(1.15 * hole, 0, 0.93)[..., None] * np.float32([0.90, 1, 1])
    canvas[at] = canvas[at] * (1 - dark) * (1 - (0.14 * under + 0.26 * crease)[..., None])
    return canvas
