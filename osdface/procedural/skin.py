"""Skin: its colour over the face, pores and spots, and the parts made of it: head, ears, neck."""

import cv2
import numpy as np

from osdface.procedural.field import Array, blur, bump, linear, noise, normalised, over, picture_axes, step, window
from osdface.procedural.head import Head
from osdface.procedural.lighting import Light, lit_skin
from osdface.procedural.parameters import Identity, Scene
from osdface.procedural.relief import EYES, axes, lips

BLOOD = np.float32([0.10, -0.16, -0.13])  # what more of it does to skin's colour


def tone(identity: Identity) -> Array:
    return linear(identity.skin)


def _tint(identity: Identity, scene: Scene) -> Array:
    """Over the frontal grid: redness, shade round the eyes; (GRID, GRID, 2)."""
    u, v = axes()
    a, base = np.abs(u), EYES + identity.nose_length
    red = (0.35 + identity.redness) * bump(a, 0.31, 0.15) * bump(v, 0.20, 0.12)
    red = red + (0.3 + 0.5 * identity.redness) * bump(a, 0.03, 0.10) * bump(v, base - 0.05, 0.08)
    red += 0.25 * bump(a, 0, 0.2) * bump(v, identity.chin - 0.1, 0.08)
    under = (0.2 + 0.5 * identity.age) * bump(a, identity.eye_distance - 0.03, 0.09) * bump(v, EYES + 0.075, 0.04)
    under = under + 0.5 * bump(a, identity.eye_distance, 0.11) * bump(v, EYES - 0.05, 0.035)
    return np.dstack([red, under]).astype(np.float32)


def hairline(identity: Identity, angle: Array) -> Array:
    """Height where the hair ends, at angles (radians) round the head from the front."""
    front = identity.hairline
    degrees = [0, 22, 40, 52, 66, 80, 92, 115, 180]
    heights = [front, front + 0.01, front + 0.05, front + 0.2, -0.16, 0.0, -0.12, 0.25, 0.42]
    return np.interp(np.abs(angle), np.radians(degrees), heights)


def beard_zone(identity: Identity, scene: Scene, u: Array, v: Array) -> Array:
    """Where the beard's style grows on the frontal view, 0 to 1."""
    curve, a = lips(identity, scene, u), np.abs(u)
    base = EYES + identity.nose_length
    cheek = base + 0.10 - 1.15 * np.clip(a - 0.26, 0, 1) + 0.35 * np.clip(0.30 - a, 0, 0.2)
    whole = np.maximum(step(v, cheek, 0.09), step(a, identity.width * 0.86, 0.03) * step(v, -0.05, 0.06))
    lip = step(v, curve.top, 0.008) * (1 - step(v, curve.bottom, 0.008)) * (a < curve.half)
    moustache = (
        step(v, base + 0.035, 0.015)
        * (1 - step(v, identity.mouth_height + 0.01, 0.02))
        * (1 - step(a, curve.half + 0.02, 0.03))
    )
    chin = step(v, identity.mouth_height + 0.05, 0.03) * (1 - step(a, 0.17, 0.04))
    sides = step(a, curve.half + 0.01, 0.02) * (1 - step(a, curve.half + 0.07, 0.02)) * step(v, base + 0.09, 0.02)
    below_nose = step(v, base + 0.03, 0.02)
    zone = {
        "none": np.zeros_like(whole),
        "moustache": moustache,
        "goatee": np.clip(moustache + chin + sides, 0, 1),
    }.get(
        identity.beard_style,
        np.where(a < curve.half + 0.05, np.maximum(moustache, step(v, curve.bottom + 0.012, 0.02)), whole),
    )
    soul = bump(a, 0, 0.05) * bump(v, identity.mouth_height + 0.1, 0.02)
    return np.clip(zone * below_nose if identity.beard_style != "full" else zone - 0.2 * soul, 0, 1) * (1 - lip)


