"""Hair of the head: roots on the scalp, locks grown along a style's flow over the skull, strands in each lock."""

from dataclasses import dataclass

import numpy as np

from osdface.procedural.field import Array, f32, linear, normalised, rotated
from osdface.procedural.head import Head
from osdface.procedural.lighting import Light
from osdface.procedural.parameters import Identity, rng
from osdface.procedural.relief import EYES
from osdface.procedural.skin import hairline
from osdface.procedural.strands import Layer, Sheet, lit

MIDDLE, DEPTH = -0.10, 0.71  # height of the skull's middle, half its depth
ROUND = 2.35  # exponent of the skull's superellipsoid
LOCKS, EACH = 620, 8  # at most: locks on a scalp, strands in a lock
BEHIND = -0.12  # hair farther back than this is drawn before the body
SILVER = (0.40, 0.39, 0.375)  # grey hair, linear


@dataclass(frozen=True)
class Style:
    """`flow` names a field of directions; length and lift above the skull from low to high; gravity bends downwards."""

    flow: str
    length: tuple[float, float]
    lift: tuple[float, float]
    gravity: float

    @property
    def long(self) -> bool:
        """Whether it needs many knots to hang."""
        return self.length[1] > 0.7


STYLES = {
    "short": Style("crown", (0.14, 0.34), (0.03, 0.07), 0.10),
    "swept": Style("part", (0.40, 0.62), (0.06, 0.14), 0.10),
    "fringe": Style("crown", (0.95, 1.35), (0.06, 0.11), 0.6),
    "bob": Style("part", (1.05, 1.45), (0.07, 0.14), 0.8),
    "long": Style("part", (1.70, 2.40), (0.06, 0.13), 0.9),
    "bun": Style("back", (0.70, 0.90), (0.02, 0.06), 0.0),
    "bald": Style("crown", (0.05, 0.14), (0.015, 0.03), 0.15),
}

# heights v, and how far from the face's middle hair falls there, by flow
CURTAINS = {
    "part": ((-0.60, -0.45, -0.30, -0.12, 0.15, 0.55, 0.90), (0.05, 0.20, 0.32, 0.40, 0.44, 0.42, 0.36)),
    "crown": ((EYES - 0.17, EYES, 0.15, 0.55, 0.90), (0.0, 0.37, 0.44, 0.42, 0.36)),
}
TYPICAL_WIDTH = 0.545  # of the heads that the curtains are measured on
STRAY = 0.04  # share of the locks that fall into the face all the same, of the few who have such


def hair_colour(identity: Identity) -> Array:
    """(3,) in linear light."""
    return linear(identity.hair) * (1 - 0.85 * identity.grey) + f32(SILVER) * (0.85 * identity.grey)


