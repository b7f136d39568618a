"""Eyes, mouth and nostrils, painted on the head within their own windows."""

import numpy as np

from osdface.procedural.field import Array, Window, bump, f32, linear, noise, over, rgb, step, tinted, window
from osdface.procedural.head import Head
from osdface.procedural.lighting import Light
from osdface.procedural.parameters import rng
from osdface.procedural.relief import EYES, Lips, lips
from osdface.procedural.skin import tone

IRIS_RADIUS = 0.046
TOOTH = 0.043  # width of a front tooth
ENAMEL, GUM_DARK, TONGUE = (0.74, 0.66, 0.50), (0.02, 0.007, 0.006), (0.16, 0.035, 0.035)


def _box(head: Head, u: float, v: float, half_u: float, half_v: float) -> Window:
    """The pixels around a box of the frontal view."""
    corner_u = f32([u - half_u, u + half_u, u - half_u, u + half_u])
    corner_v = f32([v - half_v, v - half_v, v + half_v, v + half_v])
    return window(head.project(head.surface(corner_u, corner_v))[:, :2], 0.01, head.side)


def _blurred_edge(head: Head) -> float:
    """About a pixel, in the head's lengths."""
    return 2.2 / head.side / head.zoom


# eyes


def lid_lines(head: Head, along: Array) -> tuple[Array, Array]:
    """v offsets of the upper and lower lid from the eye's axis, over `along` in [-1, 1] (towards the temple)."""
    i, s = head.face.identity, head.face.scene
    opening = 0.046 * i.eye_height * s.eyes_open * (1 - 0.10 * max(s.smile, 0.0))
    t = np.clip(f32(along), -1, 1)
    arch = np.clip(1 - t * t, 0, 1)
    upper = -opening * arch**0.72 * (1 - 0.10 * t)
    lower = 0.036 * i.eye_height * (1 - 0.22 * max(s.smile, 0.0)) * arch**0.85 * (1 + 0.16 * t)
    return upper, lower


def eyes(canvas: Array, head: Head, light: Light) -> None:
    """Both eyes with their lids, on the canvas (side, side, 3), in place."""
    i = head.face.identity
    for sign in (-1, 1):
        at = _box(head, sign * i.eye_distance, EYES - 0.01, 0.19, 0.14)
        du = (head.u[at] - sign * i.eye_distance) * sign
        dv = head.v[at] - EYES + i.eye_tilt * du
        along = du / i.eye_size
        upper, lower = lid_lines(head, along)
        soft = _blurred_edge(head)
        opened = step(dv, upper, soft) * (1 - step(dv, lower, soft)) * (np.abs(along) < 1)
        patch = _lids(canvas[at], head, along, dv - upper, dv - lower)
        canvas[at] = over(patch, _ball(head, light, sign, du, dv, along, dv - upper, lower - dv), opened)


def _lids(patch: Array, head: Head, along: Array, below_upper: Array, below_lower: Array) -> Array:
    """The upper lid's fold and dark edge, the lower's moist rim."""
    i = head.face.identity
    arch = np.clip(1.05 - along * along, 0, 1)
    root = np.sqrt(arch)
    gap = (0.016 + 0.020 * i.crease) * (0.5 + 0.5 * root)
    fold = bump(below_upper, -gap, 0.0075) * root * (0.25 + 0.55 * min(1.0, 1.6 * i.crease))
    patch = patch * (1 - tinted(fold, (0.50, 0.62, 0.66)))
    rim = bump(below_lower, 0.006, 0.006) * arch
    patch = patch * (1 + tinted(0.7 * rim, (0.25, 0.02, 0.0)))
    line = bump(below_upper, -0.002, 0.0062) * root * (np.abs(along) < 1.03)
    under = 0.35 * bump(below_lower, 0.001, 0.0045) * arch * step(along, -0.5, 0.3)
    return over(patch, tone(i) * f32([0.10, 0.07, 0.06]), np.clip(0.85 * line + under, 0, 1))


