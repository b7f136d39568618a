"""PSNR and SSIM against direct transcriptions of their definitions and other people's implementations."""

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from pipelines import metrics
from pipelines.metrics import psnr, ssim


@pytest.fixture
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """A smooth picture and a noisy one of it, of unequal sides."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:24, 0:31]
    reference = np.stack([x * 8, y * 10, (x + y) * 4], axis=2).astype(np.uint8)
    noisy = (reference + rng.normal(0, 12, reference.shape)).clip(0, 255).astype(np.uint8)
    return noisy, reference


def test_psnr_is_its_definition(pictures):
    image, reference = pictures
    squares = [(int(a) - int(b)) ** 2 for a, b in zip(image.ravel(), reference.ravel(), strict=True)]
    assert psnr(image, reference) == pytest.approx(10 * np.log10(255**2 / (sum(squares) / len(squares))), abs=1e-9)


def test_ssim_is_its_definition(pictures):
    """Wang et al. 2004, with 7x7 windows of equal weights that lie within the picture, and unbiased covariances."""
    image, reference = (picture.astype(float) for picture in pictures)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        for top in range(image.shape[0] - 6):
            for left in range(image.shape[1] - 6):
                a, b = (p[top : top + 7, left : left + 7, channel].ravel() for p in (image, reference))
                (va, covariance), (_, vb) = np.cov(a, b)
                numerator = (2 * a.mean() * b.mean() + c1) * (2 * covariance + c2)
                values.append(numerator / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (va + vb + c2)))
    assert ssim(*pictures) == pytest.approx(np.mean(values), abs=1e-9)


def test_on_photographs_both_are_what_others_compute(photographs, spoilt):
    suite = metrics.load(names=["psnr", "ssim"])
    assert [metric.name for metric in suite.metrics] == ["psnr", "ssim"]
    found_psnr, found_ssim = (metric(spoilt, photographs) for metric in suite.metrics)
    for image, reference, one, other in zip(spoilt, photographs, found_psnr, found_ssim, strict=True):
        a, b = image.astype(float), reference.astype(float)
        assert one == pytest.approx(20 * np.log10(255) - 10 * np.log10(np.square(a - b).mean()), abs=1e-9)
        assert other == pytest.approx(_ssim_by_filters(a, b), abs=1e-6)


def _ssim_by_filters(a: np.ndarray, b: np.ndarray) -> float:
    def mean(x):
        return uniform_filter(x, (7, 7, 1))[3:-3, 3:-3]

    unbiased = 49 / 48
    va, vb, covariance = (unbiased * (mean(x * y) - mean(x) * mean(y)) for x, y in ((a, a), (b, b), (a, b)))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean(a) * mean(b) + c1) / (mean(a) ** 2 + mean(b) ** 2 + c1)
    return float((luminance * (2 * covariance + c2) / (va + vb + c2)).mean())


def test_equal_pictures_are_better_than_any_other_and_finite(pictures):
    _, reference = pictures
    nearest = reference.copy()
    nearest[3, 4, 1] += 1
    assert psnr(reference, reference) == psnr(nearest, reference)
    assert np.isfinite(psnr(reference, reference))
    assert ssim(reference, reference) == 1 > ssim(nearest, reference)


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_more_is_better(name, pictures):
    image, reference = pictures
    halfway = ((image.astype(int) + reference) // 2).astype(np.uint8)
    (metric,) = metrics.load(names=[name]).metrics
    assert metric.better == "higher"
    better, worse = metric(np.stack([halfway, image]), np.stack([reference, reference]))
    assert better > worse


def test_pictures_smaller_than_the_window_have_no_value(pictures):
    (metric,) = metrics.load(names=["ssim"]).metrics
    small = np.stack([picture[:6] for picture in pictures])
    assert metric(small, small) == [None, None]
