"""A straightforward degradation in the style of BasicSR: float32 BGR in [0, 1], full two-dimensional `filter2D`,
float64 noise of numpy's global generator, numpy's Poisson.

It follows a trace of `degradations.degrade`, so that both do the same work; drawing the parameters costs it nothing.
Noise can be given, to compare pixels: `normal` (standard normal) or `share` (uniform in [0, 1], each value's quantile).
"""

from typing import Any

import cv2
import numpy as np
from scipy import special, stats

MODES = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def degrade(image: np.ndarray, trace: list[dict[str, Any]]) -> np.ndarray:
    """uint8 BGR in, uint8 BGR out."""
    out = follow(image.astype(np.float32) / 255.0, trace)
    return np.clip((out * 255.0).round(), 0, 255).astype(np.uint8)


def follow(source: np.ndarray, trace: list[dict[str, Any]]) -> np.ndarray:
    out = source
    for entry in trace:
        parameters = {name: value for name, value in entry.items() if name != "op"}
        start = (source, out) if entry["op"] == "Patch" else (out,)
        out = OPERATORS[entry["op"]](*start, **parameters)
    return out


def mesh(size: int) -> np.ndarray:
    axis = np.arange(-size // 2 + 1.0, size // 2 + 1.0)
    xx, yy = np.meshgrid(axis, axis)
    return np.stack([xx, yy], -1)


def blur(image, kind, kernel_size, sigma_x, sigma_y, angle, beta):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)
    grid = mesh(kernel_size)
    q = np.power(np.sum((grid @ inverse) * grid, 2), beta)
    kernel = 1 / (q + 1) if kind.startswith("plateau") else np.exp(-0.5 * q)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def sinc(image, kernel_size, cutoff):
    r = np.linalg.norm(mesh(kernel_size), axis=2)
    omega, middle = cutoff * np.pi, kernel_size // 2
    with np.errstate(all="ignore"):
        kernel = omega * special.j1(omega * r) / (2 * np.pi * r)
    kernel[middle, middle] = omega**2 / (4 * np.pi)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def usm(image, weight, radius, threshold):
    residual = image - cv2.GaussianBlur(image, (radius, radius), 0)
    mask = (np.abs(residual) * 255 > threshold).astype(np.float32)
    soft = cv2.GaussianBlur(mask, (radius, radius), 0)
    sharp = np.clip(image + weight * residual, 0, 1)
    return soft * sharp + (1 - soft) * image


def downsample(image, factor):
    height, width = image.shape[:2]
    return cv2.resize(
        image, (max(4, int(width // factor)), max(4, int(height // factor))), interpolation=cv2.INTER_LINEAR
    )


def resize(image, height, width, mode):
    return cv2.resize(image, (width, height), interpolation=MODES[mode])


def shift(image, dx, dy):
    height, width = image.shape[:2]
    x, y = abs(dx), abs(dy)
    padded = np.pad(image, ((y, y), (x, x), (0, 0)), mode="symmetric")
    return padded[y - dy : y - dy + height, x - dx : x - dx + width]


def gaussian_noise(image, sigma, grey, seed=None, normal=None):
    if normal is None:
        normal = np.float32(np.random.randn(*(image.shape[:2] if grey else image.shape)))
    noise = normal * sigma / 255.0
    if grey:
        noise = np.expand_dims(noise, axis=2).repeat(3, axis=2)
    return np.clip(image + noise, 0, 1)


def poisson_noise(image, scale, grey, seed=None, share=None):
    light = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if grey else image
    light = np.clip((light * 255.0).round(), 0, 255) / 255.0
    photons = 2 ** np.ceil(np.log2(len(np.unique(light))))
    rate = light * photons
    counts = np.random.poisson(rate) if share is None else stats.poisson.ppf(share, rate)
    noise = np.float32(counts / float(photons)) - light
    if grey:
        noise = np.repeat(noise[:, :, np.newaxis], 3, axis=2)
    return np.clip(image + noise * scale, 0, 1).astype(np.float32)


def jpeg(image, quality):
    image = (np.clip(image, 0, 1) * 255.0).round().astype(np.uint8)
    coded = cv2.imencode(".jpg", image, [int(cv2.IMWRITE_JPEG_QUALITY), quality])[1]
    return np.float32(cv2.imdecode(coded, 1)) / 255.0


def colour_shift(image, shift):
    return np.clip(image + np.array(shift[::-1], np.float32) / 255.0, 0, 1)


def grey(image):
    return np.tile(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[:, :, None], [1, 1, 3])


def colour_jitter(image, changes):
    for name, value in changes:
        light = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if name == "hue":
            hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            hsv[..., 0] = (hsv[..., 0] + 360 * value) % 360
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        else:
            other = {"brightness": 0.0, "contrast": light.mean(), "saturation": light[..., None]}[name]
            image = np.clip(value * image + (1 - value) * other, 0, 1).astype(np.float32)
    return image


def haze(image, alpha):
    return image * alpha + np.ones_like(image) * (1 - alpha)


def uneven_light(image, strength, angle):
    y, x = np.meshgrid(np.linspace(-1, 1, image.shape[0]), np.linspace(-1, 1, image.shape[1]), indexing="ij")
    along = (x * np.cos(angle) + y * np.sin(angle)) / (abs(np.cos(angle)) + abs(np.sin(angle)))
    return np.clip(image * (1 + strength * along[..., None]), 0, 1).astype(np.float32)


def patch(source, image, top, left, size, trace):
    mask = np.zeros_like(image)
    mask[top : top + size, left : left + size] = 1.0
    return follow(source, trace) * mask + image * (1.0 - mask)


OPERATORS = {
    "Blur": blur, "Sinc": sinc, "USM": usm, "Downsample": downsample, "Resize": resize, "Shift": shift,
    "GaussianNoise": gaussian_noise, "PoissonNoise": poisson_noise, "JPEG": jpeg, "ColourShift": colour_shift,
    "Grey": grey, "ColourJitter": colour_jitter, "Haze": haze, "UnevenLight": uneven_light, "Patch": patch,
}  # fmt: skip
