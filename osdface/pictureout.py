"""A picture back into a file: PNG, JPEG, WebP or TIFF, with its metadata, at its own depth where the format has it."""

import io
import struct
from pathlib import PurePath
from typing import Any

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from osdface.errors import UserError
from osdface.photograph import in_8_bits
from osdface.picturefile import IPTC, XMP, Picture

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
QUALITY = 95  # of JPEG and WebP
XMP_TAG, PROFILE_TAG = 700, 34675  # of TIFF


def is_written(path: PurePath | str) -> bool:
    """Whether a file of this name is of a format that is written."""
    return PurePath(path).suffix.lower() in FORMATS


def encode(picture: Picture, suffix: str) -> bytes:
    """A picture as the file that `suffix` names: a key of FORMATS.

    16 bits stay in PNG and TIFF, alpha in all but JPEG, where it goes over white. Raises UserError where the format
    cannot hold the picture.
    """
    format = FORMATS[suffix.lower()]
    if format in ("JPEG", "WEBP"):
        picture = _shallow(picture)
    pixels = _joined(_flat(picture) if format == "JPEG" else picture)
    options = _options(picture.metadata, format)
    if picture.grey and not _stays_grey(picture):
        options.pop("icc_profile", None)  # of grey
    try:
        if format == "TIFF":
            return _tiff(pixels, options)
        if pixels.dtype == np.uint16:
            return _deep_png(pixels, options)
        return _saved(Image.fromarray(pixels), format, options)
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"a picture of {pixels.shape[1]}x{pixels.shape[0]} cannot be {format} ({error})") from None


def _joined(picture: Picture) -> np.ndarray:
    """(H, W), or (H, W, 2, 3 or 4). Grey is the mean of the colours, which leaves what was grey as it was.

    With an alpha of 16 bits it goes as colours: not everything reads or writes that as grey.
    """
    colours = picture.colours
    if _stays_grey(picture):
        colours = colours.mean(-1, dtype=np.float32).round().astype(colours.dtype)
    return colours if picture.alpha is None else np.dstack([colours, picture.alpha])


def _stays_grey(picture: Picture) -> bool:
    return picture.grey and (picture.alpha is None or picture.alpha.dtype == np.uint8)


def _shallow(picture: Picture) -> Picture:
    alpha = None if picture.alpha is None else in_8_bits(picture.alpha)
    return picture._replace(colours=in_8_bits(picture.colours), alpha=alpha)


def _flat(picture: Picture) -> Picture:
    """Without alpha, over white, as `imagefile.read_image` has it."""
    if picture.alpha is None:
        return picture
    rgba = Image.fromarray(np.dstack([picture.colours, picture.alpha]))
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture._replace(colours=np.asarray(flat), alpha=None)


def _options(metadata: dict[str, Any], format: str) -> dict[str, Any]:
    """Metadata as Pillow's `save` takes it."""
    options = {name: value for name, value in metadata.items() if name in ("icc_profile", "exif", "dpi")}
    xmp = metadata.get("xmp", b"")
    if xmp and format != "PNG":
        options["xmp"] = xmp
    if format in ("JPEG", "WEBP"):
        options["quality"] = QUALITY
    if format == "JPEG":
        options |= {name: metadata[name] for name in metadata.keys() & {"comment"}}
        if "iptc" in metadata:
            options["extra"] = _photoshop(metadata["iptc"])
    if format == "PNG":
        options["pnginfo"] = PngInfo()
        for key, text in metadata.get("text", {}).items():
            options["pnginfo"].add_itxt(key, text)
        if xmp:
            options["pnginfo"].add_itxt(XMP, xmp.decode(errors="replace"))
    return options


def _photoshop(iptc: bytes) -> bytes:
    """A JPEG's segment with this resource alone; none where it is too long for one."""
    resource = struct.pack(">4sH2xI", b"8BIM", IPTC, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    content = b"Photoshop 3.0\0" + resource
    return struct.pack(">2sH", b"\xff\xed", len(content) + 2) + content if len(content) < 65_534 else b""


def _saved(image: Image.Image, format: str, options: dict[str, Any]) -> bytes:
    coded = io.BytesIO()
    image.save(coded, format, **options)
    return coded.getvalue()


def _deep_png(pixels: np.ndarray, options: dict[str, Any]) -> bytes:
    """OpenCV's header and pixels, since Pillow writes no colours of 16 bits, with Pillow's metadata between them."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels > 1:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if channels == 3 else cv2.COLOR_RGBA2BGRA)
    coded = cv2.imencode(".png", pixels)[1].tobytes()
    small = _saved(Image.new("L" if channels == 1 else "RGB", (1, 1)), "PNG", options)
    header = 8 + 12 + 13  # the signature, and a chunk IHDR
    return coded[:header] + small[header : small.index(b"IDAT") - 4] + coded[header:]


def _tiff(pixels: np.ndarray, options: dict[str, Any]) -> bytes:
    """A header, the pixels as they are, one directory: no library here writes 16 bits with metadata, and Pillow with
    compression no metadata of several levels."""
    height, width, channels = (*pixels.shape, 1)[:3]
    data, bits = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes(), 8 * pixels.itemsize
    directory, exif = ImageFileDirectory_v2(b"II*\0\0\0\0\0"), Image.Exif()
    exif.load(options.get("exif", b""))
    for tag, value in exif.items():
        directory[tag] = exif.get_ifd(tag) or value
    layout: dict[int, Any] = {
        256: width, 257: height, 258: (bits,) * channels, 259: 1, 262: 1 if channels < 3 else 2, 273: 0,
        277: channels, 278: height, 279: len(data),
    }  # fmt: skip
    if channels in (2, 4):
        layout[338] = 2  # the last is alpha, not multiplied in
    if "dpi" in options:
        layout |= {282: options["dpi"][0], 283: options["dpi"][1], 296: 2}
    for tag, value in layout.items():
        directory[tag] = value
    for name, tag in (("icc_profile", PROFILE_TAG), ("xmp", XMP_TAG)):
        if name in options:
            directory.tagtype[tag] = 7  # bytes
            directory[tag] = options[name]
    start = 8  # of the directory, after the header; it counts the place of the pixels from its own end
    return b"II*\0" + struct.pack("<I", start) + directory.tobytes(start) + data