def _ball(
    head: Head, light: Light, sign: int, du: Array, dv: Array, along: Array, below_upper: Array, above_lower: Array
) -> Array:
    """White, iris and pupil, shaded by the lids, wet."""
    i, s = head.face.identity, head.face.scene
    gaze_u = 0.10 * float(np.clip(s.gaze[0] - 0.8 * s.yaw, -0.4, 0.4)) * sign
    gaze_v = 0.10 * float(np.clip(s.gaze[1], -0.2, 0.2)) - 0.004
    x, y = du - gaze_u, dv - gaze_v
    ring = np.sqrt(x * x + y * y) / IRIS_RADIUS
    ball = over(_white(head, du, dv, along), _iris(head, ring, np.arctan2(y, x)), 1 - step(ring, 1.0, 0.09))
    ball = over(ball, (0.006, 0.005, 0.005), 1 - step(ring, 0.36 + 0.08 * (1 - s.key), 0.07))
    ball = over(ball, tone(i) * f32([1.0, 0.55, 0.5]), 0.75 * bump(along, -0.93, 0.13))  # the inner corner's flesh
    facing = np.clip(0.72 + 0.5 * (light.key[0] * sign * along * 0.6 + light.key[1] * dv / 0.1), 0.2, 1.2)
    shade = 0.30 + 0.70 * np.clip(below_upper / 0.034, 0, 1) ** 0.8
    shade = shade * (0.75 + 0.25 * np.clip(above_lower / 0.012, 0, 1))
    ball = ball * rgb(shade * (facing * (0.45 + 0.55 * s.key) + 0.35))
    tear = bump(above_lower, 0.004, 0.003) * np.clip(1 - along * along, 0, 1)
    return ball + tinted(0.22 * tear, light.colour) + rgb(_reflections(light, sign, x, y))


def _white(head: Head, du: Array, dv: Array, along: Array) -> Array:
    """The white of the eye: redder and darker towards the corners, veined; as light as its owner's skin allows."""
    i, a = head.face.identity, np.abs(along)
    veins = 0.08 * np.clip(noise(du, dv, (30, 90), i.seed + 11, head.side), 0, 2) * a
    corners = 0.45 * np.clip(a, 0, 1) ** 2.5
    white = f32([0.66, 0.60, 0.56]) * float(0.5 + 0.9 * tone(i).mean())
    return white * (1 - tinted(corners, (0.8, 1, 1))) * (1 - tinted(veins, (0.2, 1, 1)))


def _iris(head: Head, ring: Array, angle: Array) -> Array:
    """Fibres round the pupil, a lighter collar, a dark rim; more light on the lower half, where the lid lets it in."""
    i, draw = head.face.identity, rng(12, head.face.identity.seed)
    fibres = np.zeros_like(ring)
    for count in (17, 29, 43, 61):
        fibres += draw.uniform(0.5, 1) * np.cos(count * angle + draw.uniform(0, 6.3) + draw.uniform(-3, 3) * ring)
    collar, within = bump(ring, 0.52, 0.14), np.clip(ring, 0, 1)
    bright = (1.25 + 0.16 * fibres * within + 0.35 * collar + 0.45 * np.sin(angle) * within).clip(0.1, 3)
    bright = bright * (1 - 0.75 * step(ring, 0.90, 0.12))
    amber = f32([0.25, 0.0, -0.3])
    return linear(i.iris) * rgb(bright) * (1 + tinted(0.6 * collar, amber))


def _reflections(light: Light, sign: int, x: Array, y: Array) -> Array:
    """The key light and a weaker second one mirrored by the cornea."""
    right, down = x - sign * 0.88 * IRIS_RADIUS * light.half[0], y - 0.88 * IRIS_RADIUS * light.half[1] + 0.006
    square = np.maximum(np.abs(right) / 0.011, np.abs(down) / 0.012)
    large = square + 0.35 * np.hypot(right, down) / 0.012
    x, y = 2 * x - right, 2 * y - down - 0.002
    return 1.5 * (1 - step(large, 1.1, 0.25)) + 0.25 * (1 - step(np.hypot(x, y) / 0.007, 1, 0.5))


# mouth