def complexion(head: Head) -> tuple[Array, Array]:
    """Skin's linear colour (H, W, 3) and gloss (H, W) over the head, before light."""
    i, s, u, v, side = head.face.identity, head.face.scene, head.u, head.v, head.side
    tint = head.lookup(_tint(i, s), u, v)
    mottle = 0.045 * noise(u, v, 14, i.seed, side) + 0.05 * noise(u, v, 40, i.seed + 1, side)
    pores = noise(u, v, 170, i.seed + 2, side)
    fine = (0.035 + 0.03 * i.age) * pores
    colour = tone(i) * (1 + (mottle + fine)[..., None] * np.float32([0.8, 1, 1.1]))
    colour *= 1 + tint[..., :1] * BLOOD * np.float32(1.0)
    colour *= 1 - tint[..., 1:2] * np.float32([0.20, 0.24, 0.18])
    if i.freckles:
        spots = (
            step(noise(u, v, 60, i.seed + 3, side), 1.5 - 0.5 * i.freckles, 0.3) * bump(u, 0, 0.5) * bump(v, 0.08, 0.26)
        )
        colour *= 1 - 0.6 * i.freckles * spots[..., None] * np.float32([0.5, 0.8, 1])
    for at_u, at_v, radius in i.moles:
        mole = 1 - step(np.hypot(u - at_u, v - at_v) * (1 + 0.12 * pores), radius, 0.35 * radius)
        colour *= 1 - mole[..., None] * np.float32([0.55, 0.7, 0.75])
    line = hairline(i, np.arcsin(np.clip(u / head.column.at(v)[..., 0], -1, 1)))
    ragged = 0.02 * noise(u, v, (60, 8), i.seed + 8, side)
    roots = (1 - step(v, line + ragged, 0.03)) * (0.92 if i.hair_style != "bald" else 0.12)
    if i.beard_style != "none":
        roots = np.maximum(roots, beard_zone(i, s, u, v) * (0.30 + 0.35 * i.beard) * (0.85 + 0.25 * pores))
    colour = over(colour, np.minimum(0.35 * linear(i.hair) + 0.05 * tone(i), 0.5 * tone(i)), np.clip(roots, 0, 0.92))
    oily = 0.55 + 0.5 * bump(u, 0, 0.22) + 0.2 * bump(np.abs(u), 0.3, 0.12) * bump(v, 0.15, 0.1)
    gloss = np.clip(
        oily * (1 + 0.18 * pores + 0.7 * mottle) * (1 - 0.8 * roots) * float(0.45 + 0.7 * np.mean(i.skin)), 0, 1.6
    )
    return colour, gloss


def head_skin(canvas: Array, head: Head, light: Light, hair_shadow: Array) -> Array:
    """The bare head; eyes, brows and lips come upon it."""
    side = head.side
    colour, gloss = complexion(head)
    open_sky = np.clip(1 - 7 * np.clip(head.cavity, -0.02, 0.12), 0.25, 1.1) * (1 - 0.45 * hair_shadow)
    shadow = np.clip(np.maximum(head.shadow, hair_shadow), 0, 1)
    grain = noise(head.u, head.v, 120, head.face.identity.seed + 5, side)
    rough = np.float32(0.03 + 0.03 * head.face.identity.age) * np.stack([grain, np.roll(grain, 3, 0), 0 * grain], -1)
    return over(canvas, lit_skin(light, colour, normalised(head.normal + rough), shadow, open_sky, gloss), head.inside)


def ears(canvas: Array, head: Head, light: Light) -> Array:
    """Two shells beside the head: a rim round a hollow, a lobe below."""
    i = head.face.identity
    for sign in (-1, 1):
        width = float(head.column.at(np.float32(0.05))[0])
        root = np.array([sign * (width - 0.012), 0.03, -0.04])
        tip = root + np.array([sign * 0.10 * i.ear_angle, 0, -0.10]) * i.ear_size
        foot = root + np.array([0, 0.16 * i.ear_size, 0.03])
        at, out, low = head.project(np.stack([root, tip, foot]))[:, :2]
        across, down = out - at, low - at
        span = across * sign * np.array([1, 1])
        if span[0] < 0.008:  # turned away behind the cheek
            continue
        canvas = _ear(canvas, head, light, at + 0.35 * across, 0.75 * across, down)
    return canvas


