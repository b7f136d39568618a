"""A picture file as people have them: its colours at their own depth, and all that goes back into a file with them.

`imagefile` reads what a network learns from; here nothing is lost: 16 bits, alpha, the colour profile, metadata.
"""

import contextlib
import re
import warnings
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from osdface.imagefile import ImageError, open_header

MAX_PIXELS = 175_000_000  # a camera of 150 million; from 179 on Pillow takes a picture for a bomb
# What an EXIF block says about the pixels of the file that it came from, and where they lie in it: no longer true.
STALE = {256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339, 347,
         513, 514, 700, 34675}  # fmt: skip
XMP = "XML:com.adobe.xmp"  # the PNG text that holds it
IPTC = 0x0404  # the resource of Photoshop's segment that holds titles, authors, places
STALE_SIZES = (40962, 40963)
# The same of XMP: an orientation, and thumbnails.
STALE_XMP = re.compile(
    rb'\s+tiff:Orientation="[^"]*"|<tiff:Orientation>.*?</tiff:Orientation>|<xmp:Thumbnails>.*?</xmp:Thumbnails>', re.S
)


class Picture(NamedTuple):
    """colours: (H, W, 3) RGB, uint8 or uint16, upright. alpha: (H, W) of the same type. grey: goes back as grey.

    metadata: icc_profile, exif, xmp (bytes), dpi, text (of a PNG), comment and iptc (of a JPEG), where the file has
    them. format: Pillow's name.
    """

    colours: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    metadata: dict[str, Any] = {}
    format: str = ""


def read(data: bytes, name: str = "picture", max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a picture file. Orientation is applied; CMYK becomes 8-bit RGB.

    Raises ImageError, as `imagefile.read_image` does.
    """
    image = open_header(data, name, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if _is_deep(image, data):
                pixels = _deep(image, data)
            elif image.mode.startswith("I"):  # of 16 bits, in a format whose depth nothing else says
                pixels = np.asarray(image).clip(0, 65535).astype(np.uint16)
            else:
                pixels = _shallow(image)
            metadata = _metadata(image)  # last: it forgets the orientation
    except Exception as error:  # decoders raise many kinds: all of them mean a damaged file
        raise ImageError("unreadable", f"is damaged ({str(error) or type(error).__name__})", name) from None
    if not pixels.size:
        raise ImageError("unreadable", "has no pixels", name)
    format = "JPEG" if image.format == "MPO" else image.format  # a camera's JPEG with a preview
    return _split(pixels, metadata)._replace(format=format or "")


def _metadata(image: Image.Image) -> dict[str, Any]:
    """What is kept of a file besides its pixels; what is broken is left out."""
    kept: dict[str, Any] = {}
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and profile[16:20] == (b"GRAY" if _is_grey(image) else b"RGB "):
        kept["icc_profile"] = profile
    with contextlib.suppress(Exception):
        kept["exif"] = _exif(image)
    xmp = image.info.get("xmp") or image.info.get(XMP)
    if xmp:
        kept["xmp"] = STALE_XMP.sub(b"", xmp.encode() if isinstance(xmp, str) else xmp)
    if min(image.info.get("dpi", (0,))) > 1:  # 1: Pillow's word for a TIFF that gives none
        kept["dpi"] = tuple(float(side) for side in image.info["dpi"])
    if image.format == "PNG":
        kept["text"] = {key: str(value) for key, value in image.info.items() if isinstance(value, str) and key != XMP}
    if image.format in ("JPEG", "MPO"):
        kept["comment"] = image.info.get("comment")
        kept["iptc"] = image.info.get("photoshop", {}).get(IPTC)  # not its other resources: thumbnails, paths, layers
    return {name: value for name, value in kept.items() if value}


def _exif(image: Image.Image) -> bytes:
    """The EXIF block without orientation, thumbnail and what described the old file."""
    exif = image.getexif()
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    for tag in STALE & set(exif):
        del exif[tag]
    for tag in STALE_SIZES:
        inner.pop(tag, None)
    return exif.tobytes() if len(exif) else b""


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether a channel has 16 bits, which Pillow decodes for grey pictures only."""
    if image.format == "PNG":
        return data[24] == 16
    bits = image.tag_v2.get(258, ()) if image.format == "TIFF" else ()  # type: ignore[attr-defined]
    return bool(bits) and max(bits if isinstance(bits, tuple) else (bits,)) == 16 and image.mode != "CMYK"


def _deep(image: Image.Image, data: bytes) -> np.ndarray:
    """(H, W), or (H, W, 2, 3 or 4) uint16."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    image.load()  # which, unlike OpenCV, says so where a file ends early
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("its 16 bits cannot be decoded")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    if _is_grey(image) and pixels.ndim == 3:
        pixels = pixels[..., [0, -1]]
    return _turned(pixels, orientation)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright, from EXIF's orientation: from 5 on rows and columns are exchanged, then as 1 to 4."""
    if orientation in (5, 6, 7, 8):
        pixels, orientation = pixels.swapaxes(0, 1), {5: 1, 6: 2, 7: 3, 8: 4}[orientation]
    if orientation in (3, 4):
        pixels = np.flipud(pixels)
    return np.fliplr(pixels) if orientation in (2, 3) else pixels


def _shallow(image: Image.Image) -> np.ndarray:
    """(H, W), or (H, W, 2, 3 or 4) uint8."""
    image.load()
    with contextlib.suppress(Exception):  # broken metadata spoils no picture
        ImageOps.exif_transpose(image, in_place=True)
    clear = image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
    mode = ("LA" if clear else "L") if _is_grey(image) else "RGBA" if clear else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _split(pixels: np.ndarray, metadata: dict[str, Any]) -> Picture:
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    grey = channels < 3
    alpha = pixels[..., -1].copy() if channels in (2, 4) else None
    colours = np.repeat(pixels[..., :1], 3, 2) if grey else np.ascontiguousarray(pixels[..., :3])
    return Picture(colours, alpha, grey, metadata)
