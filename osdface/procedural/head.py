"""The head seen: how it is turned and framed, and for every pixel which point of it is seen, facing where."""

from functools import cached_property

import cv2
import numpy as np

from osdface.procedural.field import Array, Window, blur, f32, normalised, picture_axes, rotated
from osdface.procedural.parameters import Face
from osdface.procedural.relief import EYES, GRID, HALF, Column, axes, relief

TRACE_ROUNDS, SHADOW_STEPS = 4, 14


def rotation(yaw: float, pitch: float, roll: float) -> Array:
    """Head to camera: nod, then turn, then tilt. Radians; (3, 3) float32."""
    (cy, cp, cr), (sy, sp, sr) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    tilt = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return f32(tilt @ turn @ nod)


def _bounds(where: Array) -> Window:
    """The smallest window that holds all true pixels; there are some."""
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _column_normal(u: Array, z: Array, across: Array, along: Array, shape: Array) -> tuple[Array, Array, Array]:
    """The bare column's outward direction at points (u, z) of it, where `shape` is the column's (see Column.at)."""
    nu, nz = u * across, z * along
    return nu, -(u * nu * shape[..., 2] + z * nz * shape[..., 3]), nz


class Head:
    """Geometry of one picture's head at one resolution.

    Per pixel, (side, side): `u`, `v` the point of the head's frontal view that is seen, `depth` towards the viewer,
    `inside` the coverage. Within the window `at` around the head, (H, W): `normal` (H, W, 3) in camera axes, `cavity`
    how far a point lies in a hollow, `shadow` what the head itself keeps of the key light.
    """

    def __init__(self, face: Face, side: int, light: Array):
        self.face, self.side = face, side
        scene = face.scene
        self.column = Column(face.identity, 0.05 * max(0.0, scene.mouth_open - 0.15))
        self.turn = rotation(scene.yaw, scene.pitch, 0.0)
        self.relief = relief(face)
        self._frame()
        self._trace()
        self._look(self.turn.T @ light)

    # framing and projection

    def _frame(self) -> None:
        """Zoom, shift and roll as FFHQ's alignment would choose them from the eyes and the mouth, and the jitter."""
        i, s = self.face.identity, self.face.scene
        mouth = i.mouth_height - 0.075 * s.smile
        points = np.array(
            [[-i.eye_distance, EYES], [i.eye_distance, EYES], [-i.mouth_width, mouth], [i.mouth_width, mouth]]
        )
        left, right, *corners = (self.turn @ self.surface(points[:, 0], points[:, 1]).T).T[:, :2]
        eyes, mouth_at = (left + right) / 2, (corners[0] + corners[1]) / 2
        across, down = right - left, mouth_at - eyes
        axis = across + f32([down[1], -down[0]])
        size = max(np.hypot(*across) * 2.0, np.hypot(*down) * 1.8)
        roll = s.roll - np.arctan2(axis[1], axis[0])
        cos, sin = np.cos(roll), np.sin(roll)
        self.zoom = float(s.zoom / size)
        self.tilt = f32([[cos, -sin], [sin, cos]])
        self.centre = f32(eyes + 0.1 * down)
        self.shift = f32(s.shift)

    def surface(self, u: Array, v: Array) -> Array:
        """Points (N, 3) of the head's front over (u, v)."""
        u, v = f32(u), f32(v)
        width, depth = self.column.at(v)[..., :2].T
        base = depth * np.sqrt(np.clip(1 - (u / width) ** 2, 0, 1))
        return np.stack([u, v, base + self.lookup(self.relief, u, v)], -1)

    def project(self, points: Array) -> Array:
        """Head points (..., 3) to the picture: x, y in [-1, 1] and the depth in camera axes."""
        x, y, z = cv2.split(rotated(f32(points).reshape(-1, 1, 3), self.turn))
        x, y = (x - self.centre[0]) * self.zoom, (y - self.centre[1]) * self.zoom
        (xx, xy), (yx, yy) = self.tilt
        seen = cv2.merge([xx * x + xy * y + self.shift[0], yx * x + yy * y + self.shift[1], z])
        return seen.reshape(points.shape)

    def lookup(self, grid: Array, u: Array, v: Array) -> Array:
        """Values of a grid over the frontal view at points of it, whatever their shape."""
        to = (GRID - 1) / (2 * HALF)
        x, y = (np.atleast_2d(f32((p + HALF) * to)) for p in (u, v))
        found = cv2.remap(grid, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return found.reshape(np.shape(u) + grid.shape[2:])

    # what each pixel sees

    def _trace(self) -> None:
        """Meet each pixel's ray with the column, moved by what the relief adds at the point met (a few rounds)."""
        x, y = picture_axes(self.side)
        x, y = (x - self.shift[0]) / self.zoom, (y - self.shift[1]) / self.zoom
        (right, down, ahead), bulges = self.turn, self.turn[:, 2]
        x0 = self.tilt[0, 0] * x + self.tilt[1, 0] * y + self.centre[0]
        y0 = self.tilt[0, 1] * x + self.tilt[1, 1] * y + self.centre[1]
        z, bulge = f32(0.5), f32(0.05)
        for _ in range(TRACE_ROUNDS):
            px, py = x0 - bulges[0] * bulge, y0 - bulges[1] * bulge
            a, b, c = (right[k] * px + down[k] * py for k in range(3))
            v = b + ahead[1] * z
            shape = self.column.at(v)
            across, along = 1 / (shape[..., 0] * shape[..., 0]), 1 / (shape[..., 1] * shape[..., 1])
            quadratic = ahead[0] ** 2 * across + ahead[2] ** 2 * along
            half = (ahead[0] * a * across + ahead[2] * c * along) / quadratic
            rest = (a * a * across + c * c * along - 1) / quadratic
            room = half * half - rest
            z = np.sqrt(np.clip(room, 0, None)) - half
            u = a + ahead[0] * z
            bulge = self.lookup(self.relief, u, v)
        self.u, self.v, self.depth = u, b + ahead[1] * z, z + bulges[2] * bulge
        slope_y, slope_x = np.gradient(room)
        slope = np.sqrt(slope_x * slope_x + slope_y * slope_y) + np.float32(1e-6)
        ends = (self.v > self.column.top) & (self.v < self.column.bottom)  # beyond them the column is a thread
        self.inside = np.clip(room / slope + 0.5, 0, 1) * ends
        self.at = _bounds(self.inside > 0)
        self._facing = _column_normal(*(p[self.at] for p in (self.u, c + ahead[2] * z, across, along, shape)))

    def _look(self, light: Array) -> None:
        """Normals, hollows and cast shadow; `light` is the direction to the key light in head axes."""
        slope_v, slope_u = np.gradient(self.relief, 2 * HALF / (GRID - 1))
        near, wide = (blur(self.relief, radius, GRID) for radius in (0.047, 0.11))
        hollow = near + 0.6 * wide - 1.6 * self.relief
        layers = cv2.merge([slope_u, slope_v, hollow, self._cast(light)])
        du, dv, self.cavity, self.shadow = cv2.split(self.lookup(layers, self.u[self.at], self.v[self.at]))
        nu, nv, nz = self._facing
        frontal = np.clip(nz, 0, None)
        self.normal = rotated(normalised(cv2.merge([nu - du * frontal, nv - dv * frontal, nz])), self.turn)

    def _cast(self, light: Array) -> Array:
        """How much of the key light the head's own front keeps from each grid point, 0 to 1, soft with distance."""
        u, v = axes()
        width, depth = self.column.at(v)[..., 0], self.column.at(v)[..., 1]
        full = depth * np.sqrt(np.clip(1 - (u / width) ** 2, 0, 1)) + self.relief
        small = cv2.resize(full, (GRID // 2, GRID // 2), interpolation=cv2.INTER_AREA)
        cell, shadow = 4 * HALF / GRID, np.zeros_like(small)
        for reach in np.geomspace(0.02, 0.4, SHADOW_STEPS).tolist():
            move = np.array([[1, 0, -light[0] * reach / cell], [0, 1, -light[1] * reach / cell]])
            other = cv2.warpAffine(small, move, small.shape[::-1], flags=cv2.INTER_LINEAR)
            shadow = np.maximum(shadow, np.clip((other - small - light[2] * reach) / (0.25 * reach + 0.005), 0, 1))
        return cv2.resize(cv2.GaussianBlur(shadow, (0, 0), 0.9), (GRID, GRID), interpolation=cv2.INTER_LINEAR)

    @cached_property
    def facing(self) -> Array:
        """Silhouette blurred: what the head keeps from the light behind and below it."""
        return blur(self.inside, 0.06, self.side)
