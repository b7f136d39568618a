"""NIQE against a second implementation of Mittal et al. 2013, in numpy, on photographs."""

import numpy as np
import pytest
from scipy.io import loadmat
from scipy.ndimage import correlate1d
from scipy.special import gamma

from osdface import weights
from pipelines import metrics

BLOCK = 96


def niqe(image: np.ndarray) -> float:
    """Of (H, W, 3) uint8 RGB: the distance of the features' Gaussian, over blocks at two scales, to pristine ones'."""
    grey = (image @ np.array([0.299, 0.587, 0.114])).round()
    rows, columns = (length // BLOCK for length in grey.shape)
    grey = grey[: rows * BLOCK, : columns * BLOCK]
    scales = []
    for side in (BLOCK, BLOCK // 2):
        normal = mscn(grey)
        blocks = normal.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
        scales.append([features(block) for block in blocks])
        grey = halved(halved(grey).T).T
    found = np.concatenate(scales, 1)
    pristine = loadmat(weights.find("niqe"))
    difference = found.mean(0) - pristine["mu_prisparam"].ravel()
    covariance = (np.cov(found, rowvar=False) + pristine["cov_prisparam"]) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(covariance) @ difference))


def mscn(grey: np.ndarray) -> np.ndarray:
    window = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    window /= window.sum()

    def smooth(x):
        return correlate1d(correlate1d(x, window, 0, mode="nearest"), window, 1, mode="nearest")

    mean = smooth(grey)
    return (grey - mean) / (np.sqrt(abs(smooth(grey**2) - mean**2)) + 1)


def halved(x: np.ndarray) -> np.ndarray:
    """Half as many rows, by the cubic kernel of Keys stretched to twice its width; borders are mirrored."""
    distance = abs(np.arange(-3.5, 4)) / 2
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    kernel = np.where(distance <= 1, near, far * (distance < 2))
    kernel /= kernel.sum()
    padded = np.pad(x, ((3, 3), (0, 0)), mode="symmetric")
    return sum(weight * padded[shift : shift + len(x) : 2] for shift, weight in enumerate(kernel))


def features(block: np.ndarray) -> list[float]:
    shape, left, right = asymmetric(block)
    found = [shape, (left + right) / 2]
    for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = asymmetric(block * np.roll(block, (down, across), (0, 1)))
        found += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return found


SHAPES = np.arange(0.2, 10.001, 0.001)
RATIOS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))


def asymmetric(x: np.ndarray) -> tuple[float, float, float]:
    """Shape and the two widths of an asymmetric generalised Gaussian, by its moments."""
    left, right = (np.sqrt(np.square(side).mean()) for side in (x[x < 0], x[x > 0]))
    skew = left / right
    ratio = abs(x).mean() ** 2 / np.square(x).mean() * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = SHAPES[np.argmin((RATIOS - ratio) ** 2)]
    width = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * width, right * width


@pytest.fixture(scope="module")
def metric():
    (metric,) = metrics.load(names=["niqe"]).metrics
    return metric


def test_on_photographs_and_bad_copies_it_is_the_second_implementations(metric, photographs, spoilt):
    pictures = np.concatenate([photographs, spoilt])
    found = metric(pictures)
    np.testing.assert_allclose(found, [niqe(picture) for picture in pictures], rtol=2e-3)
    assert found[2] > found[0]
    assert found[3] > found[1]
    assert metric(pictures[1:2])[0] == pytest.approx(found[1], rel=1e-9)  # no picture depends on its batch


def test_its_labels_and_what_has_no_value(metric, photographs):
    assert (metric.better, metric.reference) == ("lower", False)
    assert weights.WEIGHTS["niqe"].sha256.startswith(metric.digest)
    assert metric(photographs[:, :191]) == [None, None]  # a single row of blocks' height is not enough
    flat = np.full_like(photographs[0], 128)
    assert metric(flat[None]) == [None]  # nothing to normalise
    assert metric(np.stack([flat, photographs[1]])) == [None, *metric(photographs[1:])]
