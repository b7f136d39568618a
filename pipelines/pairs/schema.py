"""A pair as a row: its columns, its digest, and how its pictures are encoded."""

import hashlib
import struct
from typing import Annotated, Any, NamedTuple

import cv2
import deflate
import numpy as np
import pyarrow as pa
from pydantic import AfterValidator

from osdface.config import digest
from osdface.imagefile import read_image

ROW_GROUP = 16  # rows: small, since training reads them in shuffled order
PICTURES = ("hq", "lq", "target")
_COLUMNS = [
    ("key", pa.string()),
    ("source_uri", pa.string()),
    ("source_sha256", pa.string()),
    ("variant", pa.int32()),
    ("split", pa.string()),
    ("hq", pa.binary()),  # null where the dataset stores references
    ("lq", pa.binary()),  # null where it is virtual, and then so is the trace
    ("target", pa.binary()),  # null: the HQ picture itself is what a restorer should give
    ("target_uri", pa.string()),
    ("target_sha256", pa.string()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("trace", pa.string()),
    ("recipe_digest", pa.string()),
]
SCHEMA = pa.schema(_COLUMNS)
# addition: which of the dataset's additions the file came with. kind: of reason, for counting.
REJECTS = pa.schema(
    [("source_uri", pa.string()), ("kind", pa.string()), ("reason", pa.string()), ("addition", pa.int32())]
)


def _format(text: str) -> str:
    kind, _, quality = text.partition(":")
    if text in ("png", "webp"):
        return text
    if kind != "jpeg" or not (quality or "95").isdigit() or not 1 <= int(quality or 95) <= 100:
        raise ValueError(f"'{text}' is no format: png, webp (both lossless), or jpeg:QUALITY with 1 to 100")
    return f"jpeg:{int(quality or 95)}"


Format = Annotated[str, AfterValidator(_format)]


def encode(image: np.ndarray, format: Format) -> bytes:
    """(H, W, 3) uint8 RGB to PNG or WebP (lossless), or to JPEG of the quality that `jpeg:QUALITY` says."""
    kind, _, quality = format.partition(":")
    if kind == "png":
        return png(image)
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101]  # above 100 means lossless
    options = lossless if kind == "webp" else [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
    return cv2.imencode(f".{kind}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB to PNG: each row as its difference from the one above, compressed by libdeflate.

    Three fifths of the time of OpenCV's encoder, at the same size; the bytes do not depend on the processor.
    """
    height, width = image.shape[:2]
    rows = image.reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 2  # the filter's number: "up"
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    body = deflate.zlib_compress(filtered, 1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes | bytearray) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", deflate.crc32(data, deflate.crc32(kind)))


def as_stored(image: np.ndarray, format: Format) -> np.ndarray:
    """The picture as a reader of its encoded form sees it."""
    return read_image(encode(image, format)) if format.startswith("jpeg") else image


class RowNote(NamedTuple):
    """What a shard's description needs of each row."""

    digest: str
    split: str
    variant: int


def note(row: dict[str, Any]) -> RowNote:
    """The note of a row."""
    return RowNote(row_digest(row), row["split"], row["variant"])


def row_digest(row: dict[str, Any]) -> str:
    """sha256 over everything of a row that a reader sees."""
    pictures = {name: row[name] and hashlib.sha256(row[name]).hexdigest() for name in PICTURES}
    return digest({name: row[name] for name in SCHEMA.names} | pictures)
