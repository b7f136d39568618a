"""Colour, light, and compression."""

import cv2
import numpy as np

from degradations.operators.pixels import U8, as_float, as_uint8, like, looked_up

LEVELS = np.arange(256)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Coded and decoded by libjpeg at this quality (4:2:0), through 8 bits."""
    bgr = cv2.cvtColor(as_uint8(image), cv2.COLOR_RGB2BGR)
    coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return like(cv2.cvtColor(cv2.imdecode(coded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), image)


def grey(image: np.ndarray) -> np.ndarray:
    """0.299 R + 0.587 G + 0.114 B in all three channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def colour_shift(image: np.ndarray, shift: list[float]) -> np.ndarray:
    """A number of 1/255 added to each channel, clipped."""
    if image.dtype == U8:
        return cv2.merge([looked_up(plane, LEVELS + by) for plane, by in zip(cv2.split(image), shift, strict=True)])
    return np.clip(image + np.array(shift, np.float32) / 255, 0, 1)


def haze(image: np.ndarray, alpha: float) -> np.ndarray:
    """alpha * I + (1 - alpha)."""
    if image.dtype == U8:
        return looked_up(image, alpha * LEVELS + (1 - alpha) * 255)
    return image * np.float32(alpha) + np.float32(1 - alpha)


def uneven_light(image: np.ndarray, strength: float, angle: float) -> np.ndarray:
    """I * (1 + strength * t), clipped; t rises from -1 to 1 along `angle` (radians) between two corners."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in image.shape[:2])
    along, up = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    gain = 1 + np.float32(strength) * (x * along + y[:, None] * up) / (abs(along) + abs(up))
    return like(np.clip(as_float(image) * gain[..., None], 0, 1), image)


def colour_jitter(image: np.ndarray, changes: list[tuple[str, float]]) -> np.ndarray:
    """The named changes one after another in float32, as torchvision defines them, each clipped."""
    current = as_float(image)
    for name, value in changes:
        current = np.clip(_CHANGES[name](current, np.float32(value)), 0, 1)
    return like(current, image)


def _brightness(image: np.ndarray, factor: np.float32) -> np.ndarray:
    return image * factor


def _contrast(image: np.ndarray, factor: np.float32) -> np.ndarray:
    return _blend(image, np.float32(_luma(image).mean(dtype=np.float64)), factor)


def _saturation(image: np.ndarray, factor: np.float32) -> np.ndarray:
    return _blend(image, _luma(image)[..., None], factor)


def _hue(image: np.ndarray, turn: np.float32) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _luma(image: np.ndarray) -> np.ndarray:
    red, green, blue = cv2.split(image)
    return np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue


def _blend(image: np.ndarray, other: np.ndarray | np.float32, factor: np.float32) -> np.ndarray:
    return other + (image - other) * factor


_CHANGES = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}
