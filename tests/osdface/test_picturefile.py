"""What goes into a picture file comes out of it: depth, alpha, profile, metadata."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from osdface import picturefile, pictureout
from osdface.imagefile import ImageError, read_image
from osdface.picturefile import Picture

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'


def noise(dtype, *shape):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def exif(**tags) -> Image.Exif:
    block = Image.Exif()
    for name, value in tags.items():
        block[ExifTags.Base[name]] = value
    block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2020:02:03 04:05:06"
    block.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return block


def read_exif(picture: Picture) -> Image.Exif:
    block = Image.Exif()
    block.load(picture.metadata["exif"])
    return block


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("alpha", [False, True])
def test_lossless_formats_keep_everything(suffix, dtype, alpha):
    metadata = {"icc_profile": PROFILE, "exif": exif(Make="Maker").tobytes(), "xmp": XMP, "dpi": (300.0, 200.0)}
    written = Picture(noise(dtype, 30, 40, 3), noise(dtype, 30, 40) if alpha else None, False, metadata)
    data = pictureout.encode(written, suffix)
    read = picturefile.read(data)
    np.testing.assert_array_equal(read.colours, written.colours)
    assert read.colours.dtype == dtype
    assert (read.alpha is not None) == alpha
    if alpha:
        np.testing.assert_array_equal(read.alpha, written.alpha)
    assert read.metadata["icc_profile"] == PROFILE
    assert read.metadata["xmp"] == XMP
    assert read.metadata["dpi"] == pytest.approx((300, 200), abs=0.02)
    kept = read_exif(read)
    assert kept[ExifTags.Base.Make] == "Maker"
    assert kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "2020:02:03 04:05:06"
    assert kept.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
    if alpha and dtype == np.uint8:
        return  # OpenCV multiplies the alpha of such a TIFF into its colours
    other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # another program's opinion
    np.testing.assert_array_equal(other[..., 2::-1], written.colours)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_keep_profile_and_metadata_at_8_bits(suffix):
    metadata = {"icc_profile": PROFILE, "exif": exif(Make="Maker").tobytes(), "xmp": XMP}
    grey = np.full((32, 32, 3), 200 * 257, np.uint16)
    opaque = np.full((32, 32), 65535, np.uint16)
    read = picturefile.read(pictureout.encode(Picture(grey, opaque, False, metadata), suffix))
    assert read.colours.dtype == np.uint8
    assert np.abs(read.colours.astype(int) - 200).max() <= 2
    assert read_exif(read)[ExifTags.Base.Make] == "Maker"
    assert (read.metadata["icc_profile"], read.metadata["xmp"]) == (PROFILE, XMP)


def test_alpha_goes_over_white_in_a_jpeg():
    clear = Picture(np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8))
    assert (read_image(pictureout.encode(clear, ".jpg")) == 255).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_stays_grey(dtype, suffix):
    values = noise(dtype, 20, 30)
    written = Picture(np.repeat(values[..., None], 3, 2), grey=True)
    data = pictureout.encode(written, suffix)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), values)
    read = picturefile.read(data)
    assert read.grey
    np.testing.assert_array_equal(read.colours, written.colours)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_orientation_is_applied_once_and_forgotten(orientation, deep):
    """Both depths turn as Pillow does, and neither the EXIF nor the XMP that is kept turns them again."""
    values = noise(np.uint8, 20, 30, 3)
    block = exif(Orientation=orientation, Make="Maker")
    xmp = b'<rdf:Description tiff:Orientation="6" a="b"><xmp:Thumbnails>much</xmp:Thumbnails></rdf:Description>'
    shown = Image.new("RGB", (30, 20))
    shown.frombytes(values.tobytes())
    plain = io.BytesIO()
    shown.save(plain, "PNG", exif=block)
    expected = read_image(plain.getvalue())
    metadata = {"exif": block.tobytes(), "xmp": xmp}
    coded = pictureout.encode(Picture(values.astype(np.uint16) * 257 if deep else values, metadata=metadata), ".png")
    read = picturefile.read(coded)
    np.testing.assert_array_equal(read.colours, expected.astype(np.uint16) * 257 if deep else expected)
    assert ExifTags.Base.Orientation not in read_exif(read)
    assert read.metadata["xmp"].split() == [b"<rdf:Description", b'a="b"></rdf:Description>']


def test_the_thumbnail_is_left_out():
    inner = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(inner, "JPEG")
    block = exif(Make="Maker")
    with_thumbnail = _with_thumbnail(block, inner.getvalue())
    data = io.BytesIO()
    Image.new("RGB", (32, 32)).save(data, "JPEG", exif=with_thumbnail)
    assert inner.getvalue() in data.getvalue()
    read = picturefile.read(data.getvalue())
    assert read_exif(read)[ExifTags.Base.Make] == "Maker"
    assert inner.getvalue() not in pictureout.encode(read, ".jpg")


def _with_thumbnail(block: Image.Exif, jpeg: bytes) -> bytes:
    """A second directory after the first, as cameras write it."""
    first = bytearray(block.tobytes())
    base = 6  # after "Exif"
    at = len(first) - base
    entries = [(513, 4, 1, at + 2 + 2 * 12 + 4), (514, 4, 1, len(jpeg))]
    order = "little" if first[base : base + 2] == b"II" else "big"
    second = len(entries).to_bytes(2, order)
    for tag, kind, count, value in entries:
        second += tag.to_bytes(2, order) + kind.to_bytes(2, order) + count.to_bytes(4, order) + value.to_bytes(4, order)
    start = base + int.from_bytes(first[base + 4 : base + 8], order)
    link = start + 2 + 12 * int.from_bytes(first[start : start + 2], order)
    first[link : link + 4] = at.to_bytes(4, order)
    return bytes(first) + second + bytes(4) + jpeg


def test_comment_and_titles_of_a_jpeg_stay_photoshops_thumbnail_does_not():
    titles = b"\x1c\x02\x78\x00\x05Hello"
    resources = b"".join(
        struct.pack(">4sH2xI", b"8BIM", kind, len(content)) + content + b"\0" * (len(content) % 2)
        for kind, content in ((0x040C, b"thumbnail"), (pictureout.IPTC, titles))
    )
    content = b"Photoshop 3.0\0" + resources
    data = io.BytesIO()
    segment = b"\xff\xed" + struct.pack(">H", len(content) + 2) + content
    Image.new("RGB", (16, 16)).save(data, "JPEG", comment="words", extra=segment)
    with Image.open(io.BytesIO(data.getvalue())) as given:
        assert set(given.info["photoshop"]) == {0x040C, 0x0404}
    coded = pictureout.encode(picturefile.read(data.getvalue()), ".jpg")
    with Image.open(io.BytesIO(coded)) as image:
        assert image.info["photoshop"] == {0x0404: titles}
        assert image.info["comment"] == b"words"


def test_a_profile_of_other_colours_is_left_out():
    data = io.BytesIO()
    Image.new("CMYK", (16, 16)).save(data, "JPEG", icc_profile=PROFILE[:16] + b"CMYK" + PROFILE[20:])
    read = picturefile.read(data.getvalue())
    assert "icc_profile" not in read.metadata
    assert read.colours.shape == (16, 16, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_file_that_ends_early_is_damaged(dtype):
    data = pictureout.encode(Picture(noise(dtype, 64, 64, 3)), ".png")
    with pytest.raises(ImageError, match="is damaged"):
        picturefile.read(data[: len(data) // 2])


def test_too_many_pixels_are_refused_from_the_header():
    data = pictureout.encode(Picture(np.zeros((200, 300, 3), np.uint16)), ".png")
    with pytest.raises(ImageError, match="300x200 is more than 59999 pixels"):
        picturefile.read(data, max_pixels=59_999)
