"""Every kind of picture comes out as 8-bit RGB or is refused with its fault."""

import io
import pickle
import runpy
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from osdface.imagefile import ImageError, open_header, read_image


def coded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """(24, 32, 3) smooth and of many colours."""
    y, x = np.mgrid[0:24, 0:32]
    return np.stack([x * 8, y * 10, 255 - x * 4 - y * 4], axis=-1).astype(np.uint8)


class TestReading:
    @pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
    def test_lossless_formats_keep_every_pixel(self, picture, format):
        found = read_image(coded(Image.fromarray(picture), format))
        assert (found.dtype, found.shape) == (np.uint8, (24, 32, 3))
        assert np.array_equal(found, picture)

    @pytest.mark.parametrize("format", ["JPEG", "WEBP", "JPEG2000", "AVIF"])
    def test_lossy_formats_come_close(self, picture, format):
        found = read_image(coded(Image.fromarray(picture), format))
        assert np.abs(found.astype(int) - picture).mean() < 4

    @pytest.mark.parametrize(
        ("orientation", "turned"),
        [
            (1, lambda a: a),
            (2, np.fliplr),
            (3, lambda a: np.rot90(a, 2)),
            (4, np.flipud),
            (5, lambda a: a.transpose(1, 0, 2)),
            (6, lambda a: np.rot90(a, -1)),
            (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
            (8, np.rot90),
        ],
    )
    def test_stands_as_its_camera_was_held(self, picture, orientation, turned):
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert np.array_equal(read_image(coded(Image.fromarray(picture), "PNG", exif=exif)), turned(picture))

    def test_exif_that_is_garbage_is_ignored(self, picture):
        data = coded(Image.fromarray(picture), "PNG", exif=b"Exif\0\0garbage")
        assert np.array_equal(read_image(data), picture)

    @pytest.mark.parametrize("alpha", [0, 51, 255])
    def test_alpha_lies_over_white(self, picture, alpha):
        image = Image.fromarray(picture)
        image.putalpha(alpha)
        expected = picture * (alpha / 255) + 255 * (1 - alpha / 255)
        assert np.abs(read_image(coded(image, "PNG")) - expected).max() <= 1

    def test_grey_with_alpha_lies_over_white(self):
        image = Image.merge("LA", [Image.new("L", (4, 4), 100), Image.new("L", (4, 4), 0)])
        assert (read_image(coded(image, "PNG")) == 255).all()

    def test_a_palette_and_its_transparent_colour(self):
        image = Image.new("P", (4, 4), 1)
        image.putpalette([0, 0, 0, 200, 10, 30])
        image.putpixel((0, 0), 0)
        assert read_image(coded(image, "PNG"))[1, 1].tolist() == [200, 10, 30]
        clear = read_image(coded(image, "PNG", transparency=0))
        assert (clear[0, 0].tolist(), clear[1, 1].tolist()) == ([255, 255, 255], [200, 10, 30])

    @pytest.mark.parametrize("format", ["PNG", "TIFF"])
    def test_sixteen_bits_are_scaled_not_clipped(self, format):
        values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
        found = read_image(coded(Image.fromarray(values), format))
        assert np.array_equal(found, np.repeat((values / 257).round().astype(np.uint8)[..., None], 3, axis=2))

    def test_of_16_bit_colours_the_upper_8_bits_stay(self):
        values = np.random.default_rng(0).integers(0, 65536, (16, 16, 3), np.uint16)
        data = cv2.imencode(".png", values[..., ::-1])[1].tobytes()
        assert np.array_equal(read_image(data), values >> 8)

    def test_one_bit_and_grey_become_three_channels(self):
        assert read_image(coded(Image.new("1", (3, 2), 1), "PNG")).tolist() == [[[255] * 3] * 3] * 2
        assert read_image(coded(Image.new("L", (3, 2), 7), "PNG")).tolist() == [[[7] * 3] * 3] * 2

    def test_cmyk_becomes_rgb(self):
        image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
        found = read_image(coded(image, "JPEG", quality=100)).astype(int)
        assert np.abs(found - [255, 0, 0]).max() < 6

    def test_a_camera_s_jpeg_with_a_second_picture_is_its_first(self, picture):
        data = coded(Image.fromarray(picture), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
        assert read_image(data).shape == (24, 32, 3)


class TestPlainPNG:
    """OpenCV decodes these; Pillow's pixels and Pillow's judgement hold."""

    @staticmethod
    def by_pillow(data: bytes) -> np.ndarray | None:
        try:
            return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        except (OSError, SyntaxError, ValueError):
            return None

    @staticmethod
    def with_chunk(data: bytes, kind: bytes, content: bytes) -> bytes:
        """Behind the header."""
        chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        return data[:33] + chunk + data[33:]

    @pytest.mark.parametrize("sides", [(1, 1), (1, 700), (700, 1), (64, 65), (333, 257)])
    @pytest.mark.parametrize("level", [0, 1, 6, 9])
    def test_the_same_pixels(self, sides, level):
        noise = np.random.default_rng(level).integers(0, 256, (*sides, 3), np.uint8)
        assert np.array_equal(read_image(coded(Image.fromarray(noise), "PNG", compress_level=level)), noise)

    @pytest.mark.parametrize(
        ("kind", "content"),
        [
            (b"gAMA", struct.pack(">I", 100_000)),
            (b"cHRM", struct.pack(">8I", *[31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000])),
            (b"sRGB", b"\0"),
            (b"cICP", bytes([9, 16, 0, 1])),
            (b"sBIT", bytes([5, 5, 5])),
            (b"bKGD", bytes(6)),
            (b"tRNS", bytes(6)),
            (b"PLTE", bytes(range(6))),
            (b"pHYs", bytes(9)),
        ],
    )
    def test_whatever_stands_beside_them(self, picture, kind, content):
        data = self.with_chunk(coded(Image.fromarray(picture), "PNG"), kind, content)
        assert np.array_equal(read_image(data), picture)

    def test_with_a_colour_profile(self, picture):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
        assert np.array_equal(read_image(coded(Image.fromarray(picture), "PNG", icc_profile=profile)), picture)

    @pytest.mark.parametrize("place", ["before", "behind"])
    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            (b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
            (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta tiff:Orientation="6"/>'),
        ],
    )
    def test_turned_wherever_that_is_said(self, picture, kind, text, place):
        data = self.with_chunk(coded(Image.fromarray(picture), "PNG"), kind, text)
        if place == "behind":
            chunk = data[33 : 33 + 12 + len(text)]
            data = data[:33] + data[33 + len(chunk) : -12] + chunk + data[-12:]
        assert np.array_equal(read_image(data), np.rot90(picture, -1))

    def test_interlaced(self):
        hostile = runpy.run_path(str(Path(__file__).parents[1] / "hostile.py"))
        assert np.array_equal(read_image(hostile["_adam7"](3)), hostile["_picture"](3))

    def test_a_clear_colour_still_lies_over_white(self, picture):
        red, green, blue = (int(value) for value in picture[3, 4])
        found = read_image(coded(Image.fromarray(picture), "PNG", transparency=(red, green, blue)))
        clear = (picture == picture[3, 4]).all(-1)
        assert (found[clear] == 255).all()
        assert np.array_equal(found[~clear], picture[~clear])

    def test_damage_is_judged_as_pillow_does(self, picture):
        whole, rng = coded(Image.fromarray(picture), "PNG"), np.random.default_rng(0)
        read = 0
        for _ in range(400):
            data = bytearray(whole)
            data[rng.integers(8, len(data))] ^= 1 << rng.integers(8)
            data = bytes(data[: rng.integers(len(data) // 2, 2 * len(data))])
            expected = self.by_pillow(data)
            if expected is None:
                with pytest.raises(ImageError):
                    read_image(data)
            else:
                assert np.array_equal(read_image(data), expected)
                read += 1
        assert read > 10


class TestRefusing:
    @pytest.mark.parametrize(
        ("data", "fault"),
        [
            (b"", "empty"),
            (b"GIF89a", "unknown"),
            (b"\x89PNG\r\n\x1a\n", "unknown"),
            (b"\xff\xd8\xff\xe0" + bytes(20), "unknown"),
            (b"just words, long enough to be looked at", "unknown"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "unknown"),
        ],
    )
    def test_what_is_no_picture(self, data, fault):
        with pytest.raises(ImageError, match=r"^upload 7: is ") as caught:
            read_image(data, "upload 7")
        assert caught.value.fault == fault

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
    @pytest.mark.parametrize("share", [0.5, 0.9])
    def test_a_truncated_file(self, format, share):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        data = coded(Image.fromarray(noise), format)
        with pytest.raises(ImageError, match="picture: is (damaged|not a picture)") as caught:
            read_image(data[: int(len(data) * share)])
        assert caught.value.fault in ("unreadable", "unknown")

    def test_a_damaged_file(self, picture):
        data = bytearray(coded(Image.fromarray(picture), "PNG"))
        data[len(data) // 2] ^= 0xFF
        with pytest.raises(ImageError, match="picture: is damaged") as caught:
            read_image(bytes(data))
        assert caught.value.fault == "unreadable"

    @pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_an_animated_or_many_paged_file(self, picture, format):
        frames = [Image.fromarray(np.roll(picture, k, axis=1)) for k in range(3)]
        data = coded(frames[0], format, save_all=True, append_images=frames[1:])
        with pytest.raises(ImageError, match="picture: is animated or has several pages; give a still") as caught:
            read_image(data)
        assert caught.value.fault == "animated"

    def test_floating_point_pixels(self):
        data = coded(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF")
        with pytest.raises(ImageError, match="floating-point pixels"):
            read_image(data)

    def test_pixels_of_32_bits(self):
        with pytest.raises(ImageError, match="32-bit pixels"):
            read_image(coded(Image.fromarray(np.full((8, 8), 10**6, np.int32)), "TIFF"))

    def test_heic_without_its_plugin(self):
        with pytest.raises(ImageError, match="not a picture this program reads") as caught:
            read_image(b"\0\0\0\x18ftypheic" + bytes(200))
        assert caught.value.fault == "unknown"

    def test_a_text_that_would_fill_the_memory(self, picture):
        text = b"Comment\0\0" + zlib.compress(bytes(50_000_000))
        data = TestPlainPNG.with_chunk(coded(Image.fromarray(picture), "PNG"), b"zTXt", text)
        with pytest.raises(ImageError, match="is damaged") as caught:
            open_header(data)
        assert caught.value.fault == "unreadable"

    def test_the_error_survives_its_way_from_a_worker(self):
        error = pickle.loads(pickle.dumps(ImageError("empty", "is empty", "upload 7")))  # noqa: S301
        assert (str(error), error.fault, error.reason) == ("upload 7: is empty", "empty", "is empty")

    def test_more_pixels_than_asked_from_the_header_alone(self, picture):
        data = coded(Image.fromarray(picture), "PNG")
        assert open_header(data, max_pixels=24 * 32).size == (32, 24)
        with pytest.raises(ImageError, match="picture: 32x24 is more than 767 pixels") as caught:
            read_image(data[:60], max_pixels=767)  # nothing behind the header is there to be decoded
        assert caught.value.fault == "too_large"

    @pytest.mark.parametrize("side", [12_000, 30_000])
    def test_a_decompression_bomb(self, side):
        """The second is over Pillow's own limit, too."""
        header = bytearray(coded(Image.new("1", (8, 8)), "PNG")[:33])
        header[16:24] = side.to_bytes(4, "big") * 2
        header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
        with pytest.raises(ImageError, match="pixels") as caught:
            read_image(bytes(header) + coded(Image.new("1", (8, 8)), "PNG")[33:])
        assert caught.value.fault == "too_large"
