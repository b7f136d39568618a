"""Which faces are shown: the best and worst by one metric, and some spread over all, found as they go by."""

import heapq
from typing import NamedTuple

import numpy as np

from pipelines import report
from pipelines.evaluation.measure import SHOWN, Measured
from pipelines.evaluation.pictures import REFERENCE
from pipelines.metrics.protocol import Metric, Suite

ENDS, SPREAD = 20, 6
# Who looks at pictures sorts them by how they look, and by the signal only where nothing else is there.
PREFERRED = ("lpips.alex", "lpips.vgg", "dists", "lpips.procedural", "lpips.dlib", "psnr", "musiq", "clipiqa", "niqe")
TITLES = {"lq": "LQ", REFERENCE: "HQ"}


class Face(NamedTuple):
    """A face that is shown. value: of the metric that sorts, None without."""

    number: int
    key: str
    value: float | None
    shown: dict[str, np.ndarray]


class Gallery:
    """Keeps the pictures of at most 2 x ENDS + SPREAD faces of `count`, the same ones in whatever order they come."""

    def __init__(self, suite: Suite, judged: str, count: int):
        by_name = {metric.name: metric for metric in suite.metrics}
        preferred = [by_name[name] for name in PREFERRED if name in by_name]
        self.metric: Metric | None = next(iter([*preferred, *suite.metrics]), None)
        self._judged = judged
        self._ends = min(ENDS, (count + 1) // 2)
        self._wanted = set(np.linspace(0, count - 1, min(SPREAD, count)).round().astype(int).tolist())
        self._spread: list[Face] = []
        self._best: list[tuple[float, int, Face]] = []
        self._worst: list[tuple[float, int, Face]] = []

    def add(self, one: Measured) -> None:
        """Look at a face."""
        value = one.row[f"{self._judged}_{self.metric.name}"] if self.metric else None
        face = Face(one.number, one.row["key"], value, one.shown)
        if one.number in self._wanted:
            self._spread.append(face)
        if value is None or self.metric is None:
            return
        good = value if self.metric.better == "higher" else -value
        for heap, rank in ((self._best, good), (self._worst, -good)):
            heapq.heappush(heap, (rank, -one.number, face))
            if len(heap) > self._ends:
                heapq.heappop(heap)

    def best(self) -> list[Face]:
        """From the best down."""
        return [face for *_, face in sorted(self._best, key=lambda entry: entry[:2], reverse=True)]

    def worst(self) -> list[Face]:
        """From the worst up."""
        return [face for *_, face in sorted(self._worst, key=lambda entry: entry[:2], reverse=True)]

    def spread(self) -> list[Face]:
        """Some of all, in their order."""
        return sorted(self._spread, key=lambda face: face.number)


def sheet(faces: list[Face]) -> np.ndarray:
    """A row for each face, a column for each of its pictures."""
    columns = list(faces[0].shown)
    rows = [[face.shown[what] for what in columns] for face in faces]
    return report.sheet(rows, [TITLES.get(what, what) for what in columns], SHOWN)
