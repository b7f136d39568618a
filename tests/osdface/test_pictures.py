"""What callers have, to uint8 RGB and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from osdface.errors import UsageError, UserError
from osdface.pictures import from_array, to_array

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


@pytest.mark.parametrize(
    "same",
    [
        RGB,
        Image.fromarray(RGB),
        RGB.astype(np.uint16) * 257,
        RGB.astype(np.float32) / 255,
        RGB.astype(np.float64) / 255,
    ],
    ids=["uint8", "pil", "uint16", "float32", "float64"],
)
def test_the_same_picture_of_many_kinds(same):
    np.testing.assert_array_equal(to_array(same), RGB)


def test_grey_alpha_and_orientation():
    grey = RGB[..., 0]
    for one in (grey, grey[..., None], Image.fromarray(grey), (grey / 255).astype(np.float32)):
        np.testing.assert_array_equal(to_array(one), np.stack([grey] * 3, -1))
    clear = np.concatenate([RGB, np.zeros((5, 7, 1), np.uint8)], -1)
    assert (to_array(clear) == 255).all()
    image = Image.fromarray(RGB)
    image.getexif()[274] = 6
    np.testing.assert_array_equal(to_array(image), np.rot90(RGB, -1))


def test_paths(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    np.testing.assert_array_equal(to_array(tmp_path / "a.png"), RGB)
    np.testing.assert_array_equal(to_array(str(tmp_path / "a.png")), RGB)
    (tmp_path / "b.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"b\.png: is not a picture"):
        to_array(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"c\.png: cannot be read \(No such file or directory\)"):
        to_array(tmp_path / "c.png")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((0, 7, 3), np.uint8), r"\(0, 7, 3\) is no picture"),
        (np.zeros((2, 5, 7, 3), np.uint8), r"\(2, 5, 7, 3\) is no picture"),
        (np.zeros((3, 5, 7), np.uint8), r"\(3, 5, 7\) is no picture"),
        (RGB.astype(np.int64), "an array of int64"),
        (RGB.astype(np.float32), r"picture in \[0, 1\]; this one has"),
        (np.full((5, 7, 3), np.nan), r"picture in \[0, 1\]; this one has nan"),
        (None, "a NoneType is no picture"),
        (b"bytes", "a bytes is no picture"),
    ],
)
def test_what_is_no_picture_is_said(wrong, message):
    with pytest.raises(UserError, match=message) as caught:
        to_array(wrong)
    assert "\n" not in str(caught.value)


def test_output_types():
    assert from_array(RGB, "array") is RGB
    assert isinstance(from_array(RGB, "pil"), Image.Image)
    for kind in ("pil", "np", "array"):
        np.testing.assert_array_equal(to_array(from_array(RGB, kind)), RGB)
    tensor = from_array(RGB, "pt")
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.float32, (3, 5, 7))
    np.testing.assert_array_equal(to_array(tensor.permute(1, 2, 0).numpy()), RGB)
    with pytest.raises(UsageError, match="output_type 'jpg' does not exist; known: pil, np, pt, array"):
        from_array(RGB, "jpg")
