"""Several methods' pictures against the same references: figures with intervals, and who is ahead of whom."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines.evaluation.statistics import Interval, bootstrap, bootstrap_statistic, paired
from pipelines.metrics.protocol import Distribution, Metric, Suite

BATCH = 64
ARROWS = {"higher": "↑", "lower": "↓"}


class Measured(NamedTuple):
    """By name: values of each picture (N,), not-a-number where one does not count, and features (N, D)."""

    values: dict[str, np.ndarray]
    features: dict[str, np.ndarray]


class Judge:
    """A suite of metrics, with the references (N, H, W, 3) uint8 that every method's pictures are held to."""

    def __init__(self, suite: Suite, references: np.ndarray):
        self.suite, self.references = suite, references
        self.wanted = {one.name: _features(one, references) for one in suite.distributions}

    def __call__(self, images: np.ndarray) -> Measured:
        """The pictures of a method, in the references' order."""
        values = {metric.name: _values(metric, images, self.references) for metric in self.suite.metrics}
        return Measured(values, {one.name: _features(one, images) for one in self.suite.distributions})

    def table(self, measured: dict[str, Measured], ours: str) -> list[dict[str, Any]]:
        """A row for each metric: every method's figure, and `ours` against every other one."""
        others = [method for method in measured if method != ours]
        rows = []
        for metric in self.suite.metrics:
            values = {method: one.values[metric.name] for method, one in measured.items()}
            figures = {method: bootstrap(one) for method, one in values.items()}
            compared = {other: paired(values[ours], values[other], metric.better) for other in others}
            against = {other: _told(one.difference, one.win_rate) for other, one in compared.items()}
            rows.append(_row(metric, figures, against))
        for one in self.suite.distributions:
            features = {method: own.features[one.name] for method, own in measured.items()}
            figures = {method: self._distance(one, own) for method, own in features.items()}
            against = {other: _told(self._distance(one, features[ours], features[other])) for other in others}
            rows.append(_row(one, figures, against))
        return rows

    def _distance(self, one: Distribution, features: np.ndarray, other: np.ndarray | None = None) -> Interval:
        """Of the features to the references', or how much more that is than the other features' is."""
        wanted = self.wanted[one.name]
        if other is None:
            return bootstrap_statistic([features, wanted], lambda a, r: distance(one, a, r))
        difference = lambda a, b, r: distance(one, a, r) - distance(one, b, r)  # noqa: E731
        return bootstrap_statistic([features, other, wanted], difference)


def distance(one: Distribution, features: np.ndarray, wanted: np.ndarray) -> float:
    return one.distance(features, wanted if one.reference else None)


def _values(metric: Metric, images: np.ndarray, references: np.ndarray) -> np.ndarray:
    found: list[float | None] = []
    for start in range(0, len(images), BATCH):
        rows = slice(start, start + BATCH)
        found += metric(images[rows], references[rows] if metric.reference else None)
    values = np.array([np.nan if value is None else value for value in found], float)
    return np.where(metric.counts(values), values, np.nan)


def _features(one: Distribution, images: np.ndarray) -> np.ndarray:
    return np.concatenate([one.features(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])


def _told(difference: Interval, wins: float | None = None) -> dict[str, Any]:
    return {"difference": list(difference), "wins": wins}


def _row(one: Metric | Distribution, figures: dict[str, Interval], against: dict[str, Any]) -> dict[str, Any]:
    return {
        "metric": one.name,
        "network": one.network,
        "digest": one.digest,
        "better": one.better,
        "reference": one.reference,
        "figures": {method: list(interval) for method, interval in figures.items()},
        "against": against,
    }


def shown(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as people read them, without those that have no value here (pictures may be too small for one)."""
    return [
        {"metric": f"{row['metric']} {ARROWS[row['better']]}", "network": row["network"] or "formula"}
        | {method: interval(figure) for method, figure in row["figures"].items()}
        | {f"wins against {other}": percent(one["wins"]) for other, one in row["against"].items()}
        for row in rows
        if measured(row)
    ]


def measured(row: dict[str, Any]) -> bool:
    """Whether a metric had a value for any of every method's pictures."""
    return not np.isnan([figure[0] for figure in row["figures"].values()]).any()


def interval(figure: Sequence[float], sign: str = "") -> str:
    """ "21.4 [21.1, 21.7]", with as many digits as the interval's width is worth."""
    value, low, high = figure
    if np.isnan(value):
        return "none"
    width = high - low
    digits = int(np.clip(1 - np.floor(np.log10(width)), 1, 5)) if width > 0 else 2
    value, low, high = (round(number, digits) + 0.0 for number in (value, low, high))  # no -0
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def percent(share: float | None) -> str:
    return "" if share is None or np.isnan(share) else f"{share:.0%}"
