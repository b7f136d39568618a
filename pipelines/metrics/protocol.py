"""What a metric is: one of single pictures, or one of two sets of pictures."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

Better = Literal["higher", "lower"]


class _Labelled(Protocol):
    """name: as reports call it, the network after a dot ("lpips.alex", "identity.dlib"). network: what computes it, ""
    for a formula. digest: the first 16 hex digits of the SHA-256 of its weight files, "" where it has none. reference:
    whether it compares with reference pictures."""

    name: str
    better: Better
    network: str
    digest: str
    reference: bool


class Metric(_Labelled, Protocol):
    """Of single pictures; reports give its mean over those that count."""

    def __call__(self, images: np.ndarray, references: np.ndarray | None = None) -> list[float | None]:
        """(B, H, W, 3) uint8 RGB, and references of the same shape -> a value each; None where it does not apply."""
        ...

    def counts(self, values: np.ndarray) -> np.ndarray:
        """Which of the values (N,) enter the mean; not-a-number, a picture without a value, never does."""
        ...


class Distribution(_Labelled, Protocol):
    """Of two sets of pictures, by features of theirs; `reference`: of the restored ones and the references."""

    def features(self, images: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) uint8 RGB -> (B, D) float64."""
        ...

    def distance(self, features: np.ndarray, references: np.ndarray | None = None) -> float:
        """(N, D) of the pictures and (M, D) of the references, which are None where `reference` is false."""
        ...


@dataclass(frozen=True)
class Missing:
    """A metric that is left out: the file that it needs, and where that is looked for."""

    name: str
    file: str
    where: str


@dataclass(frozen=True)
class Suite:
    """The metrics that can be computed on this machine, in the order of reports, and those that cannot."""

    metrics: list[Metric]
    distributions: list[Distribution] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
