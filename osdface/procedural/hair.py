"""Hair: roots on the scalp, locks grown along a style's flow over the skull, strands in each lock; brows, lashes, beard."""

from dataclasses import dataclass

import numpy as np

from osdface.procedural.features import lid_lines
from osdface.procedural.field import Array, linear, normalised
from osdface.procedural.head import Head
from osdface.procedural.lighting import Light
from osdface.procedural.parameters import Identity, rng
from osdface.procedural.relief import EYES
from osdface.procedural.skin import beard_zone, hairline
from osdface.procedural.strands import Layer, Sheet, lit, on_skin

MIDDLE, DEPTH = -0.10, 0.71  # height of the skull's middle, half its depth
ROUND = 2.35  # exponent of the skull's superellipsoid
LOCKS, EACH = 620, 8  # at most: locks on a scalp, strands in a lock
BEHIND = -0.12  # hair farther back than this is drawn before the body


@dataclass(frozen=True)
class Style:
    """`flow` names a field of directions; length and lift above the skull from low to high; gravity bends downwards."""

    flow: str
    length: tuple[float, float]
    lift: tuple[float, float]
    gravity: float


STYLES = {
    "short": Style("crown", (0.14, 0.34), (0.03, 0.07), 0.10),
    "swept": Style("part", (0.40, 0.62), (0.06, 0.14), 0.10),
    "fringe": Style("crown", (0.95, 1.35), (0.06, 0.11), 0.6),
    "bob": Style("part", (1.05, 1.45), (0.07, 0.14), 0.8),
    "long": Style("part", (1.70, 2.40), (0.06, 0.13), 0.9),
    "bun": Style("back", (0.70, 0.90), (0.02, 0.06), 0.0),
    "bald": Style("crown", (0.05, 0.14), (0.015, 0.03), 0.15),
}


def hair_colour(identity: Identity) -> Array:
    silver = np.float32([0.40, 0.39, 0.375])
    return linear(identity.hair) * (1 - 0.85 * identity.grey) + silver * (0.85 * identity.grey)


