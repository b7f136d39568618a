"""Light and what it does to matter: a key light, sky and ground around, a rim; skin and cloth answer differently."""

from dataclasses import dataclass

import cv2
import numpy as np

from osdface.procedural.field import Array, along, f32, linear, normalised, rgb, tinted
from osdface.procedural.parameters import Scene

WRAP = (0.34, 0.17, 0.10)  # how far light creeps round an edge within skin: red farthest
BLOCKED = (0.80, 0.88, 0.92)  # what a full shadow keeps from skin; red seeps in from beside it
TONES = 4096


@dataclass(frozen=True)
class Light:
    """`key` direction and `half`-way to the viewer in camera axes; (3,) colours in linear light.

    `rim` is a light from behind, to the right if positive; `hardness` in [0, 1] deepens the key light's shadows.
    """

    key: Array
    half: Array
    colour: Array
    sky: Array
    ground: Array
    rim: float
    hardness: float

    @classmethod
    def of(cls, scene: Scene) -> "Light":
        azimuth, elevation = np.clip(scene.light[0], -1.35, 1.35), scene.light[1]
        flat = np.cos(elevation)
        key = f32([np.sin(azimuth) * flat, -np.sin(elevation), np.cos(azimuth) * flat])
        warm = f32([1 + scene.warmth, 1, 1 - scene.warmth])
        surroundings = linear(scene.colours)
        ambient = (0.75 - 0.42 * scene.key) * (0.75 + 0.25 * surroundings.mean(0) / (surroundings.mean() + 1e-3))
        return cls(
            key=key,
            half=normalised(key + f32([0, 0, 1])),
            colour=1.15 * (0.35 + 0.75 * scene.key) * warm,
            sky=ambient / warm,
            ground=0.62 * ambient * f32([1.06, 1, 0.92]),
            rim=-0.7 * scene.rim * float(np.sign(key[0])),
            hardness=scene.hardness,
        )


def _ambient(light: Light, up: Array, open_sky: Array) -> Array:
    """Light from all around, (H, W, 3): `up` from 0 to 1 mixes ground and sky, `open_sky` of it comes through."""
    pairs = zip(light.ground, light.sky, strict=True)
    return cv2.merge([(ground + up * (sky - ground)) * open_sky for ground, sky in pairs])


def lit_skin(light: Light, albedo: Array, normal: Array, shadow: Array, open_sky: Array, gloss: Array) -> Array:
    """Skin under the light: wrapped Lambert that reddens at the terminator, two Blinn lobes, a sheen, a rim.

    albedo (H, W, 3) linear; normal (H, W, 3); shadow, open_sky, gloss (H, W) in [0, 1].
    """
    x, y, z = cv2.split(normal)
    facing, up = along(normal, light.key), 0.5 - 0.5 * y
    dimmed = shadow * np.float32(0.55 + 0.45 * light.hardness)
    channels = zip(WRAP, BLOCKED, light.colour, strict=True)
    key = [np.clip((facing + wrap) / (1 + wrap), 0, 1) * (1 - lost * dimmed) * part for wrap, lost, part in channels]
    edge = 1 - np.clip(z, 0, 1)
    edge = edge * edge * edge
    gleam = np.clip(along(normal, light.half), 0, 1)
    lobes = 0.055 * gleam**10 + 0.16 * gleam**44
    sheen = 0.20 * edge * np.clip(1.6 * up - 0.3, 0, 1) * open_sky  # mirrors the sky, not the ground below a chin
    shine = gloss * (lobes * (1 - 0.8 * shadow) + sheen)
    rim = abs(light.rim) * edge * np.clip(x * np.sign(light.rim) + 0.2, 0, 1)
    colour = albedo * (cv2.merge(key) + _ambient(light, up, open_sky))
    return colour + tinted(shine, light.colour) + rgb(rim) * (0.25 + 0.5 * albedo)


def lit_cloth(light: Light, albedo: Array, normal: Array, shadow: Array) -> Array:
    """Rough cloth, Lambert and surroundings: albedo and normal (H, W, 3), shadow (H, W) in [0, 1]."""
    diffuse = np.clip(along(normal, light.key), 0, 1) * (1 - 0.8 * shadow)
    return albedo * (tinted(diffuse, light.colour) + _ambient(light, 0.5 - 0.5 * normal[..., 1], 1 - 0.6 * shadow))


def _tone_table() -> Array:
    """Linear light [0, 4] to 8-bit sRGB through a film's shoulder; indexed by the square root for even steps."""
    x = np.linspace(0, 2, TONES) ** 2
    y = x * (1 + x / 6.0) / (1 + 0.62 * x)
    return (np.clip(y, 0, 1) ** (1 / 2.2) * 255).round().astype(np.uint8)


TONE_TABLE = _tone_table()


def develop(canvas: Array) -> Array:
    """Linear light to 8-bit sRGB."""
    index = np.sqrt(np.clip(canvas, 0, 3.999)) * np.float32((TONES - 1) / 2)
    return np.take(TONE_TABLE, index.astype(np.int32))
