"""What rows say: means with intervals, models compared picture by picture, results by severity of degradation."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from osdface.errors import UserError
from pipelines.evaluation.pictures import REFERENCE
from pipelines.evaluation.statistics import Interval, bootstrap, bootstrap_statistic, paired
from pipelines.metrics.protocol import Distribution, Metric, Suite

AFFORDABLE = 512  # features of a distribution metric, up to which its interval takes a minute at most
PARTS = ("mild", "medium", "severe")
Rows = list[dict[str, Any]]
Features = dict[tuple[str, str], np.ndarray]


def made_of(what: tuple[str, ...]) -> str:
    """Of what is measured ("lq", "restored", "against"), that which is judged."""
    return "restored" if "restored" in what else what[0]


def summarise(rows: Rows, features: Features, suite: Suite, what: tuple[str, ...]) -> dict[str, Any]:
    """Everything that a report says of rows, as plain values; None stands where there is no number.

    features: (N, D) by (what, distribution), in the order of the rows.
    """
    intervals = {metric.name: {one: _mean(rows, metric, one) for one in what} for metric in suite.metrics}
    intervals |= {d.name: {one: _distance(features, d, one) for one in what} for d in suite.distributions}
    main = made_of(what)
    result = {
        "metrics": {name: {one: found["value"] for one, found in by.items()} for name, by in intervals.items()},
        "intervals": intervals,
        "paired": {other: _compared(rows, suite, main, other) for other in what if other != main},
        "severity": _by_severity(rows, suite, what),
        "labels": {
            m.name: {"better": m.better, "network": m.network, "digest": m.digest, "reference": m.reference}
            for m in (*suite.metrics, *suite.distributions)
        },
        "missing": [{"name": m.name, "file": m.file, "where": m.where} for m in suite.missing],
    }
    return finite(result)


def column(rows: Rows, metric: Metric, what: str) -> np.ndarray:
    """The values of a metric (N,), not-a-number for those that do not count."""
    values = np.array([row[f"{what}_{metric.name}"] for row in rows], np.float64)
    return np.where(metric.counts(values), values, np.nan)


def finite(value: Any) -> Any:
    """The same plain values with None for what is no number: JSON has no word for that."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _told(interval: Interval, counted: int) -> dict[str, Any]:
    return {**interval._asdict(), "counted": counted}


def _mean(rows: Rows, metric: Metric, what: str) -> dict[str, Any]:
    values = column(rows, metric, what)
    return _told(bootstrap(values), int(np.isfinite(values).sum()))


def _distance(features: Features, metric: Distribution, what: str) -> dict[str, Any]:
    """With an interval where that is affordable; how wide features are decides it."""
    ours = features[what, metric.name]
    arrays = [ours, features[REFERENCE, metric.name]] if metric.reference else [ours]
    if ours.shape[1] <= AFFORDABLE:
        return _told(bootstrap_statistic(arrays, metric.distance), len(ours))
    return _told(Interval(metric.distance(*arrays), math.nan, math.nan), len(ours))


def _compared(rows: Rows, suite: Suite, main: str, other: str) -> dict[str, Any]:
    found = {m.name: paired(column(rows, m, main), column(rows, m, other), m.better) for m in suite.metrics}
    return {
        name: {"win_rate": one.win_rate, "pairs": one.pairs, "difference": one.difference._asdict()}
        for name, one in found.items()
    }


def _by_severity(rows: Rows, suite: Suite, what: tuple[str, ...]) -> list[dict[str, Any]]:
    """Thirds of the pictures by how strongly they are degraded; nothing where that is not known, or all are alike."""
    severities = [row["severity"] for row in rows]
    if None in severities or len(set(severities)) < len(PARTS):
        return []
    order = np.argsort(severities, kind="stable")
    thirds = [[rows[i] for i in third] for third in np.array_split(order, len(PARTS))]
    return [
        {
            "part": part,
            "from": third[0]["severity"],
            "to": third[-1]["severity"],
            "pictures": len(third),
            "metrics": {metric.name: {one: _mean(third, metric, one) for one in what} for metric in suite.metrics},
        }
        for part, third in zip(PARTS, thirds, strict=True)
    ]


def flat(metrics: dict[str, dict[str, float | None]]) -> dict[str, float]:
    """{"psnr": {"restored": ..., "lq": ...}} -> {"psnr": ..., "lq_psnr": ...}, for registry and MLflow."""
    return {
        name if what == "restored" else f"{what}_{name}": value
        for name, by in metrics.items()
        for what, value in by.items()
        if value is not None
    }


def flat_metrics(path: Path) -> dict[str, float]:
    """The metrics of a metrics.json, flat. Raises UserError if the file is not there or not of this program."""
    try:
        return flat(json.loads(path.read_text())["metrics"])
    except (OSError, KeyError, ValueError, AttributeError, TypeError):
        raise UserError(f"{path}: not the metrics.json of `osdface evaluate`") from None
