"""Light and what it does to matter: a key light, sky and ground around, a rim; skin, cloth and hair answer differently."""

from dataclasses import dataclass

import numpy as np

from osdface.procedural.field import Array, linear, normalised
from osdface.procedural.parameters import Scene

WRAP = np.float32([0.34, 0.17, 0.10])  # how far light creeps round an edge within skin: red farthest
TONES = 4096


@dataclass(frozen=True)
class Light:
    """`key` direction and `half`-way to the viewer in camera axes; colours in linear light."""

    key: Array
    half: Array
    colour: Array
    sky: Array
    ground: Array
    rim: Array
    hardness: float

    @classmethod
    def of(cls, scene: Scene) -> "Light":
        azimuth, elevation = np.clip(scene.light[0], -1.35, 1.35), scene.light[1]
        key = np.array([np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
        key = key.astype(np.float32)
        half = normalised(key + np.float32([0, 0, 1]))
        warm = np.array([1 + scene.warmth, 1, 1 - scene.warmth], np.float32)
        around = 0.75 + 0.25 * linear(scene.colours).mean(0) / (linear(scene.colours).mean() + 1e-3)
        strength = 0.35 + 0.75 * scene.key
        ambient = 0.75 - 0.42 * scene.key
        side = -np.sign(key[0])
        return cls(
            key, half, 1.15 * strength * warm, ambient * around / warm, 0.62 * ambient * around * np.float32([1.06, 1, 0.92]),
            0.7 * scene.rim * np.array([side, 1, 1], np.float32), scene.hardness,
        )  # fmt: skip


def ambient(light: Light, normal: Array, open_sky: Array) -> Array:
    """Light from all around, (H, W, 3), where `open_sky` (H, W) of it comes through."""
    up = (0.5 - 0.5 * normal[..., 1])[..., None]
    return (light.ground + up * (light.sky - light.ground)) * open_sky[..., None]


def lit_skin(light: Light, albedo: Array, normal: Array, shadow: Array, open_sky: Array, gloss: Array) -> Array:
    """Skin under the light: wrapped Lambert that reddens at the terminator, two Blinn lobes, a rim.

    albedo (H, W, 3) linear; normal (H, W, 3); shadow, open_sky, gloss (H, W) in [0, 1].
    """
    facing = (normal @ light.key)[..., None]
    diffuse = np.clip((facing + WRAP) / (1 + WRAP), 0, 1)
    through = 1 - shadow[..., None] * np.float32([0.80, 0.88, 0.92]) * np.float32(0.55 + 0.45 * light.hardness)
    colour = albedo * (diffuse * through * light.colour + ambient(light, normal, open_sky))
    gleam = np.clip(normal @ light.half, 0, 1)
    squared = gleam * gleam
    lobe = squared**5 * 0.055 + squared**22 * 0.16
    edge = (1 - np.clip(normal[..., 2], 0, 1)) ** 3
    shine = gloss * (lobe * (1 - 0.8 * shadow) + 0.10 * edge * open_sky)
    rim = abs(light.rim[0]) * edge * np.clip(normal[..., 0] * np.sign(light.rim[0]) + 0.2, 0, 1)
    return colour + shine[..., None] * light.colour + rim[..., None] * (0.25 + 0.5 * albedo)


def lit_cloth(light: Light, albedo: Array, normal: Array, shadow: Array) -> Array:
    """Rough cloth: Lambert and surroundings."""
    diffuse = np.clip(normal @ light.key, 0, 1) * (1 - 0.8 * shadow)
    return albedo * (diffuse[..., None] * light.colour + ambient(light, normal, 1 - 0.6 * shadow))


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
