"""The Frechet distance between two sets of features, each taken for a Gaussian."""

from typing import NamedTuple

import numpy as np


class Gaussian(NamedTuple):
    """mean (D,); root (K, D): the covariance is root.T @ root. float64."""

    mean: np.ndarray
    root: np.ndarray


def frechet(features: np.ndarray, references: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features (N, D) and (M, D), at least 0; not-a-number for fewer
    than two rows. Covariances are unbiased, as numpy's and pytorch-fid's.

    Sets of different sizes are no fair comparison: the fewer the pictures, the larger the distance.
    """
    return between(fitted(features), fitted(references))


def fitted(features: np.ndarray) -> Gaussian:
    """Of features (N, D)."""
    features = np.asarray(features, np.float64)
    if len(features) < 2:
        return Gaussian(features.mean(0), np.full((1, features.shape[1]), np.nan))
    mean = features.mean(0)
    spread = (features - mean) / np.sqrt(len(features) - 1)
    return Gaussian(mean, np.asarray(np.linalg.qr(spread, mode="r")))


def published(mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
    """Of statistics (D,) and (D, D), as they are handed out for large sets."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return Gaussian(np.asarray(mean, np.float64), np.sqrt(values.clip(0))[:, None] * vectors.T)


def between(a: Gaussian, b: Gaussian) -> float:
    """With C = R^T R, the trace of (C1 C2)^(1/2) is the sum of the singular values of R1 R2^T.

    So no square root is taken of a product that is singular, as it always is with fewer pictures than features.
    """
    product = a.root @ b.root.T
    if not np.isfinite(product).all():
        return float("nan")
    shared = np.linalg.svd(product, compute_uv=False).sum()
    apart = np.square(a.mean - b.mean).sum() + np.square(a.root).sum() + np.square(b.root).sum() - 2 * shared
    return float(max(apart, 0))
