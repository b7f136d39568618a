"""A folder of files as bad as the world's: what must be refused, and what looks bad but is a picture.

Every file's bytes differ from every other's. `MAX_PIXELS` is the limit that the bombs are over.
"""

import gzip
import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

Outcome = Literal["reject", "convert"]
MAX_PIXELS = 4_000_000
SIDE = 40


def write_hostile(folder: Path) -> dict[str, Outcome]:
    """Write them all below `folder`; what becomes of each, by its name there (bytes that are no UTF-8 written out)."""
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    kinds: tuple[tuple[Outcome, Iterator[tuple[str, bytes]]], ...] = (
        ("convert", _odd()),
        ("convert", _strangely_named()),
        ("reject", _no_pictures()),
        ("reject", _damaged()),
        ("reject", _of_several()),
        ("reject", _bombs()),
    )
    for outcome, files in kinds:
        for name, data in files:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            outcomes[os.fsencode(name).decode(errors="backslashreplace")] = outcome
    (folder / "broken-link.png").symlink_to("nowhere.png")
    (folder / "round-link.png").symlink_to("round-link.png")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "pipe.png")
    return outcomes | dict.fromkeys(("broken-link.png", "round-link.png", "loop", "pipe.png"), "reject")


def _picture(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Smooth, with a little of its own noise."""
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 200 // width, y * 200 // height, 180 - (x + y) * 160 // (width + height)], -1)
    return (smooth + np.random.default_rng(seed).integers(0, 50, smooth.shape)).astype(np.uint8)


def _image(seed: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(_picture(seed)).convert(mode)


def _coded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _png(seed: int) -> bytes:
    return _coded(_image(seed), "PNG")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _raw_png(
    seed: int, extra: bytes = b"", sides: tuple[int, int] = (SIDE, SIDE), data: bytes | None = None, interlaced: int = 0
) -> bytes:
    rows = b"".join(b"\0" + row.tobytes() for row in _picture(seed))
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", *sides, 8, 2, 0, 0, interlaced))
    pixels = _chunk(b"IDAT", zlib.compress(rows if data is None else data))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + _chunk(b"IEND", b"")


def _adam7(seed: int) -> bytes:
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    parts = [_picture(seed)[top::down, left::right] for top, left, down, right in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    return _raw_png(seed, data=rows, interlaced=1)


def _tiff(
    entries: list[tuple[int, int, int, int]], pixels: bytes = bytes(3 * SIDE * SIDE), following: int = 0
) -> bytes:
    """Little-endian: entries of tag, type, count, value; the pixels lie at byte 8."""
    listed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = 8 + len(pixels)
    return (
        struct.pack("<2sHI", b"II", 42, start) + pixels
        + struct.pack("<H", len(entries)) + listed + struct.pack("<I", following)
    )  # fmt: skip


def _tiff_entries(width: int, height: int, *more: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    plain = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    strip = [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, width * height % 2**32)]
    return sorted([*plain, *strip, *more])


def _odd() -> Iterator[tuple[str, bytes]]:
    """Pictures that need converting."""
    for orientation in range(2, 9):
        yield f"turned-{orientation}.jpg", _coded(_image(orientation), "JPEG", exif=_turned(orientation))
    yield "cmyk.jpg", _coded(_image(10, "CMYK"), "JPEG")
    yield "cmyk.tif", _coded(_image(11, "CMYK"), "TIFF")
    for mode in ("1", "L", "LA", "P", "RGBA"):
        yield f"mode-{mode}.png", _coded(_image(12, mode), "PNG")
    yield "clear-colour.png", _coded(_image(13, "P"), "PNG", transparency=0)
    yield "clear-rgb.png", _coded(_image(14), "PNG", transparency=(1, 2, 3))
    sixteen = _picture(15).astype(np.uint16) * 257
    yield "sixteen-rgb.png", cv2.imencode(".png", sixteen)[1].tobytes()
    yield "sixteen-grey.png", _coded(Image.fromarray(sixteen[..., 0]), "PNG")
    yield "sixteen-grey.tif", _coded(Image.fromarray(sixteen[..., 1]), "TIFF")
    yield "sixteen-grey.pgm", cv2.imencode(".pgm", sixteen[..., 2])[1].tobytes()
    yield "interlaced.png", _adam7(16)
    yield "too-much-data.png", _raw_png(17, data=bytes(20_000_000))
    yield "grey.jpg", _coded(_image(18, "L"), "JPEG")
    yield "progressive.jpg", _coded(_image(19), "JPEG", progressive=True)
    yield "garbage-behind.jpg", _coded(_image(20), "JPEG") + bytes(5000)
    yield "garbage-behind.png", _png(21) + b"\xff" * 5000
    yield "no-end.png", _png(22)[:-12]
    yield "bad-exif.png", _coded(_image(23), "PNG", exif=b"Exif\0\0garbage")
    yield "camera.jpg", _coded(_image(24), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    yield "still.gif", _coded(_image(25, "P"), "GIF")
    yield "one-frame.png", _coded(_image(26), "PNG", save_all=True)
    for number, format in enumerate(("WEBP", "AVIF", "JPEG2000", "BMP", "PPM", "TIFF")):
        yield f"other.{format.lower()}", _coded(_image(30 + number), format)
    yield "round.tif", _tiff(_tiff_entries(SIDE, SIDE), following=8 + 3 * SIDE * SIDE)
    yield "absurd-count.tif", _tiff(_tiff_entries(SIDE, SIDE, (700, 1, 2**32 - 1, 8))[:-1])
    yield "alpha.webp", _coded(_image(36, "RGBA"), "WEBP", lossless=True)
    yield "long.png", _coded(Image.fromarray(_picture(37, 2000, 20)), "PNG")


def _strangely_named() -> Iterator[tuple[str, bytes]]:
    """Good pictures whatever they are called."""
    yield "png-inside.jpg", _png(50)
    yield "picture.txt", _png(51)
    yield "no-extension", _png(52)
    yield ".hidden.png", _png(53)
    yield "new\nline.png", _png(54)
    yield os.fsdecode(b"bytes-\xff\xfe.png"), _png(55)
    yield "😀 'quoted\".png", _png(56)
    yield "l" * 240 + ".png", _png(57)
    yield "folder.png/inside.png", _png(58)
    yield "-rf.png", _png(59)


def _no_pictures() -> Iterator[tuple[str, bytes]]:
    """Nothing that is a picture of some size, in a format that is read."""
    yield "empty.png", b""
    for format in ("PNG", "JPEG", "WEBP"):
        yield f"one-pixel.{format.lower()}", _coded(Image.new("RGB", (1, 1), "red"), format)
    yield "fifteen-rows.png", _coded(Image.fromarray(_picture(60, 15, 400)), "PNG")
    yield "text.png", b"just words, long enough to be looked at"
    yield "page.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'/>"
    yield "program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n"
    yield "paper.pdf", _coded(_image(61), "PDF")
    yield "favicon.ico", _coded(_image(62), "ICO")
    yield "packed.png.gz", gzip.compress(_png(63))
    yield "archive.zip", b"PK\x05\x06" + bytes(18)
    yield "noise.png", np.random.default_rng(64).bytes(5000)
    yield "zeros.jpg", bytes(5000)
    yield "phone.heic", b"\0\0\0\x18ftypheic" + bytes(200)
    yield "film.mp4", b"\0\0\0\x18ftypisom" + bytes(200)
    yield "floats.tif", _coded(Image.fromarray(np.full((SIDE, SIDE), 0.5, np.float32)), "TIFF")
    yield "integers.tif", _coded(Image.fromarray(np.full((SIDE, SIDE), 10**6, np.int32)), "TIFF")


def _damaged() -> Iterator[tuple[str, bytes]]:
    """Pictures once."""
    for number, format in enumerate(("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "JPEG2000")):
        data = _coded(_image(70 + number), format)
        yield f"cut.{format.lower()}", data[: len(data) // 2]
    whole = _png(80)
    yield "only-magic.png", whole[:8]
    yield "only-header.png", whole[:33]
    yield "flipped.png", whole[:900] + bytes([whole[900] ^ 0xFF]) + whole[901:]
    yield "bad-sum.png", whole[:29] + bytes(4) + whole[33:]
    yield "too-little-data.png", _raw_png(81, data=bytes(500))
    yield "no-such-filter.png", _raw_png(82, data=b"\x09" * (SIDE * (SIDE * 3 + 1)))
    yield "no-size.png", _raw_png(83, sides=(0, SIDE))
    yield "only-head.jpg", b"\xff\xd8\xff\xe0" + bytes(20)
    yield "strips-nowhere.tif", _tiff(_tiff_entries(SIDE, SIDE), pixels=b"")


def _of_several() -> Iterator[tuple[str, bytes]]:
    for number, format in enumerate(("GIF", "PNG", "WEBP", "TIFF", "AVIF")):
        frames = [_image(90 + number + 10 * frame) for frame in range(3)]
        yield f"several.{format.lower()}", _coded(frames[0], format, save_all=True, append_images=frames[1:])


def _bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that would fill the memory."""
    for side in (12_000, 30_000, 2**31 - 1):
        yield f"bomb-{side}.png", _raw_png(side, sides=(side, side))
    yield "bomb-real.png", _coded(Image.new("1", (9000, 9000)), "PNG")
    gif = _coded(_image(110, "P"), "GIF")
    yield "bomb.gif", gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:]
    bmp = _coded(_image(111), "BMP")
    yield "bomb.bmp", bmp[:18] + struct.pack("<ii", 2**20, 2**20) + bmp[26:]
    yield "bomb.ppm", b"P6 900000 900000 255\n" + bytes(500)
    yield "bomb.tif", _tiff(_tiff_entries(100_000, 100_000))
    tile = ((322, 4, 1, 2**16), (323, 4, 1, 2**15), (324, 4, 1, 8), (325, 4, 1, 1000))
    packed = [entry for entry in _tiff_entries(SIDE, SIDE, *tile) if entry[0] not in (259, 273, 278, 279)]
    yield "bomb-tile.tif", _tiff(sorted([*packed, (259, 3, 1, 8)]), zlib.compress(bytes(10**6)))
    jpeg = bytearray(_coded(_image(112), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    yield "bomb.jpg", bytes(jpeg)
    webp = _coded(_image(113), "WEBP", exif=_turned(1))
    canvas = webp.index(b"VP8X") + 12
    yield "bomb.webp", webp[:canvas] + (16_382).to_bytes(3, "little") * 2 + webp[canvas + 6 :]
    jp2 = bytearray(_coded(_image(114), "JPEG2000"))
    box, code = jp2.index(b"ihdr") + 4, jp2.index(b"\xff\x51") + 6
    jp2[box : box + 8] = jp2[code : code + 8] = struct.pack(">II", 60_000, 60_000)
    yield "bomb.jp2", bytes(jp2)
    jp2 = bytearray(_coded(_image(118), "JPEG2000"))
    jp2[code : code + 8] = struct.pack(">II", 60_000, 60_000)
    yield "bomb-within.jp2", bytes(jp2)
    text = zlib.compress(bytes(200_000_000), 9)
    yield "bomb-text.png", _raw_png(115, _chunk(b"zTXt", b"Comment\0\0" + text))
    yield "bomb-itxt.png", _raw_png(116, _chunk(b"iTXt", b"Comment\0\1\0\0\0" + text))
    yield "bomb-profile.png", _raw_png(117, _chunk(b"iCCP", b"profile\0\0" + text))
