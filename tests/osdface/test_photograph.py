"""Which faces are restored, and what of the photograph stays."""

import numpy as np
import pytest

from osdface import faces, photograph
from osdface.faces import DlibFrontal, Face
from osdface.imagefile import ImageError
from osdface.modes import Wishes

SIZE = 64


class Fixed:
    """A detector that finds what it is told."""

    name = "fixed"

    def __init__(self, *found):
        self.found = list(found)

    def detect(self, image):
        return self.found


def face(left, width):
    landmarks = faces.TEMPLATE * width + (left, 20)
    return Face((left, 20, left + width, 20 + width), 1.0, landmarks)


THREE = Fixed(face(5, 60), face(80, 20), face(130, 40))


@pytest.fixture(scope="module")
def picture():
    y, x = np.mgrid[:120, :200]
    return np.stack([60 + x // 2, 60 + y, 80 + (x + y) // 4], -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("wishes", "restored"),
    [
        ({}, [1, 3]),
        ({"min_face": 10}, [1, 2, 3]),
        ({"min_face": 50}, [1]),
        ({"numbers": (2, 3)}, [2, 3]),
        ({"largest": True}, [1]),
    ],
)
def test_chosen_faces(picture, wishes, restored):
    plan = photograph.plan(picture, SIZE, Wishes(**wishes), THREE)
    assert [crop.number for crop in plan.crops] == restored
    assert sorted(restored + [number for number, _, _ in plan.left]) == [1, 2, 3]
    assert all(reason for _, _, reason in plan.left)


def test_a_small_face_is_left_with_its_size_told(picture):
    ((number, _, reason),) = photograph.plan(picture, SIZE, Wishes(), THREE).left
    assert (number, reason) == (2, "20 pixels across, less than 32")


def test_a_number_that_no_face_has_is_refused(picture):
    with pytest.raises(ImageError, match="has 3 faces, and none is number 4"):
        photograph.plan(picture, SIZE, Wishes(numbers=(1, 4)), THREE)


def finished(picture, **wishes):
    """The picture with one face made white, and that face's plan."""
    wanted = Wishes(numbers=(1,), **wishes)
    crops = photograph.plan(picture, SIZE, wanted, THREE).crops
    return photograph.finish(picture, crops, [np.ones((SIZE, SIZE, 3), np.float32)], wanted), crops[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_outside_the_mask_nothing_changes_and_its_edge_is_a_small_step(picture, dtype):
    image = picture.astype(dtype) * (1 if dtype == np.uint8 else 257)
    made, crop = finished(image)
    assert made.dtype == dtype
    changed = (made != image).any(-1)
    y, x = np.nonzero(~changed)
    inside = np.stack([x, y], -1) @ crop.matrix[:, :2].T + crop.matrix[:, 2]
    assert (np.abs(inside - SIZE / 2).max(1) > SIZE * 0.47).all()  # all but the mask's last few percent did change
    y, x = np.nonzero(changed)
    inside = np.stack([x, y], -1) @ crop.matrix[:, :2].T + crop.matrix[:, 2]
    assert (np.abs(inside - (SIZE - 1) / 2).max(1) < SIZE / 2 + 1).all()
    change = (made.astype(float) - image) / np.iinfo(dtype).max
    edge = np.zeros_like(changed)
    for axis in (0, 1):
        step = np.diff(changed.astype(int), axis=axis) != 0
        edge[tuple(slice(0, n) for n in step.shape)] |= step
    border = changed & (edge | np.roll(edge, 1, 0) | np.roll(edge, 1, 1))
    assert np.abs(change[border]).max() < 0.05  # of white on grey, by some 0.6; the mask is six pixels wide here
    assert change.max() > 0.4


def test_sixteen_bits_are_not_made_of_eight(picture):
    image = picture.astype(np.uint16) * 257 + 7
    wishes = Wishes(numbers=(1,))
    crops = photograph.plan(image, SIZE, wishes, THREE).crops
    assert crops[0].crop.dtype == np.uint8
    made = photograph.finish(image, crops, [np.full((SIZE, SIZE, 3), 0.5001, np.float32)], wishes)
    assert made[50, 35, 0] == round(0.5001 * 65535)


def test_strength_is_the_part_of_the_change_that_is_made(picture):
    np.testing.assert_array_equal(finished(picture, strength=0.0)[0], picture)
    half, whole = (finished(picture, strength=s)[0].astype(int) - picture for s in (0.5, 1.0))
    assert np.abs(half * 2 - whole).max() <= 1


def test_upscaled_the_face_lies_where_it_was(picture):
    plain, double = finished(picture)[0], finished(picture, upscale=2)[0]
    assert double.shape == (240, 400, 3)
    shrunk = double.reshape(120, 2, 200, 2, 3).mean((1, 3))
    assert np.abs(shrunk - plain).mean() < 0.5
    assert np.abs(shrunk - plain).max() < 12


def test_a_large_photograph_is_searched_in_a_small_one():
    """Nine times more pixels than the bound: the same six faces, their landmarks at a hundredth of a face."""
    image = faces.photographs()["t1"]
    known = DlibFrontal().detect(image)
    large = photograph.resized(image, (image.shape[1] * 2, image.shape[0] * 2))
    found = DlibFrontal(pixels=image.shape[0] * image.shape[1] // 2).detect(large)
    assert len(found) == len(known) == 6
    for one, other in zip(found, known, strict=True):
        width = 2 * (other.box[2] - other.box[0])
        assert np.abs(one.landmarks - 2 * other.landmarks).max() < 0.03 * width


def test_what_a_detector_is_shown_is_bounded():
    small, factor = faces.shrunk(np.zeros((3000, 5000, 3), np.uint8), 1_000_000)
    assert small.shape[0] * small.shape[1] <= 1_000_000
    assert factor == pytest.approx(15**0.5)
    thin, _ = faces.shrunk(np.zeros((1, 9000, 3), np.uint8), 100)
    assert thin.shape[0] == 1
