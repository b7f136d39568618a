"""Bootstrap intervals of means, of differences of pairs, and of statistics of whole sets.

Percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), which resample
pictures: they say how much a figure would move with other pictures, not with another training.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pipelines.metrics.protocol import Better

LEVEL = 0.95
AT_ONCE = 1 << 22  # numbers of a block of draws: 32 MB


class Interval(NamedTuple):
    """A figure and its 95 % interval; all three are not-a-number where nothing counts."""

    value: float
    low: float
    high: float


class Paired(NamedTuple):
    """A against B on the same pictures. win_rate: share of pairs where A is better, a tie being half of one.
    difference: mean of A - B in the metric's own unit, whichever direction is better."""

    win_rate: float
    difference: Interval
    pairs: int


def bootstrap(values: np.ndarray, counts: np.ndarray | None = None, seed: int = 0, draws: int = 2000) -> Interval:
    """The mean of (N,) values over pictures that count, and its percentile interval.

    counts: (N,) bool; all that are numbers if absent. Not-a-number never counts.
    """
    there = ~np.isnan(values)
    kept = np.asarray(values, np.float64)[there if counts is None else there & counts]
    if not len(kept):
        return Interval(np.nan, np.nan, np.nan)
    return Interval(float(kept.mean()), *_ends(_means(kept, seed, draws)))


def paired(a: np.ndarray, b: np.ndarray, better: Better, seed: int = 0, draws: int = 2000) -> Paired:
    """A against B, each (N,): the metric's values of the same N pictures. Pairs that lack a number are left out."""
    difference = np.asarray(a, np.float64) - b
    difference = difference[~np.isnan(difference)]
    ahead = difference > 0 if better == "higher" else difference < 0
    rate = float(np.mean(ahead + 0.5 * (difference == 0))) if len(difference) else np.nan
    return Paired(rate, bootstrap(difference, seed=seed, draws=draws), len(difference))


def bootstrap_statistic(
    arrays: Sequence[np.ndarray], function: Callable[..., float], seed: int = 0, draws: int = 200
) -> Interval:
    """`function(*arrays)`, and an interval by drawing rows: the same ones of every array, (N, ...) of N pictures.

    Recentred on the value: a set with pictures twice has less spread than one without, so distances of distributions
    grow with every draw, by an amount that is no part of their scatter. Each draw calls the function: for a
    Frechet distance of 3,000 pictures 0.2 s with 512 features, 4 s with Inception's 2048.
    """
    rng = np.random.default_rng(seed)
    count = len(arrays[0])
    if any(len(array) != count for array in arrays):
        raise ValueError(f"arrays of the same pictures have as many rows each, not {[len(a) for a in arrays]}")
    value = float(function(*arrays))
    chosen = (rng.integers(0, count, count) for _ in range(draws))
    drawn = np.array([function(*(array[rows] for array in arrays)) for rows in chosen])
    return Interval(value, *_ends(drawn - drawn.mean() + value))


def _means(values: np.ndarray, seed: int, draws: int) -> np.ndarray:
    """Means of `draws` resamples, by blocks that fit in memory."""
    rng = np.random.default_rng(seed)
    step = max(1, AT_ONCE // len(values))
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    return np.concatenate([values[rng.integers(0, len(values), (n, len(values)))].mean(1) for n in sizes])


def _ends(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
