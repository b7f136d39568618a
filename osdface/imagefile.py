"""Encoded picture -> uint8 RGB array, with the header checked before anything is decoded."""

import contextlib
import importlib
import io
import struct
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Literal

import numpy as np
import pyspng
from PIL import Image, ImageOps, UnidentifiedImageError, features

from osdface.errors import UserError

MAX_PIXELS = 100_000_000
FORMATS: tuple[str, ...] = (
    "BMP",
    "GIF",
    "JPEG",
    "JPEG2000",
    "PNG",
    "PPM",
    "TIFF",
    "WEBP",
)  # Pillow's others may start programs (EPS)
if features.check("avif"):
    FORMATS += ("AVIF",)
if find_spec("pillow_heif"):  # an iPhone's HEIC, where somebody installed its plugin
    importlib.import_module("pillow_heif").register_heif_opener()
    FORMATS += ("HEIF",)
Fault = Literal["empty", "unknown", "animated", "too_large", "unreadable", "too_small", "not_square", "no_face"]
# What a PNG may hold that libspng treats otherwise than Pillow: a clear colour, an animation, an orientation.
OWN_CHUNKS = (b"tRNS", b"acTL", b"eXIf")
OWN_TEXTS = (b"Raw profile", b"XML:com.adobe.xmp")


class ImageError(UserError):
    """A picture that will not be used; `fault` says which kind, `reason` why; the message adds the picture's name."""

    def __init__(self, fault: Fault, reason: str, name: str = "picture"):
        super().__init__(fault, reason, name)  # all three, so that it can be pickled
        self.fault: Fault = fault
        self.reason = reason
        self.name = name

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def open_header(data: bytes, name: str = "picture", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the header only. Raises ImageError for what is empty, no picture, animated, or over `max_pixels`."""
    if not data:
        raise ImageError("empty", "is empty", name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            moving = getattr(image, "is_animated", False) and image.format != "MPO"  # a camera's JPEG with a preview
    except Image.DecompressionBombError as error:  # Pillow's own limit, below any larger `max_pixels`
        raise ImageError("too_large", str(error), name) from None
    except UnidentifiedImageError:
        raise ImageError("unknown", f"is not a picture this program reads ({', '.join(FORMATS)})", name) from None
    except Exception as error:  # parsers of damaged headers, and of texts that fill the memory, raise many kinds
        raise _damaged(error, name) from None
    if image.width * image.height > max_pixels:
        raise ImageError("too_large", f"{image.width}x{image.height} is more than {max_pixels} pixels", name)
    if moving:
        raise ImageError("animated", "is animated or has several pages; give a still picture", name)
    if image.mode == "F":
        raise ImageError("unknown", "has floating-point pixels of unknown range; give 8 or 16 bits", name)
    if image.mode == "I" and image.format == "TIFF":
        raise ImageError("unknown", "has 32-bit pixels of unknown range; give 8 or 16 bits", name)
    return image


def read_image(data: bytes, name: str = "picture", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode to uint8 RGB (H, W, 3): EXIF orientation applied, alpha over white, 16 bits and CMYK brought to 8-bit RGB.

    Raises ImageError, as `open_header` does, and for what is truncated or damaged.
    """
    image = open_header(data, name, max_pixels)
    plain = _plain_png(image, data)
    if plain is not None:
        return plain
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            with contextlib.suppress(Exception):  # broken metadata spoils no picture
                ImageOps.exif_transpose(image, in_place=True)  # otherwise it copies every picture
        return np.asarray(to_rgb(image))
    except Exception as error:  # decoders raise many kinds: all of them mean a damaged file
        raise _damaged(error, name) from None


def _damaged(error: Exception, name: str) -> ImageError:
    return ImageError("unreadable", f"is damaged ({str(error) or type(error).__name__})", name)


def _plain_png(image: Image.Image, data: bytes) -> np.ndarray | None:
    """A PNG of 8-bit RGB and nothing else, decoded by libspng: the same pixels in half the time. None: Pillow judges.

    libspng refuses every PNG that Pillow refuses, and some damaged ones that Pillow can still read.
    """
    plain = image.format == "PNG" and image.tile[0].args == "RGB"  # type: ignore[attr-defined]
    if not plain or any(kind in OWN_CHUNKS or start.startswith(OWN_TEXTS) for kind, start in _chunks(data)):
        return None
    with contextlib.suppress(RuntimeError, ValueError):
        return pyspng.load(data, "RGB")
    return None


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind of each chunk, and the start of what it holds."""
    at = 8
    while at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        yield kind, png[at + 8 : at + 8 + min(length, 20)]
        at += length + 12


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: alpha over white, 16 bits scaled, other modes converted."""
    if image.mode.startswith("I"):  # 16 bits: Pillow would clip, not scale
        image = Image.fromarray((np.asarray(image, np.float32) / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")
