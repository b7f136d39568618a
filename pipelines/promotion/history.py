"""What was promoted, refused, rolled back: an MLflow run for each attempt, begun before it and never changed after.

The versions carry the last of it as tags, `osdface.promotion.*`.
"""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowException
from mlflow.entities import RunStatus

from osdface.errors import UserError
from pipelines import tracking
from pipelines.promotion.checks import Check, Refused
from pipelines.registry import Version
from pipelines.registry.model_versions import iso, who
from pipelines.tracking import TAG, Run

STAGE = "promote"  # of the experiment
KEPT = 200  # attempts that are shown at most
SHOWN = ("action", "version", "former", "by", "why", "outcome", "reason")


class Entry:
    """One attempt. checks: all that were made; more: whatever else is to be kept with it; run: the MLflow run."""

    def __init__(self, run: Run):
        self.run = run
        self.outcome = ""
        self.checks: list[Check] = []
        self.more: dict[str, Any] = {}

    def told(self) -> dict[str, Any]:
        """As plain values."""
        return {"outcome": self.outcome, "checks": [check._asdict() for check in self.checks], **self.more}


@contextlib.contextmanager
def recorded(action: str, version: Version, former: str | None, why: str) -> Iterator[Entry]:
    """Record an attempt as a run: what it was, what came of it, in the end the report as `promotion.json`.

    An attempt that is killed stays "RUNNING" without an outcome. What MLflow raises in it becomes a UserError.
    """
    address = tracking.uri()
    client = tracking.client(address)
    tags = {"action": action, "model": version.name, "version": version.version, "former": former or "", "by": who()}
    tags |= {"why": why, "dataset_digest": version.dataset_digest or "", "bundle_digest": version.bundle_digest}
    made = client.create_run(
        tracking.experiment(client, STAGE, address),
        run_name=f"{action} {version.name} {version.version}",
        tags=tracking.surroundings() | {TAG + key: value for key, value in tags.items() if value},
    )
    entry = Entry(Run(made.info.run_id, address))
    try:
        try:
            yield entry
        except MlflowException as error:
            raise UserError(f"MLflow at {address}: {tracking.reason(error)}; {version.ref} was not promoted") from error
    except BaseException as error:
        entry.outcome = (
            "refused" if isinstance(error, Refused) else "failed" if isinstance(error, Exception) else "stopped"
        )
        _close(entry, version, former, str(error) or type(error).__name__)
        raise
    _close(entry, version, former, "")


def _close(entry: Entry, version: Version, former: str | None, reason: str) -> None:
    """Write what came of it; a server that is gone by now keeps the attempt as one without an outcome."""
    client = tracking.client(entry.run.uri)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    told = {"outcome": entry.outcome, "reason": reason[:5000]}
    noted = {"outcome": entry.outcome, "at": now, "by": who(), "run": entry.run.id}
    if entry.outcome == "promoted" and former and former != version.version:
        noted["replaced"] = former
    with contextlib.suppress(MlflowException):
        client.log_dict(entry.run.id, entry.told() | {"reason": reason}, "promotion.json")
        for key, value in noted.items():
            client.set_model_version_tag(version.name, version.version, f"{TAG}promotion.{key}", value)
    entry.run.tag({key: value for key, value in told.items() if value})
    entry.run.end(RunStatus.FAILED if reason else RunStatus.FINISHED)


def attempts(name: str) -> list[dict[str, str]]:
    """All attempts on a model, newest first: when, which action, version, by whom, and what came of it."""
    client = tracking.client(tracking.uri())
    experiment = client.get_experiment_by_name(f"osdface/{STAGE}")
    if not experiment:
        return []
    quoted = name.replace("'", "")
    found = client.search_runs(
        [experiment.experiment_id], f"tags.`{TAG}model` = '{quoted}'", max_results=KEPT,
        order_by=["attributes.start_time DESC"],
    )  # fmt: skip
    return [_told(run) for run in found]


def _told(run: Any) -> dict[str, str]:
    row = {"at": iso(run.info.start_time)} | {key: run.data.tags.get(TAG + key, "") for key in SHOWN}
    return row | {"outcome": row["outcome"] or "under way, or killed", "run": run.info.run_id}
