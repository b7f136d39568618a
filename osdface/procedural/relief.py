"""The head's shape: an elliptic column whose width and depth vary with height, and a relief on its front.

The relief lies on a regular grid over the frontal view (u across, v down), where most of it is sums of separable bumps.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from osdface.procedural.field import Array, bump, f32, step
from osdface.procedural.parameters import Face, Identity, Scene, rng

GRID = 256  # relief samples of a side
HALF = 1.05  # the grid spans [-HALF, HALF] both ways
EYES = -0.05  # v of the eyes
TABLE, TABLE_TOP, TABLE_BOTTOM = 4096, -1.2, 1.2


@dataclass(frozen=True)
class Lips:
    """The mouth's curves over u: v of each border from above downwards; `half` is the u where they meet.

    Closed lips meet at the `seam`; open, they are `gap` apart, from `roof` to `floor`.
    """

    half: float
    seam: Array
    gap: Array
    top: Array
    roof: Array
    floor: Array
    bottom: Array


def lips(identity: Identity, scene: Scene, u: Array) -> Lips:
    """The mouth's curves at places u of the frontal view, in whatever shape these come."""
    half = identity.mouth_width * (1 + 0.20 * scene.smile - 0.06 * scene.mouth_open)
    t = f32(np.clip(np.abs(u) / half, 0, 1))
    bend = 0.010 * (bump(t, 0, 0.22) - 0.7 * bump(t, 0.3, 0.2)) - 0.10 * scene.smile * (t * t - 0.25)
    seam = identity.mouth_height + bend
    gap = 0.075 * max(0.0, scene.mouth_open - 0.15) * np.sqrt(np.clip(1 - t * t * (1 / 0.93**2), 0, 1))
    roof, floor = seam - 0.35 * gap, seam + 0.65 * gap
    thin = 1 - 0.25 * max(scene.smile, 0.0)  # a smile stretches them
    bow = 1 - 0.26 * bump(t, 0, 0.15) + 0.05 * bump(t, 0.26, 0.15)
    top = roof - identity.upper_lip * thin * bow * np.clip(1 - t**1.6, 0, 1) ** 0.8
    bottom = floor + identity.lower_lip * thin * np.clip(1 - t**2.2, 0, 1) ** 0.85
    return Lips(half, seam, gap, top, roof, floor, bottom)


class Column:
    """Half width and half depth of the head over its height, as tables: width, depth and their logarithmic slopes."""

    def __init__(self, identity: Identity, drop: float):
        v = np.linspace(TABLE_TOP, TABLE_BOTTOM, TABLE, dtype=np.float64)
        self.middle, self.top, self.bottom = -0.10, -identity.height, identity.chin + drop
        up = np.clip((self.middle - v) / (self.middle - self.top), 0, 0.9999)
        down = np.clip((v - self.middle) / (self.bottom - self.middle), 0, 0.9999)
        crown = (1 - up**2.5) ** 0.46
        power = 2.15 + 1.35 * identity.jaw
        jaw = (1 - down**power) ** (0.68 - 0.16 * identity.jaw)
        width = identity.width * np.where(v < self.middle, crown, jaw)
        width *= 1 - 0.035 * np.exp(-(((v + 0.28) / 0.16) ** 2)) + 0.02 * np.exp(-(((v - 0.12) / 0.14) ** 2))
        profile = np.interp(v, [-0.9, -0.5, -0.2, 0.1, 0.45, 0.8], [0.70, 0.68, 0.68, 0.66, 0.68, 0.66])
        profile = np.convolve(np.pad(profile, 250, mode="edge"), np.hanning(501) / 250, mode="same")[250:-250]
        depth = profile * np.where(v < self.middle, (1 - up**2.4) ** 0.5, (1 - down**7) ** 0.5)
        slopes = [np.gradient(np.log(side), v) for side in (width, depth)]
        self.table = f32(np.stack([width, depth, *slopes], -1))

    def at(self, v: Array) -> Array:
        """(..., 4): width, depth, and the slopes of their logarithms at heights v."""
        index = (v - np.float32(TABLE_TOP)) * np.float32((TABLE - 1) / (TABLE_BOTTOM - TABLE_TOP))
        return np.take(self.table, np.clip(index, 0, TABLE - 1).astype(np.int32), axis=0)


def axes() -> tuple[Array, Array]:
    """u as a row, v as a column."""
    axis = np.linspace(-HALF, HALF, GRID, dtype=np.float32)
    return axis[None, :], axis[:, None]


def relief(face: Face) -> Array:
    """Height over the column along z on the grid, (GRID, GRID) float32."""
    i, s = face.identity, face.scene
    u, v = axes()
    a = np.abs(u)
    height = _upper(i, s, a, v) + _cheeks(i, s, a, v) + _nose(i, u, a, v) + _mouth(i, s, u, a, v) + _age(i, s, a, v)
    uneven = cv2.resize(f32(rng(4, i.seed).standard_normal((9, 9))), (GRID, GRID), interpolation=cv2.INTER_CUBIC)
    return cv2.GaussianBlur(height + 0.004 * uneven, (0, 0), 0.7)


