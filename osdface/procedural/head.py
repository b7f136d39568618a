"""The head seen: how it is turned and framed, and for every pixel which point of it is seen, facing where."""

from functools import cached_property

import cv2
import numpy as np

from osdface.procedural.field import Array, blur, normalised, picture_axes
from osdface.procedural.parameters import Face
from osdface.procedural.relief import EYES, GRID, HALF, Column, axes, relief

SHADOW_STEPS = 14


def rotation(yaw: float, pitch: float, roll: float) -> Array:
    """Head to camera: nod, then turn, then tilt. Radians; (3, 3) float32."""
    (cy, cp, cr), (sy, sp, sr) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    tilt = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return (tilt @ turn @ nod).astype(np.float32)


class Head:
    """Geometry of one picture's head at one resolution.

    Per pixel, (side, side): `u`, `v` the point of the head's frontal view that is seen, `depth` towards the viewer,
    `inside` the coverage; `normal` (side, side, 3) in camera axes; `cavity` how far a point lies in a hollow.
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
        axis = across + np.array([down[1], -down[0]])
        size = max(np.hypot(*across) * 2.0, np.hypot(*down) * 1.8)
        roll = s.roll - np.arctan2(axis[1], axis[0])
        cos, sin = np.cos(roll), np.sin(roll)
        self.zoom = float(s.zoom / size)
        self.tilt = np.array([[cos, -sin], [sin, cos]], np.float32)
        self.centre = (eyes + 0.1 * down).astype(np.float32)
        self.shift = np.array(s.shift, np.float32)

    def surface(self, u: Array, v: Array) -> Array:
        """Points (N, 3) of the head's front over (u, v)."""
        width, depth = self.column.at(np.asarray(v, np.float32))[..., :2].T
        base = depth * np.sqrt(np.clip(1 - (u / width) ** 2, 0, 1))
        return np.stack([u, v, base + self.lookup(self.relief, u, v)], -1).astype(np.float32)

    def project(self, points: Array) -> Array:
        """Head points (..., 3) to the picture: x, y in [-1, 1] and the depth in camera axes."""
        seen = points.astype(np.float32) @ self.turn.T
        flat = (seen[..., :2] - self.centre) @ self.tilt.T * np.float32(self.zoom) + self.shift
        return np.concatenate([flat, seen[..., 2:]], -1)

    def lookup(self, grid: Array, u: Array, v: Array) -> Array:
        """Values of a grid over the frontal view at points of it, whatever their shape."""
        to = np.float32((GRID - 1) / (2 * HALF))
        x, y = (np.atleast_2d(np.asarray((p + HALF) * to, np.float32)) for p in (u, v))
        found = cv2.remap(grid, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return found.reshape(np.shape(u) + grid.shape[2:])

    # what each pixel sees

    def _trace(self) -> None:
        """Meet each pixel's ray with the column, moved by what the relief adds at the point met (a few rounds)."""
        x, y = picture_axes(self.side)
        x, y = (x - self.shift[0]) / self.zoom, (y - self.shift[1]) / self.zoom
        right, down, ahead = self.turn
        x0 = self.tilt[0, 0] * x + self.tilt[1, 0] * y + self.centre[0]
        y0 = self.tilt[0, 1] * x + self.tilt[1, 1] * y + self.centre[1]
        z, bulge = np.float32(0.5), np.float32(0.05)
        turned = self.turn[:, 2]
        for _ in range(4):
            px, py = x0 - turned[0] * bulge, y0 - turned[1] * bulge
            a, b, c = (right[k] * px + down[k] * py for k in range(3))
            v = b + ahead[1] * z
            shape = self.column.at(v)
            across, along = 1 / shape[..., 0] ** 2, 1 / shape[..., 1] ** 2
            quadratic = ahead[0] ** 2 * across + ahead[2] ** 2 * along
            half = (ahead[0] * a * across + ahead[2] * c * along) / quadratic
            rest = (a * a * across + c * c * along - 1) / quadratic
            room = half * half - rest
            z = np.sqrt(np.clip(room, 0, None)) - half
            u = a + ahead[0] * z
            bulge = self.lookup(self.relief, u, v)
        self.u, self.v, self.depth = u, b + ahead[1] * z, z + turned[2] * bulge
        self._across, self._along, self._shape, self._front = across, along, shape, c + ahead[2] * z
        slope = np.hypot(*np.gradient(room)) + np.float32(1e-6)
        ends = (self.v > self.column.top) & (self.v < self.column.bottom)  # beyond them the column is a thread
        self.inside = np.clip(room / slope + 0.5, 0, 1) * ends

    def _look(self, light: Array) -> None:
        """Normals, hollows and cast shadow; `light` is the direction to the key light in head axes."""
        grid_step = 2 * HALF / (GRID - 1)
        slope_v, slope_u = np.gradient(self.relief, grid_step)
        hollow = (
            cv2.GaussianBlur(self.relief, (0, 0), 6)
            + 0.6 * cv2.GaussianBlur(self.relief, (0, 0), 14)
            - 1.6 * self.relief
        )
        du, dv, cavity, shadow = cv2.split(
            self.lookup(np.dstack([slope_u, slope_v, hollow, self._cast(light)]).astype(np.float32), self.u, self.v)
        )
        nu, nz = self.u * self._across, self._front * self._along
        nv = -(self.u**2 * self._across * self._shape[..., 2] + self._front**2 * self._along * self._shape[..., 3])
        frontal = np.clip(nz, 0, None)
        normal = normalised(np.stack([nu - du * frontal, nv - dv * frontal, nz], -1))
        self.normal, self.cavity, self.shadow = normal @ self.turn.T, cavity, shadow

    def _cast(self, light: Array) -> Array:
        """How much of the key light the head's own front keeps from each grid point, 0 to 1, soft with distance."""
        u, v = axes()
        width, depth = self.column.at(v)[..., 0], self.column.at(v)[..., 1]
        full = depth * np.sqrt(np.clip(1 - (u / width) ** 2, 0, 1)) + self.relief
        small = cv2.resize(full.astype(np.float32), (GRID // 2, GRID // 2), interpolation=cv2.INTER_AREA)
        cell, shadow = 4 * HALF / GRID, np.zeros_like(small)
        for reach in np.geomspace(0.02, 0.4, SHADOW_STEPS):
            move = np.array([[1, 0, -light[0] * reach / cell], [0, 1, -light[1] * reach / cell]])
            other = cv2.warpAffine(small, move, small.shape[::-1], flags=cv2.INTER_LINEAR)
            shadow = np.maximum(shadow, np.clip((other - small - light[2] * reach) / (0.25 * reach + 0.005), 0, 1))
        return cv2.resize(cv2.GaussianBlur(shadow, (0, 0), 0.9), (GRID, GRID), interpolation=cv2.INTER_LINEAR)

    @cached_property
    def facing(self) -> Array:
        """Silhouette blurred: what the head keeps from the light behind and below it."""
        return blur(self.inside, 0.06, self.side)
