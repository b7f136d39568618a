"""PSNR and SSIM against direct transcriptions of their definitions."""

import numpy as np
import pytest

from pipelines.metrics import METRICS, psnr, ssim


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


def test_equal_pictures_are_better_than_any_other_and_finite(pictures):
    _, reference = pictures
    nearest = reference.copy()
    nearest[3, 4, 1] += 1
    assert psnr(reference, reference) == psnr(nearest, reference)
    assert np.isfinite(psnr(reference, reference))
    assert ssim(reference, reference) == 1 > ssim(nearest, reference)


@pytest.mark.parametrize("name", METRICS)
def test_more_is_better(name, pictures):
    image, reference = pictures
    halfway = ((image.astype(int) + reference) // 2).astype(np.uint8)
    assert METRICS[name](halfway, reference) > METRICS[name](image, reference)