def _ear(canvas: Array, head: Head, light: Light, centre: Array, across: Array, down: Array) -> Array:
    places = np.stack([centre + p * across + q * down for p in (-1.6, 1.6) for q in (-1.1, 1.1)])
    at = window(places, 0.02, head.side)
    x, y = picture_axes(head.side)
    x, y = x[:, at[1]], y[at[0]]
    if min(x.size, y.size) < 2:
        return canvas
    inverse = np.linalg.inv(np.stack([across, down], 1)).astype(np.float32)
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    p, q = inverse[0, 0] * dx + inverse[0, 1] * dy, inverse[1, 0] * dx + inverse[1, 1] * dy
    p = p / (1 - 0.42 * np.clip(q, -0.6, 1))  # narrower towards the lobe
    radius = np.hypot(p, q)
    soft = 2.5 / (head.side * float(np.hypot(*across)) + 1e-3)
    alpha = 1 - step(radius, 1.0, min(soft, 0.3))
    height = 0.05 * np.exp(-(((radius - 0.84) / 0.15) ** 2)) * (1 - 0.6 * step(q, 0.45, 0.25))
    height -= 0.05 * bump(p, -0.15, 0.42) * bump(q, 0.08, 0.38)
    height += 0.028 * np.exp(-(((np.hypot(p + 0.1, q + 0.05) - 0.52) / 0.13) ** 2)) * (1 - step(q, 0.3, 0.2))
    slope_y, slope_x = np.gradient(height, 2 / head.side)
    outward = np.sign(across[0]) * 0.35
    normal = normalised(np.stack([outward - slope_x, -slope_y, np.ones_like(height)], -1).astype(np.float32))
    colour = tone(head.face.identity) * (1 + BLOOD * 0.8)
    hollow = np.clip(-height * 14, 0, 0.6)
    skin = lit_skin(
        light, np.broadcast_to(colour, normal.shape), normal, hollow, 1 - hollow, 0.5 * np.ones_like(height)
    )
    canvas[at] = over(canvas[at], skin, alpha)
    return canvas


def neck(canvas: Array, head: Head, light: Light) -> Array:
    """From under the jaw into the shoulders; the head shades it."""
    i, side = head.face.identity, head.side
    top = head.project(np.array([[0.0, 0.45, -0.12]], np.float32))[0]
    at = window(np.array([[-1, top[1]], [1, 1]]), 0, side)
    x, y = picture_axes(side)
    x, y = x[:, at[1]], y[at[0]]
    lean = np.clip((y - top[1]) / 0.7, 0, 1.5)
    centre = top[0] * (1 - 0.6 * lean)
    half = (
        head.zoom * (0.60 + 0.10 * i.jaw) * i.width
        + 0.03
        + 0.30 * np.clip(y - 0.80, 0, 1) ** 1.5
        + 0.03 * (lean - 0.5) ** 2
    )
    across = (x - centre) / half
    alpha = (1 - step(np.abs(across), 1, 4 / side)) * (y > top[1])
    tendon = 0.25 * np.exp(-(((np.abs(across) - 0.48 + 0.25 * lean) / 0.10) ** 2)) * np.sign(across)
    throat = 0.25 * bump(across, 0, 0.2) * bump(y, 0.95, 0.06)
    normal = np.stack([across + tendon, throat - 0.15 + 0 * across, np.sqrt(np.clip(1.02 - across**2, 0, 1))], -1)
    moved = np.float32([[1, 0, -0.10 * light.key[0] * side], [0, 1, 0.10 * side]])
    shadow = blur(cv2.warpAffine(head.inside, moved, (side, side)), 0.05, side)[at]
    mottle = noise(x, y, 30, i.seed + 6, side) * 0.05 + noise(x, y, 150, i.seed + 7, side) * 0.04
    colour = tone(i) * np.float32([0.94, 0.90, 0.88]) * (1 + mottle)[..., None]
    skin = lit_skin(
        light,
        colour,
        normalised(normal.astype(np.float32)),
        np.clip(1.1 * shadow, 0, 1),
        1 - 0.6 * shadow,
        0.35 * (1 - shadow),
    )
    canvas[at] = over(canvas[at], skin, alpha)
    return canvas
