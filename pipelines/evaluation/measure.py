"""Pictures restored and measured in chunks that do not depend on who measures them; so nor do values."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from osdface.restorer import Restorer
from pipelines import metrics, report
from pipelines.evaluation.pictures import REFERENCE, Pictures, Sample
from pipelines.metrics.protocol import Suite
from pipelines.pairs.reading import as_tensor

CHUNK = 16  # faces that are restored and measured together, always the same ones
SHOWN = 192  # pixels of a side of what is kept of a picture to show


class Model(NamedTuple):
    """A restorer by its bundle's folder; `trained` false: as it was before its first step."""

    folder: str
    trained: bool = True


class Job(NamedTuple):
    """What is measured. models: by the name of what they make of "lq". metrics: by name; all where None."""

    pictures: Pictures
    models: dict[str, Model]
    metrics: tuple[str, ...] | None = None


class Measured(NamedTuple):
    """One face. row: its key, trace and values by `{what}_{metric}`. features: (D,) by (what, distribution).

    shown: (192, 192, 3) uint8, by what it is.
    """

    number: int
    row: dict[str, Any]
    features: dict[tuple[str, str], np.ndarray]
    shown: dict[str, np.ndarray]


def device() -> str:
    """Where networks run: a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def suite(job: Job, on: str | None = None) -> Suite:
    """The job's metrics. Raises UsageError for a name that there is not."""
    return metrics.load(on or device(), job.metrics, job.pictures.references)


def chunks(pictures: Pictures) -> list[range]:
    """All numbers of faces, CHUNK by CHUNK."""
    return [range(start, min(start + CHUNK, len(pictures))) for start in range(0, len(pictures), CHUNK)]


class Measurer:
    """The networks of a job, ready. Raises UserError where a model is not found."""

    def __init__(self, job: Job, suite_: Suite | None = None):
        self.pictures = job.pictures
        self.suite = suite_ or suite(job)
        self.restorers = {
            what: Restorer.load(model.folder, device(), trained=model.trained) for what, model in job.models.items()
        }

    def __call__(self, chunk: Iterable[int]) -> list[Measured]:
        """Restore and measure these faces."""
        chunk = list(chunk)
        samples = [self.pictures[index] for index in chunk]
        pictures = {what: [sample.pictures[what] for sample in samples] for what in samples[0].pictures}
        for what, restorer in self.restorers.items():
            pictures[what] = restored(restorer, pictures["lq"])
        references = [s.reference for s in samples if s.reference is not None]
        values = {what: self._values(made, references) for what, made in pictures.items()}
        shown = pictures | ({REFERENCE: references} if references else {})
        features = {
            (what, metric.name): rows
            for metric in self.suite.distributions
            for what, made in shown.items()
            if what != REFERENCE or metric.reference
            for rows in [_by_shape(made, metric.features)]
        }
        return [
            Measured(
                index,
                _row(samples[i], {what: rows[i] for what, rows in values.items()}),
                {name: np.asarray(rows[i]) for name, rows in features.items()},
                {what: report.fitted(made[i], SHOWN) for what, made in shown.items()},
            )
            for i, index in enumerate(chunk)
        ]

    def _values(self, made: list[np.ndarray], references: list[np.ndarray]) -> list[dict[str, float | None]]:
        columns = {
            metric.name: _by_shape(made, metric, references if metric.reference else None)
            for metric in self.suite.metrics
        }
        return [{name: column[i] for name, column in columns.items()} for i in range(len(made))]


def here(job: Job, suite_: Suite) -> Iterator[list[Measured]]:
    """Every chunk, measured in this process."""
    measurer = Measurer(job, suite_)
    return (measurer(chunk) for chunk in chunks(job.pictures))


def restored(restorer: Restorer, lq: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(H, W, 3) uint8 each -> the same, restored: at their own size, where the model works at another."""
    return _by_shape(lq, lambda images: _restored(restorer, images))


def _restored(restorer: Restorer, images: np.ndarray) -> np.ndarray:
    lq = torch.stack([as_tensor(image) for image in images])
    made = restorer.restore(lq / 2 + 0.5)
    if made.shape != lq.shape:
        made = F.interpolate(made, lq.shape[-2:], mode="bicubic", antialias=True)
    return report.to_uint8(made * 2 - 1)


def _by_shape(pictures: Sequence[np.ndarray], function: Any, references: Sequence[np.ndarray] | None = None) -> list:
    """What `function` makes of batches of pictures of one shape, in the order of the pictures."""
    made: dict[int, Any] = {}
    for shape in sorted({picture.shape for picture in pictures}):
        these = [i for i, picture in enumerate(pictures) if picture.shape == shape]
        batches = [np.stack([batch[i] for i in these]) for batch in (pictures, references) if batch is not None]
        made |= dict(zip(these, function(*batches), strict=True))
    return [made[i] for i in range(len(pictures))]


def _row(sample: Sample, values: dict[str, dict[str, float | None]]) -> dict[str, Any]:
    flat = {f"{what}_{name}": value for what, by in values.items() for name, value in by.items()}
    severity = None if sample.trace is None else report.severity(sample.trace)
    return {"key": sample.key, **flat, "severity": severity, "trace": sample.trace}