def mouth(canvas: Array, head: Head, light: Light) -> None:
    """Lips and what is between them, on the canvas (side, side, 3), in place."""
    i = head.face.identity
    at = _box(head, 0, i.mouth_height + 0.01, 0.34, 0.17)
    u, v = head.u[at], head.v[at]
    curve, soft = lips(i, head.face.scene, u), _blurred_edge(head)
    a = np.abs(u)
    within, opened = 1 - step(a, curve.half, 0.006), curve.gap > 0.003
    patch = _lips(canvas[at], head, light, u, v, curve, within)
    inside = step(v, curve.roof, 0.004 + soft / 2) * (1 - step(v, curve.floor, 0.004 + soft / 2)) * within * opened
    patch = over(patch, _inside(curve, light, a, v), inside)
    seam = bump(v - np.where(opened, curve.roof, curve.seam), 0, 0.0065) * (1 - step(a, curve.half, 0.012))
    canvas[at] = patch * (1 - tinted(0.80 * seam, (0.85, 1, 1)))


def _lips(patch: Array, head: Head, light: Light, u: Array, v: Array, curve: Lips, within: Array) -> Array:
    """Both lips' red laid over the skin, creased; the lower catches the light."""
    i, soft = head.face.identity, _blurred_edge(head)
    creases = noise(u, v, (110, 16), i.seed + 13, head.side)
    upper = np.where(v < curve.seam, np.float32(0.80), np.float32(1.0))
    red = f32([0.98, 0.60, 0.62]) - f32([0.0, 0.07, 0.05]) * (i.redness - 0.3)
    crest = 0.58 * curve.floor + 0.42 * curve.bottom
    wet = bump(v - crest, 0, 0.014) * bump(u, 0.05 * light.key[0], 0.5 * curve.half) * (1 + 0.5 * creases)
    gleam = float(0.03 + 0.10 * tone(i).mean())
    painted = patch * tinted(upper * (1 + 0.055 * creases), red) + tinted(gleam * np.clip(wet, 0, 2), light.colour)
    lip = step(v, curve.top, 0.006 + soft) * (1 - step(v, curve.bottom, 0.008 + soft)) * within
    return over(patch, painted, 0.88 * lip)


def _inside(curve: Lips, light: Light, a: Array, v: Array) -> Array:
    """Teeth of the upper row before the dark, with the tongue below where the mouth is wide open."""
    across, deep = np.clip(a / curve.half, 0, 1), v - curve.roof
    place = a / TOOTH * (1 + 0.12 * a / TOOTH)  # narrower, as they turn away, towards the corners
    between = bump(place - np.round(place), 0, 0.07) * (place < 4.6)
    edge = 0.040 - 0.012 * across * across - 0.003 * np.cos(2 * np.pi * place)
    tooth = (1 - step(deep, edge, 0.003)) * (1 - 0.45 * between)
    shade = np.clip(0.30 + deep / 0.022, 0.30, 1) * (1 - 0.85 * across**1.5) * (1 - 0.15 * step(deep, 0.030, 0.010))
    shade = shade * np.clip((curve.gap - 0.008) / 0.02, 0, 1)  # a narrow gap shows none
    lit = light.colour * 0.50 + light.sky * 0.30
    tongue = tinted(step(v, curve.floor - 0.028, 0.02), TONGUE) + f32(GUM_DARK)
    return over(tongue, tinted(shade, f32(ENAMEL) * lit), tooth)


# nose


def nostrils(canvas: Array, head: Head) -> None:
    """The nose's holes, the shade under it and the crease round its wings, in place."""
    i = head.face.identity
    base = EYES + i.nose_length
    at = _box(head, 0, base, 0.24, 0.10)
    a, v = np.abs(head.u[at]), head.v[at]
    wing = i.nose_width * 0.46
    hole = bump(a, wing, 0.031) * bump(v + 0.25 * (a - wing), base + 0.004, 0.013)
    under = bump(a, 0, i.nose_width) * bump(v, base + 0.03, 0.025)
    crease = bump(a, i.nose_width * 1.16, 0.011) * bump(v, base - 0.03, 0.032)
    dark = tinted(np.clip(1.15 * hole, 0, 0.93), (0.90, 1, 1))
    canvas[at] = canvas[at] * (1 - dark) * rgb(1 - (0.14 * under + 0.26 * crease))
