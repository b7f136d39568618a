"""The two kinds of metric as values: labels and the function that computes them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.metrics import frechet
from pipelines.metrics.frechet import Gaussian
from pipelines.metrics.protocol import Better

# Pictures (B, H, W, 3) uint8 RGB, and for metrics with a reference those too -> a number each.
Values = Callable[..., Sequence[float]]


@dataclass
class Measure:
    """A `protocol.Metric`.

    smallest: pixels of a side below which pictures have no value. least: values below it do not enter the mean.
    """

    name: str
    better: Better
    network: str
    digest: str
    reference: bool
    values: Values
    smallest: int = 1
    least: float = -math.inf

    def __call__(self, images: np.ndarray, references: np.ndarray | None = None) -> list[float | None]:
        """None for pictures that are too small, or for which the metric's formula has no value."""
        if self.reference and (references is None or references.shape != images.shape):
            raise ValueError(f"{self.name} compares pictures with references of the same shape")
        if min(images.shape[1:3]) < self.smallest:
            return [None] * len(images)
        found = self.values(images, references) if self.reference else self.values(images)
        return [float(value) if math.isfinite(value) else None for value in found]

    def counts(self, values: np.ndarray) -> np.ndarray:
        return np.isfinite(values) & (values >= self.least)


@dataclass
class FrechetDistance:
    """A `protocol.Distribution`: the Frechet distance of features to those of the references, or to known statistics.

    Those with the same `extract` have the same features of the same pictures.
    """

    name: str
    network: str
    digest: str
    reference: bool
    extract: Callable[[np.ndarray], np.ndarray]
    known: Gaussian | None = None
    better: Better = "lower"

    def features(self, images: np.ndarray) -> np.ndarray:
        return self.extract(images)

    def distance(self, features: np.ndarray, references: np.ndarray | None = None) -> float:
        if self.known is not None:
            return frechet.between(frechet.fitted(features), self.known)
        if references is None:
            raise ValueError(f"{self.name} compares with the features of reference pictures")
        return frechet.frechet(features, references)
