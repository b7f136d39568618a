"""Encoded picture -> uint8 RGB array, with the header checked before anything is decoded."""

import contextlib
import io
import warnings
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from osdface.errors import UserError

MAX_PIXELS = 100_000_000
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's others may start programs (EPS)
Fault = Literal["empty", "unknown", "animated", "too_large", "unreadable"]


class ImageError(UserError):
    """A picture that will not be decoded; `fault` says which kind, the message names the picture and why."""

    def __init__(self, fault: Fault, message: str):
        super().__init__(message)
        self.fault: Fault = fault


def open_header(data: bytes, name: str = "picture", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the header only. Raises ImageError for what is empty, no picture, animated, or over `max_pixels`."""
    if not data:
        raise ImageError("empty", f"{name}: is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            moving = getattr(image, "is_animated", False) and image.format != "MPO"  # a camera's JPEG with a preview
    except Image.DecompressionBombError as error:  # Pillow's own limit, below any larger `max_pixels`
        raise ImageError("too_large", f"{name}: {error}") from None
    except Exception:  # parsers of damaged headers raise many kinds
        raise ImageError("unknown", f"{name}: is not a picture this program reads ({', '.join(FORMATS)})") from None
    if image.width * image.height > max_pixels:
        raise ImageError("too_large", f"{name}: {image.width}x{image.height} is more than {max_pixels} pixels")
    if moving:
        raise ImageError("animated", f"{name}: is animated or has several pages; give a still picture")
    if image.mode == "F":
        raise ImageError("unknown", f"{name}: has floating-point pixels of unknown range; give 8 or 16 bits")
    return image


def read_image(data: bytes, name: str = "picture", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode to uint8 RGB (H, W, 3): EXIF orientation applied, alpha over white, 16 bits and CMYK brought to 8-bit RGB.

    Raises ImageError, as `open_header` does, and for what is truncated or damaged.
    """
    image = open_header(data, name, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            with contextlib.suppress(Exception):  # broken metadata spoils no picture
                image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits: PIL would clip, not scale
            image = Image.fromarray((np.asarray(image, np.float32) / 257).round().clip(0, 255).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.asarray(image.convert("RGB"))
    except Exception as error:  # decoders raise many kinds: all of them mean a damaged file
        raise ImageError("unreadable", f"{name}: is damaged ({error or type(error).__name__})") from None