def scalp_hair(head: Head, light: Light) -> tuple[Layer, Layer]:
    """The hair behind the body and the hair before it."""
    locks = _locks(head.face.identity)
    strands, owner = _strands(head.face.identity, locks, head.side)
    tone, shine = _lit_strands(head, light, locks, strands, owner)
    seen, ground = head.project(strands), head.project(locks) - f32([0, 0, 0.03])
    dim = np.full((len(locks), locks.shape[1] // 2), 0.22 + 0.2 * light.sky.mean())
    far, far_ground = (points[..., 2].mean(1) < BEHIND for points in (seen, ground))
    layers = []
    for chosen, chosen_ground in ((far, far_ground), (~far, ~far_ground)):
        sheet = Sheet(head.side)  # first a dark ground of broad locks, so that little shows between strands
        sheet.draw(ground[chosen_ground], dim[chosen_ground], 0 * dim[chosen_ground], 0.014, smooth=False)
        sheet.draw(seen[chosen], tone[chosen], shine[chosen], 0.0035)
        layers.append(sheet.layer())
    return layers[0], layers[1]


# the skull


def _outward(identity: Identity, points: Array) -> Array:
    """Direction (..., 3) out of the skull: that of an ellipsoid above its middle, of a column below."""
    radii = f32([identity.width, MIDDLE + identity.height, DEPTH])
    scaled = (points - f32([0, MIDDLE, 0])) / (radii * radii)
    scaled[..., 1] *= points[..., 1] < MIDDLE
    return normalised(f32(scaled))


def _radius(identity: Identity, points: Array) -> Array:
    """1 on the skull, more outside."""
    across, along = points[..., 0] / identity.width, points[..., 2] / DEPTH
    up = np.clip((MIDDLE - points[..., 1]) / (MIDDLE + identity.height), 0, None)
    return (np.hypot(across, along) ** ROUND + up**ROUND) ** (1 / ROUND) + 1e-6


def _roots(identity: Identity, draw: np.random.Generator) -> Array:
    """Points (M, 3) of the skull where hair grows; drawn denser than needed before the hairline cuts."""
    v = draw.uniform(-identity.height, 0.45, 3 * LOCKS)
    angle = draw.uniform(-np.pi, np.pi, 3 * LOCKS)
    line = hairline(identity, angle)
    if identity.hair_style == "bald":
        line = np.where((np.abs(angle) > 1.3) & (v > -0.38), line, -9)
    keep = np.flatnonzero(v < line + draw.normal(0, 0.012, v.shape))[:LOCKS]
    v, angle = v[keep], angle[keep]
    up = np.clip((MIDDLE - v) / (MIDDLE + identity.height), 0, 0.999)
    ring = (1 - up**ROUND) ** (1 / ROUND)
    return f32(np.stack([identity.width * ring * np.sin(angle), v, DEPTH * ring * np.cos(angle)], -1))


# locks


def _flow(identity: Identity, style: Style, points: Array, roots: Array) -> Array:
    """Where hair heads at points (M, 3), before gravity."""
    if style.flow == "crown":
        return normalised(points - f32([0.06, -identity.height - 0.05, -0.30]))
    if style.flow == "back":
        return normalised(np.tile(f32([0.0, -0.25, -1.0]), (len(points), 1)))
    side = np.tanh((roots[:, 0] - identity.hair_part) / 0.06)
    return normalised(np.stack([side, np.full_like(side, 0.15), np.full_like(side, -0.40)], -1))


def _lengths(identity: Identity, style: Style, roots: Array, draw: np.random.Generator) -> Array:
    low, high = style.length
    length = (low + (high - low) * identity.hair_length) * draw.uniform(0.75, 1.1, len(roots))
    if style.flow != "crown":
        return length
    brow = np.stack([roots[:, 0], np.full(len(roots), EYES - 0.17), np.full(len(roots), 0.66)], -1)
    room = np.linalg.norm(roots - brow, axis=-1) * draw.uniform(0.85, 1.1, len(roots))
    falls_forward = (_flow(identity, style, roots, roots)[:, 2] > 0.25) & (np.abs(roots[:, 0]) < 0.42)
    return np.where(falls_forward, np.minimum(length, room), length)


def _curtain_edges(identity: Identity, style: Style, roots: Array, draw: np.random.Generator) -> Array:
    """How far out each lock falls beside the face, signed by its side and relative to the style's curtain."""
    middle = identity.hair_part if style.flow == "part" else 0.0
    edges = draw.uniform(0.92, 1.2, len(roots)) * identity.width / TYPICAL_WIDTH
    strays = draw.uniform(size=len(roots)) < STRAY * (draw.uniform() < 0.3)
    return np.where(roots[:, 0] < middle, -1, 1) * np.where(strays, 0.3 * edges, edges)


def _beside_face(style: Style, points: Array, edges: Array) -> Array:
    """Points (M, 3) that hang before the face put aside, out to the curtain's edge."""
    if style.flow not in CURTAINS:
        return points
    least = np.interp(points[:, 1], *CURTAINS[style.flow], left=0.0) * np.abs(edges)
    x, before = points[:, 0] * np.sign(edges), points[:, 2] > 0.1
    return np.column_stack([np.where(before, np.maximum(x, least), x) * np.sign(edges), points[:, 1:]])


def _locks(identity: Identity) -> Array:
    """Paths of the locks' middles, (M, K, 3) in head axes, grown knot by knot; K - 1 is even."""
    style, draw = STYLES[identity.hair_style], rng(20, identity.seed)
    roots = _roots(identity, draw)
    length = _lengths(identity, style, roots, draw)
    full = style.lift[0] + (style.lift[1] - style.lift[0]) * identity.hair_volume
    full *= 1 + 0.8 * identity.hair_curl * (style.length[1] > 0.2)
    lift = full * draw.uniform(0.3, 1.15, len(roots))
    edges = _curtain_edges(identity, style, roots, draw)
    wander = draw.normal(0, 0.13, (len(roots), 3))
    knots = 19 if style.long else 9
    path = [roots + 0.01 * _outward(identity, roots)]
    for knot in range(1, knots):
        here, share = path[-1], knot / knots
        pull = style.gravity * min(1.0, 0.3 + 1.6 * share)
        ahead = _flow(identity, style, here, roots) * (1 - pull) + f32([0, pull, 0]) + wander
        out = _outward(identity, here)
        ahead = normalised(ahead - (ahead * out).sum(-1, keepdims=True) * out)
        there = here + ahead * (length / (knots - 1))[:, None]
        there = _above_skull(identity, there, 1 + lift * min(1.0, 3 * share) / 0.6)
        path.append(_beside_face(style, there, edges))
    return f32(np.stack(path, 1))


def _above_skull(identity: Identity, points: Array, target: Array) -> Array:
    """Points (M, 3) pushed out to the radius `target` (M,), or drawn half way back to it from not far outside."""
    radius = _radius(identity, points)
    ratio = target / radius
    push = np.where(ratio > 1, ratio, 1 + 0.5 * (ratio - 1) * (radius < 1.5))
    x, y, z = points.T
    return np.stack([x * push, np.where(y < MIDDLE, MIDDLE + (y - MIDDLE) * push, y), z * push], -1)


# strands


def _strands(identity: Identity, locks: Array, side: int) -> tuple[Array, Array]:
    """Strands (N, K, 3) around the locks, and each one's lock; fewer and simpler where the picture cannot show more."""
    each, seed, long = int(np.clip(side / 64, 2, EACH)), identity.seed, STYLES[identity.hair_style].long
    pieces = 6 if long else 3
    pieces *= (1 if side <= 256 else 2) * (2 if long and identity.hair_curl > 0.15 else 1)
    at = np.linspace(0, locks.shape[1] - 1.001, 2 * pieces + 1)
    part = f32(at % 1)[:, None]
    locks = locks[:, at.astype(int)] * (1 - part) + locks[:, at.astype(int) + 1] * part
    owner = np.tile(np.arange(len(locks)), each)  # a smaller picture's strands are the first of a larger one's
    share = np.linspace(0, 1, locks.shape[1], dtype=np.float32)[None, :, None]
    offset = rng(27, seed).standard_normal((len(owner), 1, 3), np.float32) * np.float32(0.026)
    drift = rng(28, seed).standard_normal((len(owner), 2, 3), np.float32) * np.float32(0.012)
    bend = drift[:, :1] * share + drift[:, 1:] * np.sin(2 * np.pi * share)
    return locks[owner] + offset * (1.15 - 0.55 * share) + bend + _curls(identity, owner, share[..., 0], long), owner


def _curls(identity: Identity, owner: Array, share: Array, long: bool) -> Array:
    """Coils (N, K, 3) that each lock's strands wind together; `share` (1, K) of the way along."""
    together = rng(23, identity.seed).uniform(0, 6.3, LOCKS)[owner]
    phase = together + rng(29, identity.seed).normal(0, 0.4, len(owner))
    turns = (1.5 + 4.5 * identity.hair_curl) * (1.0 if long else 0.35)
    swing = f32(phase)[:, None] + 2 * np.pi * turns * share**0.9
    reach = 0.035 * identity.hair_curl * np.clip(2.5 * share, 0, 1)
    across, along = np.cos(swing) * reach, np.sin(swing) * reach
    return np.stack([across, 0.5 * along, along], -1)


def _lit_strands(head: Head, light: Light, locks: Array, strands: Array, owner: Array) -> tuple[Array, Array]:
    """Tone and shine (N, P) of each strand's pieces, two steps of it each; locks and strands differ, inner ones dim."""
    i = head.face.identity
    draw = rng(21, i.seed)
    points = strands[:, ::2]
    normal = rotated(_outward(i, points[:, :-1]), head.turn)
    shift = f32(draw.normal(-0.08, 0.10, (len(strands), 1)))
    tone, shine = lit(rotated(points, head.turn), normal, light, shift)
    depth = np.argsort(np.argsort(_radius(i, locks[:, locks.shape[1] // 2]))) / len(locks)  # 0 innermost
    lock_tone = rng(22, i.seed).normal(1, 0.16, len(locks)) * (0.5 + 0.6 * depth)
    white = np.where(draw.uniform(size=len(strands)) < 0.3 * i.grey, 1.6, 1.0)
    own = f32(lock_tone[owner] * draw.normal(1, 0.26, len(strands)) * white)[:, None]
    return tone * own, shine * own