def _upper(i: Identity, s: Scene, a: Array, v: Array) -> Array:
    e = i.eye_distance
    brow = EYES - i.brow_height + 0.02 - 0.012 * s.brow_raise
    height = (0.020 + 0.018 * i.eye_depth) * bump(a, 0.20, 0.16) * bump(v, brow, 0.055)
    height += 0.015 * bump(a, 0, 0.07) * bump(v, EYES - 0.10, 0.07)
    height -= (0.03 + 0.045 * i.eye_depth) * bump(a, e * 0.95, 0.125) * bump(v, EYES - 0.01, 0.070)
    height -= 0.045 * bump(a, 0.125, 0.05) * bump(v, EYES - 0.01, 0.06)
    height += 0.045 * bump(a, e, 0.085) * bump(v, EYES, 0.048)
    height += 0.02 * bump(a, 0.2, 0.16) * bump(v, -0.42, 0.14) - 0.03 * bump(a, 0.52, 0.08) * bump(v, -0.3, 0.16)
    return height


def _cheeks(i: Identity, s: Scene, a: Array, v: Array) -> Array:
    smile = max(s.smile, 0.0)
    height = (0.02 + 0.035 * i.cheekbones) * bump(a, 0.37, 0.13) * bump(v, EYES + 0.20, 0.10)
    height += (0.025 + 0.045 * smile) * bump(a, 0.28, 0.11) * bump(v, 0.20 - 0.04 * smile, 0.11)
    height -= 0.045 * i.hollow * bump(a, 0.36, 0.10) * bump(v, 0.42, 0.15)
    height += 0.03 * i.jaw * bump(a, 0.42, 0.09) * bump(v, 0.55, 0.13)
    return height


def _nose(i: Identity, u: Array, a: Array, v: Array) -> Array:
    base = EYES + i.nose_length
    tip = base - 0.045
    along = np.clip((v - EYES) / (tip - EYES), 0, 1)
    here = step(v, EYES - 0.07, 0.09) * (1 - step(v, base - 0.002, 0.030))
    rise = i.nose_height * (0.035 + 0.125 * along**1.25) * here
    spread = 0.040 + (0.02 + 0.25 * i.nose_width) * along**1.5
    height = rise * np.exp(-(np.abs(u / spread) ** 2.2))
    height += 0.045 * i.nose_tip * bump(a, 0, 0.058) * bump(v, tip, 0.050)
    wing = i.nose_width * 0.84
    height += 0.060 * bump(a, wing, 0.036) * bump(v, base - 0.032, 0.038)
    height -= 0.022 * bump(a, wing + 0.052, 0.022) * bump(v, base - 0.03, 0.045)
    height -= 0.060 * bump(a, i.nose_width * 0.44, 0.026) * bump(v, base + 0.004, 0.014)
    return height


def _mouth(i: Identity, s: Scene, u: Array, a: Array, v: Array) -> Array:
    m, curve = i.mouth_height, lips(i, s, u)
    height = 0.045 * bump(a, 0, 0.21) * bump(v, m - 0.01, 0.13)
    base = EYES + i.nose_length
    middle = (base + m) / 2
    height += (0.010 * bump(a, 0.032, 0.016) - 0.012 * bump(a, 0, 0.018)) * bump(v, middle, 0.045)
    inside = step(curve.half - a, 0, 0.03)
    for low, high, full in ((curve.top, curve.seam, 0.022), (curve.seam, curve.bottom, 0.032)):
        across = np.clip((v - low) / (high - low + 0.004), 0, 1)
        height += full * inside * np.clip(4 * across * (1 - across), 0, 1) ** 0.75
    height -= 0.022 * inside * bump(v, curve.seam, 0.012)
    corner = m - 0.075 * s.smile
    height -= 0.022 * bump(a, curve.half + 0.012, 0.03) * bump(v, corner, 0.025)
    height -= 0.035 * bump(a, 0, 0.13) * bump(v, m + 0.125, 0.034)
    height += 0.055 * bump(a, 0, 0.125) * bump(v, i.chin - 0.105, 0.075)
    return height


def _age(i: Identity, s: Scene, a: Array, v: Array) -> Array:
    smile, base = max(s.smile, 0.0), EYES + i.nose_length
    fall = np.clip((v - base + 0.05) / (i.mouth_height - base + 0.08), 0, 1.3)
    fold = i.nose_width + 0.035 + (i.mouth_width * (1 + 0.2 * smile) - i.nose_width + 0.03) * fall**0.8
    here = step(v, base - 0.05, 0.03) * (1 - step(v, i.mouth_height + 0.04, 0.06))
    depth = 0.006 + 0.014 * i.age + 0.016 * smile
    height = -depth * here * (bump(a, fold, 0.022) - 0.6 * bump(a, fold + 0.05, 0.04))
    wrinkles = i.age**1.5
    furrows = 0.008 * wrinkles * (0.5 + 0.5 * max(s.brow_raise, 0.0)) * bump(a, 0, 0.34)
    for line in range(4):
        at = -0.36 - 0.065 * line + 0.012 * np.cos(9 * a + line)
        height -= furrows * bump(v, at, 0.009)
    outer = i.eye_distance + i.eye_size
    feet = 0.006 * (wrinkles + 0.3 * i.age * smile) * bump(a, outer + 0.055, 0.035)
    for line in (-1, 0, 1):
        height -= feet * bump(v - 0.3 * line * (a - outer + 0.03), EYES + 0.01, 0.007)
    bag = EYES + 0.085 - 0.7 * (a - i.eye_distance) ** 2
    height -= (0.004 + 0.012 * i.age) * bump(v, bag, 0.014) * bump(a, i.eye_distance - 0.02, 0.09)
    return height
