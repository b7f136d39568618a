"""An evaluation in MLflow: a run with dataset and model linked, its figures also those of the registered model."""

import re
from typing import Any

from mlflow import MlflowClient

from pipelines import tracking
from pipelines.evaluation.summary import flat
from pipelines.tracking import TAG, Run


def log(run: Run, result: dict[str, Any], dataset: tracking.Named) -> None:
    """Log every figure, with the ends of its interval; where the bundle is registered, as its LoggedModel's too."""
    model = _logged_model(result["bundle_digest"]) if result["bundle_digest"] else None
    values = flat(result["metrics"])
    for end in ("low", "high"):
        ends = {name: {what: i[end] for what, i in by.items()} for name, by in result["intervals"].items()}
        values |= {f"{name}/{end}": value for name, value in flat(ends).items()}
    for other, by in result["paired"].items():
        values |= {f"win_rate/{other}/{name}": one["win_rate"] for name, one in by.items() if one["pairs"]}
    if model:
        run.uses(model)
    run.metrics({_allowed(name): value for name, value in values.items()}, 0, model, dataset)


def _logged_model(digest: str) -> str | None:
    """The id of the LoggedModel that the registry keeps this bundle in, the newest if there are several."""
    client: MlflowClient = tracking.client(tracking.uri())
    experiment = client.get_experiment_by_name("osdface/osd")
    if not experiment:
        return None
    found = client.search_logged_models(
        [experiment.experiment_id], f"tags.`{TAG}bundle_digest` = '{digest}'", max_results=1
    )
    return found[0].model_id if found else None


def _allowed(name: str) -> str:
    """A name that MLflow takes for a metric."""
    return re.sub(r"[^\w/. :-]", "_", name)
