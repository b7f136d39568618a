"""The Frechet distance against its closed formula, and where covariances are singular."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from pipelines.metrics import frechet
from pipelines.metrics.frechet import between, fitted, published
from pipelines.metrics.measures import FrechetDistance


def by_square_root(a: np.ndarray, b: np.ndarray) -> float:
    """The formula as written, which is sound where there are many more rows than columns."""
    (m1, c1), (m2, c2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    return float(np.square(m1 - m2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real))


def test_gaussian_data_has_the_distance_of_its_formula():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 1
    b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))
    assert frechet.frechet(a, b) == pytest.approx(by_square_root(a, b), rel=1e-9)
    assert frechet.frechet(b, a) == pytest.approx(frechet.frechet(a, b), rel=1e-9)


def test_independent_columns_have_the_sum_of_their_own_distances():
    """N(m, s^2) in each: (m1 - m2)^2 + (s1 - s2)^2; here exactly, since four rows have these moments."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * np.sqrt(3 / 4)  # mean 0, covariance the unit matrix
    a, b = signs * (2, 5) + (1, 1), signs * (3, 1) + (0, 3)
    assert frechet.frechet(a, b) == pytest.approx((1 + 4) + (1 + 16), rel=1e-12)


def test_fewer_pictures_than_features_are_no_trouble():
    """A rotation into more dimensions changes nothing, and a set has no distance to itself."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(20, 4)) + 1, rng.normal(size=(30, 4)) * 2
    into, _ = np.linalg.qr(rng.normal(size=(200, 4)))
    assert frechet.frechet(a @ into.T, b @ into.T) == pytest.approx(by_square_root(a, b), rel=1e-9)
    few = rng.normal(size=(10, 300))
    assert frechet.frechet(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet.frechet(few, few + 2) == pytest.approx(4 * 300, rel=1e-9)
    assert np.isfinite(frechet.frechet(few.astype(np.float32), rng.normal(size=(15, 300))))


def test_published_statistics_are_the_same_as_features():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(40, 8)), rng.normal(size=(50, 8)) + 1
    known = published(b.mean(0), np.cov(b, rowvar=False))
    assert between(fitted(a), known) == pytest.approx(frechet.frechet(a, b), rel=1e-9)
    metric = FrechetDistance("fid_ffhq.vqfr", "", "", False, lambda images: images, known)
    assert metric.distance(a) == pytest.approx(frechet.frechet(a, b), rel=1e-9)


def test_one_picture_is_no_distribution():
    assert np.isnan(frechet.frechet(np.ones((1, 3)), np.eye(3)))
    assert np.isnan(frechet.frechet(np.eye(3), np.ones((1, 3))))


def test_a_distance_to_references_needs_them():
    with pytest.raises(ValueError, match="reference pictures"):
        FrechetDistance("fid.vqfr", "", "", True, lambda images: images).distance(np.eye(3))
