"""What evaluations say of a version: figures by the dataset that they were measured on."""

import functools
import json
from pathlib import Path
from typing import NamedTuple

from mlflow.entities import Run

from osdface import bundle
from osdface.errors import UserError
from pipelines import tracking
from pipelines.evaluation.summary import flat_metrics
from pipelines.registry import Version
from pipelines.tracking import TAG

NOT_RECORDED = "not recorded"
NEWEST = 200  # evaluations of a bundle that are looked at
Figures = dict[str, float]


class Evaluated(NamedTuple):
    """Figures on one dataset; of a split other than `test`, the digest has that behind a slash."""

    dataset: str
    figures: Figures


def of(version: Version) -> list[Evaluated]:
    """A version's evaluations, newest first, those on one dataset as one: the newest figure of each metric counts.

    They are found by the bundle's digest, so it does not matter whether it was registered before or after them; last
    come the figures that it was registered with.
    """
    found: dict[str, Figures] = {}
    for run in _runs(version.bundle_digest):
        dataset = on(run.data.tags.get(f"{TAG}dataset_digest", NOT_RECORDED), run.data.params.get("split"))
        found[dataset] = run.data.metrics | found.get(dataset, {})
    if version.metrics:
        dataset = version.evaluated_on or NOT_RECORDED
        found[dataset] = version.metrics | found.get(dataset, {})
    return [Evaluated(dataset, figures) for dataset, figures in found.items()]


def read(path: Path, folder: Path) -> Evaluated:
    """metrics.json of an evaluation of the bundle in `folder`.

    Raises UserError if it is none, or of another bundle.
    """
    figures = flat_metrics(path)
    told = json.loads(path.read_text())
    if told.get("bundle_digest") != bundle.digest(folder):
        raise UserError(f"{path}: is an evaluation of another model than {folder}; evaluate that one")
    return Evaluated(on(told["dataset_digest"], told.get("split")), figures)


def on(dataset: str, split: str | None) -> str:
    """What stands for a split of a dataset: its digest alone for `test`, by which models are judged."""
    return dataset if split in (None, "test") else f"{dataset}/{split}"


def _runs(bundle_digest: str) -> list[Run]:
    client = tracking.client(tracking.uri())
    experiment = client.get_experiment_by_name("osdface/evaluate")
    if not experiment or not bundle_digest:
        return []
    wanted = f"params.bundle_digest = '{bundle_digest}' and attributes.status = 'FINISHED'"
    order = ["attributes.start_time DESC"]
    return list(client.search_runs([experiment.experiment_id], wanted, max_results=NEWEST, order_by=order))


def chosen(mine: list[Evaluated], theirs: list[Evaluated], dataset: str | None) -> Evaluated | None:
    """The evaluation to judge by: on the dataset that is asked for, else on one that the champion has too, else any."""
    if dataset:
        return next((one for one in mine if dataset in (one.dataset, one.dataset[: len(dataset)])), None)
    common = {one.dataset for one in theirs}
    return next((one for one in mine if one.dataset in common), next(iter(mine), None))


def same(evaluations: list[Evaluated], dataset: str) -> Figures:
    """The figures on that dataset; none if there is no such evaluation."""
    return next((one.figures for one in evaluations if one.dataset == dataset), {})


@functools.cache
def directions() -> dict[str, str]:
    """Which way is better, "higher" or "lower", of every metric and of every family ("lpips")."""
    from pipelines.metrics import NAMES
    from pipelines.metrics.table import SETS, SINGLES

    known = {entry.name: getattr(entry, "better", "lower") for entry in (*SINGLES, *SETS)}
    families = {name.partition(".")[0]: better for name, better in known.items()}
    return {name: families[name.partition(".")[0]] for name in NAMES} | families


def members(name: str, figures: Figures) -> list[str]:
    """The measured metrics that a gate's name means: itself, or its family."""
    return (
        [name] if name in figures else sorted(one for one in figures if one.startswith(f"{name}.") and "/" not in one)
    )
