"""Two versions side by side."""

from typing import Any

from mlflow import MlflowClient

from pipelines import tracking
from pipelines.promotion import evaluations
from pipelines.registry import Version

MADE_OF = ("preset", "dataset_digest", "base", "bundle_digest")


def compare(one: Version, other: Version) -> dict[str, Any]:
    """Figures on the newest dataset that both were evaluated on, which is better in each, and what differs in making.

    The latter down to the parameters of the training runs, as far as those are on this tracking server.
    """
    mine, theirs = evaluations.of(one), evaluations.of(other)
    common = {found.dataset for found in theirs}
    on = next((found.dataset for found in mine if found.dataset in common), None)
    figures = [evaluations.same(found, on) if on else {} for found in (mine, theirs)]
    names = [name for name in figures[0] if name in figures[1] and name in evaluations.directions()]
    return {
        "one": one.ref,
        "other": other.ref,
        "dataset": on,
        "metrics": {name: _row(name, figures[0][name], figures[1][name]) for name in sorted(names)},
        "differs": _differing(_made_of(one), _made_of(other)),
    }


def _row(name: str, one: float, other: float) -> dict[str, Any]:
    higher = evaluations.directions()[name] == "higher"
    return {"one": one, "other": other, "better": "" if one == other else "one" if (one > other) == higher else "other"}


def _made_of(version: Version) -> dict[str, Any]:
    client = tracking.client(tracking.uri())
    made = {key: getattr(version, key) for key in MADE_OF}
    for stage, run in sorted(version.runs.items()):
        made |= {f"run {stage}": run} | {f"{stage}: {key}": value for key, value in _params(client, run).items()}
    return made


def _params(client: MlflowClient, run: str) -> dict[str, str]:
    return client.get_run(run).data.params if tracking.exists(client, run) else {}


def _differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, dict[str, Any]]:
    keys = dict.fromkeys([*one, *other])
    return {key: {"one": one.get(key), "other": other.get(key)} for key in keys if one.get(key) != other.get(key)}
