"""Colour, light, and compression."""

import cv2
import numpy as np

from degradations.operators.pixels import U8, as_float, as_uint8, like, looked_up

LEVELS = np.arange(256)
LUMA = (0.299, 0.587, 0.114)


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
        return looked_up(image, LEVELS[:, None] + np.array(shift))
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
        changed = _CHANGES[name](current, np.float32(value))
        current = np.clip(changed, 0, 1, out=changed)
    return like(current, image)


def _brightness(image: np.ndarray, factor: np.float32) -> np.ndarray:
    return image * factor


def _contrast(image: np.ndarray, factor: np.float32) -> np.ndarray:
    middle = np.dot(LUMA, cv2.mean(image)[:3])
    return image * factor + np.float32((1 - factor) * middle)


def _saturation(image: np.ndarray, factor: np.float32) -> np.ndarray:
    return cv2.transform(image, factor * np.eye(3) + (1 - factor) * np.array([LUMA] * 3))


def _hue(image: np.ndarray, turn: np.float32) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    return cv2.cvtColor(cv2.add(hsv, (360 * float(turn % 1), 0, 0, 0)), cv2.COLOR_HSV2RGB)  # which takes any angle


_CHANGES = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}
