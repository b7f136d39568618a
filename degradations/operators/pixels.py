"""Between the two types of picture."""

import cv2
import numpy as np

U8 = np.dtype(np.uint8)


def check(image: np.ndarray) -> None:
    """Raises ValueError unless the picture is RGB (H, W, 3), uint8 or float32."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"a picture is RGB of shape (H, W, 3), uint8 or float32, not {image.dtype} of shape {image.shape}"
        )


def as_float(image: np.ndarray) -> np.ndarray:
    """float32 in [0, 1]."""
    return image if image.dtype == np.float32 else image * np.float32(1 / 255)


def as_uint8(image: np.ndarray) -> np.ndarray:
    """uint8, the nearest."""
    return image if image.dtype == U8 else np.rint(image * 255).clip(0, 255).astype(U8)


def like(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`image` in the type of `other`."""
    return as_uint8(image) if other.dtype == U8 else as_float(image)


def looked_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """A uint8 picture through a table (256,), or (256, 3) of one for each channel, clipped and rounded to uint8."""
    return cv2.LUT(image, np.rint(table).clip(0, 255).astype(U8).reshape(1, 256, -1))
