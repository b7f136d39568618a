"""Beginning a run, or going on with one: configuration, lineage, the run above it."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient, MlflowException
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunStatus, RunTag
from mlflow.environment_variables import MLFLOW_RUN_CONTEXT
from mlflow.tracking.context.system_environment_context import SystemEnvironmentContext
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from osdface.errors import UserError
from pipelines.store import Reference, Store
from pipelines.tracking.recording import TAG, Named, Run
from pipelines.tracking.revision import git_revision
from pipelines.tracking.server import client, exists, experiment, reason, uri

if TYPE_CHECKING:  # the registry's commands need no torch
    from pipelines.pairs.manifest import Manifest


FORMAT = "1"  # of what a run records, kept as a tag
VALUE_LENGTH = 500  # of a parameter
PARAMS_PER_CALL = 100


@contextlib.contextmanager
def run(
    stage: str,
    name: str,
    config: dict[str, Any],
    manifest: "Manifest | Named | None",
    data: Reference,
    parents: dict[str, str],
    resume: str | None = None,
) -> Iterator[Run]:
    """Begin (or resume) a run: resolved config, dataset with our digest, git revision, parent runs by stage.

    It ends FINISHED, KILLED by an interrupt or SIGTERM under Ray, or FAILED by any other exception. Raises UserError
    where the server does not take it: nothing has been trained yet, and a model without its run has no lineage.
    manifest: None for a run that is about no pictures.
    """
    address = uri()
    made = client(address)
    status = RunStatus.FAILED
    begun = None
    try:
        try:
            run_id = resume if resume and exists(made, resume) else _create(made, stage, name, address)
            made.update_run(run_id, status="RUNNING")
            if tags := surroundings():  # also where it is gone on with, which a run may be by another parent
                made.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
            if run_id != resume:
                about = manifest if isinstance(manifest, Named | None) else Named.of(manifest, Store(data).uri)
                _describe(made, run_id, config, about, parents, "evaluation" if stage == "evaluate" else "training")
        except (MlflowException, OSError) as error:
            raise UserError(f"MLflow at {address}: cannot begin the run {name} ({reason(error)})") from None
        begun = Run(run_id, address)
        yield begun
        status = RunStatus.FINISHED
    except (KeyboardInterrupt, SystemExit):
        status = RunStatus.KILLED
        raise
    finally:
        if begun:
            begun.end(status)


def surroundings() -> dict[str, str]:
    """The tags that $MLFLOW_RUN_CONTEXT has for every run begun in it, as MLflow's `start_run` takes them.

    Raises UserError where they are no JSON.
    """
    context = SystemEnvironmentContext()
    try:
        return dict(context.tags()) if context.in_context() else {}
    except (ValueError, TypeError):
        raise UserError(f"{MLFLOW_RUN_CONTEXT.name}: no JSON object of tags; unset it, or mend it") from None


@contextlib.contextmanager
def parent(run: Run) -> Iterator[None]:
    """Make runs that begin in the block `run`'s children, also those of programs that the block starts."""
    before = os.environ.get(MLFLOW_RUN_CONTEXT.name)
    os.environ[MLFLOW_RUN_CONTEXT.name] = json.dumps(surroundings() | {MLFLOW_PARENT_RUN_ID: run.id})
    try:
        yield
    finally:
        os.environ.pop(MLFLOW_RUN_CONTEXT.name)
        if before is not None:
            os.environ[MLFLOW_RUN_CONTEXT.name] = before


def _create(made: MlflowClient, stage: str, name: str, address: str) -> str:
    return made.create_run(experiment(made, stage, address), run_name=name).info.run_id


def _describe(
    made: MlflowClient, run_id: str, config: dict[str, Any], data: Named | None, parents: dict[str, str], context: str
) -> None:
    tags = {"format": FORMAT} | ({"dataset_digest": data.digest, "dataset": data.uri} if data else {})
    tags |= {f"run.{stage}": parent for stage, parent in parents.items()}
    if revision := git_revision():
        tags["git_revision"] = revision
    made.log_batch(run_id, tags=[RunTag(TAG + key, value) for key, value in tags.items()])
    params = [Param(key, value[:VALUE_LENGTH]) for key, value in _flat(config).items()]
    for start in range(0, len(params), PARAMS_PER_CALL):
        made.log_batch(run_id, params=params[start : start + PARAMS_PER_CALL])
    made.log_dict(run_id, config, "config.json")
    if data is None:
        return
    source = json.dumps({"uri": data.uri, "digest": data.digest})
    dataset = Dataset(data.name, data.short, "local", source, profile=json.dumps(data.profile))
    made.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat
