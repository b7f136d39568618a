"""Skin: its colour over the face, pores and spots, and the parts made of it: head, ears, neck."""

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
    step,
    tinted,
    window,
)
from osdface.procedural.head import Head
from osdface.procedural.lighting import Light, lit_skin
from osdface.procedural.parameters import Identity, Scene
from osdface.procedural.relief import EYES, axes, lips

BLOOD = f32([0.10, -0.16, -0.13])  # what more of it does to skin's colour


def tone(identity: Identity) -> Array:
    """Skin's colour, (3,) in linear light."""
    return linear(identity.skin)


# where hair grows


def hairline(identity: Identity, angle: Array) -> Array:
    """Height where the hair ends, at angles (radians) round the head from the front."""
    front = identity.hairline
    degrees = [0, 22, 40, 52, 66, 80, 92, 115, 180]
    heights = [front, front + 0.01, front + 0.05, front + 0.2, -0.16, 0.0, -0.12, 0.25, 0.42]
    return f32(np.interp(np.abs(angle), np.radians(degrees), heights))


def beard_zone(identity: Identity, scene: Scene, u: Array, v: Array) -> Array:
    """Where the beard's style grows on the frontal view, 0 to 1."""
    curve, a, style = lips(identity, scene, u), np.abs(u), identity.beard_style
    base = EYES + identity.nose_length
    below_nose = step(v, base + 0.03, 0.02)
    above_mouth = 1 - step(v, identity.mouth_height + 0.01, 0.02)
    moustache = step(v, base + 0.035, 0.015) * above_mouth * (1 - step(a, curve.half + 0.02, 0.03))
    if style == "moustache":
        zone = moustache * below_nose
    elif style == "goatee":
        chin = step(v, identity.mouth_height + 0.05, 0.03) * (1 - step(a, 0.17, 0.04))
        beside = step(a, curve.half + 0.01, 0.02) * (1 - step(a, curve.half + 0.07, 0.02))
        zone = np.clip(moustache + chin + beside * step(v, base + 0.09, 0.02), 0, 1) * below_nose
    else:  # stubble, full
        cheek = base + 0.10 - 1.15 * np.clip(a - 0.26, 0, 1) + 0.35 * np.clip(0.30 - a, 0, 0.2)
        sideburns = step(a, identity.width * 0.86, 0.03) * step(v, -0.05, 0.06)
        round_mouth = np.maximum(moustache, step(v, curve.bottom + 0.012, 0.02))
        zone = np.where(a < curve.half + 0.05, round_mouth, np.maximum(step(v, cheek, 0.09), sideburns))
        if style == "full":
            zone = np.clip(zone - 0.2 * bump(a, 0, 0.05) * bump(v, identity.mouth_height + 0.1, 0.02), 0, 1)
        else:
            zone = zone * below_nose
    lip = step(v, curve.top, 0.008) * (1 - step(v, curve.bottom, 0.008)) * (a < curve.half)
    return zone * (1 - lip)


# the head


def _blush(identity: Identity) -> tuple[Array, Array]:
    """Redness, and shade round the eyes, over the frontal grid."""
    u, v = axes()
    a, base = np.abs(u), EYES + identity.nose_length
    red = (0.35 + identity.redness) * bump(a, 0.31, 0.15) * bump(v, 0.20, 0.12)
    red += (0.3 + 0.5 * identity.redness) * bump(a, 0.03, 0.10) * bump(v, base - 0.05, 0.08)
    red += 0.25 * bump(a, 0, 0.2) * bump(v, identity.chin - 0.1, 0.08)
    shade = (0.2 + 0.5 * identity.age) * bump(a, identity.eye_distance - 0.03, 0.09) * bump(v, EYES + 0.075, 0.04)
    shade += 0.5 * bump(a, identity.eye_distance, 0.11) * bump(v, EYES - 0.05, 0.035)
    return red, shade


def _spots(identity: Identity, u: Array, v: Array, pores: Array, side: int) -> Array:
    """What freckles and moles leave of the colour, (H, W, 3)."""
    left = np.ones((*u.shape, 3), np.float32)
    if identity.freckles:
        speckles = step(noise(u, v, 60, identity.seed + 3, side), 1.5 - 0.5 * identity.freckles, 0.3)
        left -= tinted(0.6 * identity.freckles * speckles * bump(u, 0, 0.5) * bump(v, 0.08, 0.26), (0.5, 0.8, 1))
    for at_u, at_v, radius in identity.moles:
        mole = 1 - step(np.hypot(u - at_u, v - at_v) * (1 + 0.12 * pores), radius, 0.35 * radius)
        left *= 1 - tinted(mole, (0.55, 0.7, 0.75))
    return left


def _roots(head: Head, u: Array, v: Array, pores: Array) -> Array:
    """How much the roots of hair and beard darken the skin, 0 to 0.92."""
    i = head.face.identity
    line = hairline(i, np.arcsin(np.clip(u / head.column.at(v)[..., 0], -1, 1)))
    ragged = 0.02 * noise(u, v, (60, 8), i.seed + 8, head.side)
    roots = (1 - step(v, line + ragged, 0.03)) * (0.92 if i.hair_style != "bald" else 0.12)
    if i.beard_style != "none":
        beard = beard_zone(i, head.face.scene, u, v) * (0.30 + 0.35 * i.beard) * (0.85 + 0.25 * pores)
        roots = np.maximum(roots, beard)
    return np.clip(roots, 0, 0.92)


def _complexion(head: Head) -> tuple[Array, Array]:
    """Skin's linear colour (H, W, 3) and gloss (H, W) within the head's window, before light."""
    i, side = head.face.identity, head.side
    u, v = head.u[head.at], head.v[head.at]
    red, shade = cv2.split(head.lookup(cv2.merge(_blush(i)), u, v))
    mottle = 0.045 * noise(u, v, 14, i.seed, side) + 0.05 * noise(u, v, 40, i.seed + 1, side)
    pores = noise(u, v, 170, i.seed + 2, side)
    colour = tone(i) * (1 + tinted(mottle + (0.035 + 0.03 * i.age) * pores, (0.8, 1, 1.1)))
    colour *= (1 + tinted(red, BLOOD)) * (1 - tinted(shade, (0.20, 0.24, 0.18)))
    colour *= _spots(i, u, v, pores, side)
    roots = _roots(head, u, v, pores)
    colour = over(colour, np.minimum(0.35 * linear(i.hair) + 0.05 * tone(i), 0.5 * tone(i)), roots)
    oily = 0.55 + 0.5 * bump(u, 0, 0.22) + 0.2 * bump(np.abs(u), 0.3, 0.12) * bump(v, 0.15, 0.1)
    gloss = oily * (1 + 0.18 * pores + 0.7 * mottle) * (1 - 0.8 * roots) * float(0.45 + 0.7 * np.mean(i.skin))
    return colour, np.clip(gloss, 0, 1.6)


def head_skin(canvas: Array, head: Head, light: Light, hair_shadow: Array) -> None:
    """The bare head; eyes, brows and lips come upon it."""
    at, i = head.at, head.face.identity
    colour, gloss = _complexion(head)
    shaded = hair_shadow[at]
    open_sky = np.clip(1 - 7 * np.clip(head.cavity, -0.02, 0.12), 0.25, 1.1) * (1 - 0.45 * shaded)
    shadow = np.clip(np.maximum(head.shadow, shaded), 0, 1)
    grain = (0.03 + 0.03 * i.age) * noise(head.u[at], head.v[at], 120, i.seed + 5, head.side)
    rough = normalised(head.normal + cv2.merge([grain, np.roll(grain, 3, 0), 0 * grain]))
    canvas[at] = over(canvas[at], lit_skin(light, colour, rough, shadow, open_sky, gloss), head.inside[at])


# ears and neck


def ears(canvas: Array, head: Head, light: Light) -> None:
    """Two shells beside the head: a rim round a hollow, a lobe below."""
    i = head.face.identity
    width = float(head.column.at(f32(0.05))[0])
    for sign in (-1, 1):
        root = f32([sign * (width - 0.012), 0.03, -0.04])
        tip = root + f32([sign * 0.10 * i.ear_angle, 0, -0.10]) * i.ear_size
        foot = root + f32([0, 0.16 * i.ear_size, 0.03])
        at, out, low = head.project(np.stack([root, tip, foot]))[:, :2]
        across = out - at
        if across[0] * sign > 0.008:  # else turned away behind the cheek
            _ear(canvas, head, light, at + 0.35 * across, 0.75 * across, low - at)


def _ear(canvas: Array, head: Head, light: Light, centre: Array, across: Array, down: Array) -> None:
    places = np.stack([centre + p * across + q * down for p in (-1.6, 1.6) for q in (-1.1, 1.1)])
    at = window(places, 0.02, head.side)
    x, y = picture_axes(head.side, at)
    if min(x.size, y.size) < 2:
        return
    inverse = f32(np.linalg.inv(np.stack([across, down], 1)))
    dx, dy = x - centre[0], y - centre[1]
    p, q = inverse[0, 0] * dx + inverse[0, 1] * dy, inverse[1, 0] * dx + inverse[1, 1] * dy
    p = p / (1 - 0.42 * np.clip(q, -0.6, 1))  # narrower towards the lobe
    radius = np.hypot(p, q)
    height = 0.05 * bump(radius, 0.84, 0.15) * (1 - 0.6 * step(q, 0.45, 0.25))
    height -= 0.05 * bump(p, -0.15, 0.42) * bump(q, 0.08, 0.38)
    height += 0.028 * bump(np.hypot(p + 0.1, q + 0.05), 0.52, 0.13) * (1 - step(q, 0.3, 0.2))
    slope_y, slope_x = np.gradient(height, 2 / head.side)
    outward = np.sign(across[0]) * np.float32(0.35)
    normal = normalised(cv2.merge([outward - slope_x, -slope_y, np.ones_like(height)]))
    hollow = np.clip(-height * 14, 0, 0.6)
    colour = tinted(np.ones_like(height), tone(head.face.identity) * (1 + BLOOD * 0.8))
    skin = lit_skin(light, colour, normal, hollow, 1 - hollow, np.full_like(height, 0.5))
    soft = 2.5 / (head.side * float(np.hypot(*across)) + 1e-3)
    canvas[at] = over(canvas[at], skin, 1 - step(radius, 1.0, min(soft, 0.3)))


def neck(canvas: Array, head: Head, light: Light) -> None:
    """From under the jaw into the shoulders; the head shades it."""
    i, side = head.face.identity, head.side
    top = head.project(f32([[0.0, 0.45, -0.12]]))[0]
    at = window(f32([[-1, top[1]], [1, 1]]), 0, side)
    x, y = picture_axes(side, at)
    lean = np.clip((y - top[1]) / 0.7, 0, 1.5)
    stem = head.zoom * (0.60 + 0.10 * i.jaw) * i.width + 0.03
    half = stem + 0.30 * np.clip(y - 0.80, 0, 1) ** 1.5 + 0.03 * (lean - 0.5) ** 2
    across = (x - top[0] * (1 - 0.6 * lean)) / half
    tendon = 0.25 * bump(np.abs(across) + 0.25 * lean, 0.48, 0.10) * np.sign(across)
    throat = 0.25 * bump(across, 0, 0.2) * bump(y, 0.95, 0.06) - 0.15
    normal = normalised(cv2.merge([across + tendon, throat, np.sqrt(np.clip(1.02 - across**2, 0, 1))]))
    moved = f32([[1, 0, -0.10 * light.key[0] * side], [0, 1, 0.10 * side]])
    shadow = blur(cv2.warpAffine(head.inside, moved, (side, side)), 0.05, side)[at]
    mottle = noise(x, y, 30, i.seed + 6, side) * 0.05 + noise(x, y, 150, i.seed + 7, side) * 0.04
    colour = tinted(1 + mottle, tone(i) * f32([0.94, 0.90, 0.88]))
    skin = lit_skin(light, colour, normal, np.clip(1.1 * shadow, 0, 1), 1 - 0.6 * shadow, 0.35 * (1 - shadow))
    canvas[at] = over(canvas[at], skin, (1 - step(np.abs(across), 1, 4 / side)) * (y > top[1]))
