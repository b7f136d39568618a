"""Hairs of the face, each rooted in the skin: brows, lashes, beard."""

import numpy as np

from osdface.procedural.features import lid_lines
from osdface.procedural.field import Array, bump, f32, normalised, rotated
from osdface.procedural.head import Head
from osdface.procedural.lighting import Light
from osdface.procedural.parameters import rng
from osdface.procedural.relief import EYES
from osdface.procedural.skin import beard_zone
from osdface.procedural.strands import Layer, Sheet, lit, on_skin

BROW_HAIRS, UPPER_LASHES, LOWER_LASHES = 170, 46, 26  # on each side
BEARD_ROOTS = 9000  # tried; those in the beard's zone grow, up to a number that the picture can show
BEARD_LENGTH = {"stubble": 0.016, "moustache": 0.036, "goatee": 0.045, "full": 0.065}


def brows(head: Head) -> Layer:
    """Both brows, combed upwards at the nose and outwards at the temples."""
    i, s, draw, sheet = head.face.identity, head.face.scene, rng(24, head.face.identity.seed), Sheet(head.side)
    side, count = np.repeat((-1, 1), BROW_HAIRS), 2 * BROW_HAIRS
    share = draw.uniform(0, 1, count) ** 0.9  # 0 at the nose, 1 at the temple
    across = np.clip(draw.normal(0, 0.5, count), -1, 1)  # -1 upper edge, 1 lower edge
    tail, arch = np.clip(share - 0.6, 0, 1), i.brow_arch * bump(share, 0.62, 0.30)
    thick = i.brow_thickness * (1.05 - 0.75 * np.clip(share - 0.35, 0, 1) ** 1.1) * np.clip(0.55 + 3 * share, 0, 1)
    middle = EYES - i.brow_height + 0.018 - 0.020 * s.brow_raise - arch + i.brow_tilt * (share - 0.4)
    u, v = side * (0.095 + 0.325 * share + 0.012 * across), middle + across * thick + 0.03 * tail
    rise = -0.9 * (1 - share) ** 1.6 + 0.10 * np.sign(across) - 0.18 * across + 0.25 * tail
    length = draw.uniform(0.026, 0.046, count) * (1.1 - 0.4 * share)
    tone = draw.uniform(0.5, 1.3, (count, 1))
    sheet.draw(on_skin(head, u, v, np.stack([side, rise], -1), length, 0.25, draw), tone, 0.1 * tone, 0.0038)
    return sheet.layer()


def lashes(head: Head) -> Layer:
    """The lashes of all four lids."""
    i, draw, sheet = head.face.identity, rng(25, head.face.identity.seed), Sheet(head.side)
    for row, (count, longest, rise) in enumerate(((UPPER_LASHES, 0.036, -0.75), (LOWER_LASHES, 0.016, 0.8))):
        side, along = np.repeat((-1, 1), count), np.tile(np.linspace(-0.78, 1.0, count), 2)
        along += draw.normal(0, 0.02, 2 * count)
        du = along * i.eye_size
        u, v = side * (i.eye_distance + du), EYES - i.eye_tilt * du + lid_lines(head, along)[row]
        ahead = np.stack([side * (0.55 * along + 0.15), np.full(2 * count, rise)], -1)
        length = longest * draw.uniform(0.6, 1.1, 2 * count) * (0.75 + 0.35 * along)
        tone = np.full((2 * count, 1), 0.35)
        sheet.draw(on_skin(head, u, v, ahead, length, 0.9, draw), tone, 0 * tone, 0.0028)
    return sheet.layer()


def _beard_roots(head: Head, draw: np.random.Generator) -> tuple[Array, Array]:
    """(u, v) on the frontal view where the beard's hairs grow."""
    i = head.face.identity
    u, v = f32(draw.uniform(-0.6, 0.6, BEARD_ROOTS)), f32(draw.uniform(-0.1, 1.0, BEARD_ROOTS))
    on_face = (np.abs(u) < 0.97 * head.column.at(v)[..., 0]) & (v < head.column.bottom - 0.02)
    grows = draw.uniform(size=BEARD_ROOTS) < beard_zone(i, head.face.scene, u, v) * on_face
    most = int(np.clip(head.side * 5, 600, 2600))
    return u[grows][:most], v[grows][:most]


def beard(head: Head, light: Light) -> Layer:
    """The beard in its style; an empty layer without one."""
    i, draw, sheet = head.face.identity, rng(26, head.face.identity.seed), Sheet(head.side)
    if i.beard_style == "none":
        return sheet.layer()
    u, v = _beard_roots(head, draw)
    length = BEARD_LENGTH[i.beard_style] * (0.5 + 0.6 * i.beard) * draw.uniform(0.55, 1.1, len(u))
    outward = np.clip(u / 0.25, -1, 1) * np.where(v < i.mouth_height, 0.9, 0.25)
    ahead = np.stack([outward + draw.normal(0, 0.25, len(u)), np.full(len(u), 0.85)], -1)
    points = on_skin(head, u, v, ahead, length, 0.45, draw)
    out = normalised(head.surface(u, v) * f32([1.4, 0.3, 1]))
    normal = np.repeat(rotated(out[:, None], head.turn), 3, 1)
    tone, shine = lit(points, normal, light, np.zeros((len(u), 1), np.float32), 12)
    grey = np.where(draw.uniform(size=len(u)) < 0.6 * i.grey, 1.6, 1.0) * draw.normal(1, 0.2, len(u))
    sheet.draw(points, tone * grey[:, None], 0.5 * shine, 0.0032)
    return sheet.layer()
