"""Colours of the given picture, details of the restored one."""

import cv2
import numpy as np
import pytest

from osdface import colour


@pytest.fixture
def pictures():
    """A restored picture with a blue cast, and the given one without, of the same coarse content."""
    rng = np.random.default_rng(0)
    given = cv2.resize(rng.uniform(0.3, 0.7, (4, 4, 3)).astype(np.float32), (128, 128), interpolation=cv2.INTER_CUBIC)
    restored = given + rng.normal(0, 0.05, given.shape).astype(np.float32) + np.float32([0, 0, 0.2])
    return restored.astype(np.float32), given


def test_none_is_the_picture_itself(pictures):
    assert colour.fix(*pictures, "none") is pictures[0]


@pytest.mark.parametrize("how", ["wavelet", "adain"])
def test_the_cast_goes_and_the_detail_stays(pictures, how):
    restored, given = pictures
    fixed = colour.fix(restored, given, how)
    assert np.abs(fixed.mean((0, 1)) - given.mean((0, 1))).max() < 0.005
    detail = (restored - cv2.GaussianBlur(restored, (0, 0), 3)).ravel()
    kept = (fixed - cv2.GaussianBlur(fixed, (0, 0), 3)).ravel()
    assert np.corrcoef(detail, kept)[0, 1] > 0.98


def test_adain_gives_each_channel_the_deviation(pictures):
    fixed = colour.fix(*pictures, "adain")
    np.testing.assert_allclose(fixed.std((0, 1)), pictures[1].std((0, 1)), atol=1e-3)


def test_wavelets_of_the_picture_itself_change_nothing(pictures):
    given = pictures[1]
    np.testing.assert_allclose(colour.fix(given, given, "wavelet"), given, atol=1e-6)