def scalp_hair(head: Head, light: Light) -> tuple[Layer, Layer]:
    """The hair behind the body and the hair before it."""
    i = head.face.identity
    locks, root_normal = _locks(i)
    back, front = Sheet(head.side), Sheet(head.side)
    draw = rng(21, i.seed)
    _coat(head, light, locks, back, front)
    strands, owner = _strands(i, locks, head.side)
    seen = head.project(strands)
    camera = (strands @ head.turn.T).astype(np.float32)
    normal = _volume_normal(i, strands[:, :-1]) @ head.turn.T
    tone, shine = lit(camera, normal, light, draw.normal(-0.08, 0.10, (len(strands), 1)).astype(np.float32))
    buried = np.argsort(np.argsort(_radius(i, locks[:, locks.shape[1] // 2]))) / len(locks)  # 0 innermost: in shadow
    lock_tone = (rng(22, i.seed).normal(1, 0.16, len(locks)) * (0.5 + 0.6 * buried))[owner]
    white = draw.uniform(size=len(strands)) < 0.3 * i.grey
    tone = tone * (lock_tone * draw.normal(1, 0.26, len(strands)) * np.where(white, 1.6, 1))[:, None]
    depth = seen[:, :-1, 2]
    far = np.broadcast_to((depth.mean(1) < BEHIND)[:, None], depth.shape)
    for sheet, chosen in ((back, far[:, 0]), (front, ~far[:, 0])):
        if chosen.any():
            sheet.draw(seen[chosen], tone[chosen], shine[chosen], 0.0035)
    return back.layer(), front.layer()


def _roots(identity: Identity, count: int, draw: np.random.Generator) -> tuple[Array, Array]:
    """Points (N, 3) of the skull where hair grows and their outward normals, denser than needed before the line cuts."""
    v = draw.uniform(-identity.height, 0.45, 3 * count)
    angle = draw.uniform(-np.pi, np.pi, 3 * count)
    line = hairline(identity, angle)
    if identity.hair_style == "bald":
        line = np.where((np.abs(angle) > 1.3) & (v > -0.38), line, -9)
    up = np.clip((MIDDLE - v) / (MIDDLE + identity.height), 0, 0.999)
    ring = (1 - up**ROUND) ** (1 / ROUND)
    keep = v < line + draw.normal(0, 0.012, v.shape)
    v, angle, ring = v[keep][:count], angle[keep][:count], ring[keep][:count]
    points = np.stack([identity.width * ring * np.sin(angle), v, DEPTH * ring * np.cos(angle)], -1)
    return points, normalised(_outward(identity, points))


def _radii(identity: Identity) -> Array:
    return np.array([identity.width, MIDDLE + identity.height, DEPTH])


def _outward(identity: Identity, points: Array) -> Array:
    """Direction out of the skull: that of an ellipsoid above its middle, of a column below."""
    scaled = (points - np.array([0, MIDDLE, 0], points.dtype)) / _radii(identity).astype(points.dtype) ** 2
    scaled[..., 1] *= points[..., 1] < MIDDLE
    return scaled


def _radius(identity: Identity, points: Array) -> Array:
    """1 on the skull, more outside."""
    across, up, along = np.moveaxis((points - [0, MIDDLE, 0]) / _radii(identity), -1, 0)
    ring = np.hypot(across, along)
    return (ring**ROUND + np.clip(-up, 0, None) ** ROUND) ** (1 / ROUND) + 1e-6


def _volume_normal(identity: Identity, points: Array) -> Array:
    return normalised(_outward(identity, points)).astype(np.float32)


def _flow(identity: Identity, style: Style, points: Array, roots: Array) -> Array:
    if style.flow == "crown":
        return points - np.array([0.06, -identity.height - 0.05, -0.30])
    if style.flow == "back":
        return np.broadcast_to([0.0, -0.25, -1.0], points.shape)
    side = np.tanh((roots[:, 0] - identity.hair_part) / 0.06)
    return np.stack([side, np.full_like(side, 0.15), np.full_like(side, -0.40)], -1)


def _locks(identity: Identity) -> tuple[Array, Array]:
    """Paths of the locks' middles, (M, K, 3) in head axes."""
    style, draw = STYLES[identity.hair_style], rng(20, identity.seed)
    roots, normal = _roots(identity, LOCKS, draw)
    low, high = style.length
    length = (low + (high - low) * identity.hair_length) * draw.uniform(0.75, 1.1, len(roots))
    lift = (style.lift[0] + (style.lift[1] - style.lift[0]) * identity.hair_volume) * draw.uniform(
        0.3, 1.15, len(roots)
    )
    lift *= 1 + 0.8 * identity.hair_curl * (high > 0.2)
    if style.flow == "crown":  # what falls forward ends above the eyes
        ahead = normalised(_flow(identity, style, roots, roots))
        room = np.linalg.norm(
            roots - np.stack([roots[:, 0], np.full(len(roots), EYES - 0.17), np.full(len(roots), 0.66)], -1), axis=-1
        )
        length = np.where(
            (ahead[:, 2] > 0.25) & (np.abs(roots[:, 0]) < 0.42),
            np.minimum(length, room * draw.uniform(0.85, 1.1, len(roots))),
            length,
        )
    knots = 9 if high < 0.7 else 18
    path = [roots + normal * 0.01]
    wander = draw.normal(0, 0.13, (len(roots), 3))
    for knot in range(1, knots):
        here, share = path[-1], knot / knots
        pull = style.gravity * min(1.0, 0.3 + 1.6 * share)
        ahead = normalised(_flow(identity, style, here, roots)) * (1 - pull) + np.array([0, pull, 0]) + wander
        out = normalised(_outward(identity, here))
        ahead = normalised(ahead - (ahead * out).sum(-1, keepdims=True) * out)
        there = here + ahead * (length / (knots - 1))[:, None]
        radius = _radius(identity, there)
        target = 1 + lift * min(1.0, 3 * share) / 0.6
        push = np.where(radius < target, target / radius, 1 + 0.5 * (target / radius - 1) * (radius < 1.5))[:, None]
        moved = there * push
        moved[:, 1] = np.where(there[:, 1] < MIDDLE, MIDDLE + (there[:, 1] - MIDDLE) * push[:, 0], there[:, 1])
        path.append(moved)
    return np.stack(path, 1).astype(np.float32), normal


def _strands(identity: Identity, locks: Array, side: int) -> tuple[Array, Array]:
    """Strands (N, K, 3) around the locks, and each one's lock; fewer and simpler where the picture cannot show more."""
    each, seed = int(np.clip(side / 64, 2, EACH)), identity.seed
    curly, long = identity.hair_curl > 0.15, locks.shape[1] > 9
    knots = (locks.shape[1] // 2 + 1) * (1 if side <= 256 else 2) * (3 if curly and long else 1)
    at = np.linspace(0, locks.shape[1] - 1.001, knots)
    part = (at % 1)[:, None].astype(np.float32)
    locks = locks[:, at.astype(int)] * (1 - part) + locks[:, at.astype(int) + 1] * part
    owner = np.tile(np.arange(len(locks)), each)  # a smaller picture's strands are the first of a larger one's
    share = np.linspace(0, 1, locks.shape[1], dtype=np.float32)[None, :, None]
    offset = rng(27, seed).standard_normal((len(owner), 1, 3), np.float32) * np.float32(0.026)
    paths = locks[owner] + offset * (1.15 - 0.55 * share)
    drift = rng(28, seed).standard_normal((len(owner), 2, 3), np.float32) * np.float32(0.012)
    bend = drift[:, :1] * share + drift[:, 1:] * np.sin(2 * np.pi * share)
    phase = rng(23, seed).uniform(0, 6.3, len(locks))[owner][:, None] + rng(29, seed).normal(0, 0.4, (len(owner), 1))
    turns = (1.5 + 4.5 * identity.hair_curl) * (1.0 if long else 0.35)
    swing = phase + 2 * np.pi * turns * share[..., 0] ** 0.9
    reach = 0.035 * identity.hair_curl * np.clip(2.5 * share[..., 0], 0, 1)
    curl = np.stack([np.cos(swing) * reach, 0.5 * np.sin(swing) * reach, np.sin(swing) * reach], -1)
    return (paths + bend + curl).astype(np.float32), owner


def _coat(head: Head, light: Light, locks: Array, back: Sheet, front: Sheet) -> None:
    """A dark ground of broad locks, so that little shows between strands."""
    seen = head.project(locks) - np.float32([0, 0, 0.03])
    far = seen[..., 2].mean(1) < BEHIND
    tone = np.full((len(locks), (locks.shape[1] + 1) // 2 - 1), 0.22 + 0.2 * light.sky.mean())
    for sheet, chosen in ((back, far), (front, ~far)):
        if chosen.any():
            sheet.draw(seen[chosen, ::2], tone[chosen], 0 * tone[chosen], 0.014, smooth=False)


# hairs of the face


def brows(head: Head, light: Light) -> Layer:
    i, s, draw = head.face.identity, head.face.scene, rng(24, head.face.identity.seed)
    sheet = Sheet(head.side)
    for sign in (-1, 1):
        count = 170
        share = draw.uniform(0, 1, count) ** 0.9
        across = np.clip(draw.normal(0, 0.5, count), -1, 1)
        a = 0.095 + 0.325 * share + 0.012 * across
        arch = i.brow_arch * np.exp(-(((share - 0.62) / 0.30) ** 2)) - i.brow_tilt * (share - 0.4)
        thick = i.brow_thickness * (1.05 - 0.75 * np.clip(share - 0.35, 0, 1) ** 1.1) * np.clip(0.55 + 3 * share, 0, 1)
        v = (
            EYES
            - i.brow_height
            + 0.018
            - 0.020 * s.brow_raise
            - arch
            + across * thick
            + 0.03 * np.clip(share - 0.65, 0, 1)
        )
        rise = -0.9 * (1 - share) ** 1.6 - 0.25 * np.sign(across) * -0.4 + 0.25 * np.clip(share - 0.6, 0, 1)
        ahead = np.stack([sign * np.ones(count), rise + 0.45 * across * -0.4], -1).astype(np.float32)
        length = draw.uniform(0.026, 0.046, count).astype(np.float32) * (1.1 - 0.4 * share).astype(np.float32)
        points = on_skin(head, light, (sign * a).astype(np.float32), v.astype(np.float32), ahead, length, 0.25, draw)
        tone = np.repeat(draw.uniform(0.5, 1.3, (count, 1)), 3, 1)
        sheet.draw(points, tone, 0.1 * tone, 0.0038)
    return sheet.layer()


def lashes(head: Head, light: Light) -> Layer:
    i, draw, sheet = head.face.identity, rng(25, head.face.identity.seed), Sheet(head.side)
    for sign in (-1, 1):
        for upper_row, count, length in ((True, 46, 0.036), (False, 26, 0.016)):
            along = np.linspace(-0.78, 1.0, count) + draw.normal(0, 0.02, count)
            lids = lid_lines(head, along)
            du = along * i.eye_size
            v = EYES - i.eye_tilt * du + (lids[0] if upper_row else lids[1])
            ahead = np.stack([sign * (0.55 * along + 0.15), np.full(count, -0.75 if upper_row else 0.8)], -1)
            reach = length * draw.uniform(0.6, 1.1, count) * (0.75 + 0.35 * along)
            u = (sign * (i.eye_distance + du)).astype(np.float32)
            points = on_skin(
                head, light, u, v.astype(np.float32), ahead.astype(np.float32), reach.astype(np.float32), 0.9, draw
            )
            tone = np.full((count, 3), 0.35)
            sheet.draw(points, tone, 0 * tone, 0.0028)
    return sheet.layer()


def beard(head: Head, light: Light) -> Layer:
    i, s, draw, sheet = head.face.identity, head.face.scene, rng(26, head.face.identity.seed), Sheet(head.side)
    if i.beard_style == "none":
        return sheet.layer()
    u, v = draw.uniform(-0.6, 0.6, 9000).astype(np.float32), draw.uniform(-0.1, 1.0, 9000).astype(np.float32)
    width = head.column.at(v)[..., 0]
    grows = draw.uniform(size=9000) < beard_zone(i, s, u, v) * (np.abs(u) < 0.97 * width) * (
        v < head.column.bottom - 0.02
    )
    most = int(np.clip(head.side * 5, 600, 2600))
    u, v = u[grows][:most], v[grows][:most]
    longest = {"stubble": 0.016, "moustache": 0.036, "goatee": 0.045, "full": 0.065}[i.beard_style] * (
        0.5 + 0.6 * i.beard
    )
    length = (longest * draw.uniform(0.55, 1.1, len(u))).astype(np.float32)
    outward = np.clip(u / 0.25, -1, 1) * np.where(v < i.mouth_height, 0.9, 0.25)
    ahead = np.stack([outward + draw.normal(0, 0.25, len(u)), np.full(len(u), 0.85)], -1).astype(np.float32)
    points = on_skin(head, light, u, v, ahead, length, 0.45, draw)
    normal = head.surface(u, v) * np.float32([1.4, 0.3, 1])
    normal = np.repeat(normalised(normal @ head.turn.T)[:, None], 3, 1)
    tone, shine = lit(points, normal, light, np.zeros((len(u), 1), np.float32), 12)
    grey = np.where(draw.uniform(size=len(u)) < 0.8 * i.grey, 2.2, 1.0) * draw.normal(1, 0.2, len(u))
    sheet.draw(points, tone * grey[:, None], 0.5 * shine, 0.0032)
    return sheet.layer()
