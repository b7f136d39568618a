"""MLflow runs: configuration, lineage, metrics and pictures of every stage. Nothing is pickled."""

import contextlib
import functools
import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from PIL import Image

from osdface.config import home
from osdface.errors import UserError
from pipelines.pairs import Manifest

log = logging.getLogger(__name__)
TAG = "osdface."  # before every tag of ours
DIGEST_LENGTH = 36  # what MLflow's table of datasets holds; tags and the source keep the whole digest
VALUE_LENGTH = 500  # of a parameter


def uri() -> str:
    """The tracking server: $MLFLOW_TRACKING_URI, or this machine's SQLite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


@functools.lru_cache
def client(address: str) -> MlflowClient:
    """A client of a tracking server. The first use of a new SQLite file makes its tables, one process at a time.

    Raises UserError naming the server if it does not answer.
    """
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        if not address.startswith("sqlite:///"):
            made = MlflowClient(address)
            made.search_experiments(max_results=1)
            return made
        path = Path(address.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            made = MlflowClient(address)
            made.search_experiments(max_results=1)
        return made
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow at {address}: does not answer ({str(error).splitlines()[0]})") from None


def experiment(made: MlflowClient, stage: str, address: str) -> str:
    """The id of a stage's experiment; beside a local SQLite file, artifacts go to $OSDFACE_HOME/artifacts."""
    name = f"osdface/{stage}"
    if found := made.get_experiment_by_name(name):
        return found.experiment_id
    local = (home() / "artifacts" / stage).as_uri() if address.startswith("sqlite:") else None
    try:
        return made.create_experiment(name, local)
    except MlflowException:  # another process made it in the meantime
        found = made.get_experiment_by_name(name)
        if not found:
            raise
        return found.experiment_id


def git_revision() -> str | None:
    """The code's git revision ("+" where files are changed), None outside a checkout."""
    folder = Path(__file__).parent
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


class Run:
    """One MLflow run, begun here or elsewhere. A tracking server that fails delays nothing: one warning, and on."""

    def __init__(self, run_id: str, address: str):
        self.id, self.uri = run_id, address
        self._failed = False

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Log metrics at a step."""
        now = int(time.time() * 1000)
        self._try(lambda c: c.log_batch(self.id, metrics=[Metric(k, v, now, step) for k, v in values.items()]))

    def tag(self, values: dict[str, str]) -> None:
        """Set tags of ours."""
        self._try(lambda c: c.log_batch(self.id, tags=[RunTag(TAG + k, v) for k, v in values.items()]))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file."""
        self._try(lambda c: c.log_artifact(self.id, str(path), folder))

    def image(self, name: str, image: np.ndarray) -> None:
        """Log a uint8 RGB picture under an artifact name such as `sheets/end.png`."""
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / file
            Image.fromarray(image).save(path)
            self.artifact(path, folder or None)

    def _try(self, call: Any) -> None:
        try:
            call(client(self.uri))
        except Exception as error:  # training must not stop for its log
            if not self._failed:
                log.warning("MLflow at %s does not take records (%s); going on without", self.uri, error)
            self._failed = True


@contextlib.contextmanager
def run(
    stage: str,
    name: str,
    config: dict[str, Any],
    manifest: Manifest,
    data: Path,
    parents: dict[str, str],
    resume: str | None = None,
) -> Iterator[Run]:
    """Begin (or resume) a run: resolved config, dataset with our digest, git revision, parent runs by stage.

    It ends FINISHED, KILLED by an interrupt, or FAILED by any other exception.
    """
    address = uri()
    made = client(address)
    run_id = resume if resume and _exists(made, resume) else None
    if run_id is None:
        run_id = made.create_run(experiment(made, stage, address), run_name=name).info.run_id
        _describe(made, run_id, config, manifest, data, parents)
    else:
        made.update_run(run_id, status="RUNNING")
    status = RunStatus.FAILED
    try:
        yield Run(run_id, address)
        status = RunStatus.FINISHED
    except KeyboardInterrupt:
        status = RunStatus.KILLED
        raise
    finally:
        with contextlib.suppress(Exception):
            made.set_terminated(run_id, RunStatus.to_string(status))


def attach(run_id: str, address: str) -> Run:
    """A run begun by another process."""
    return Run(run_id, address)


def _exists(made: MlflowClient, run_id: str) -> bool:
    try:
        return made.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False


def _describe(
    made: MlflowClient, run_id: str, config: dict[str, Any], manifest: Manifest, data: Path, parents: dict[str, str]
) -> None:
    tags = {"dataset_digest": manifest.digest, "dataset": str(data.absolute())}
    tags |= {f"run.{stage}": parent for stage, parent in parents.items()}
    if revision := git_revision():
        tags["git_revision"] = revision
    flat = [Param(key, value[:VALUE_LENGTH]) for key, value in _flat(config).items()]
    made.log_batch(run_id, params=flat[:100], tags=[RunTag(TAG + key, value) for key, value in tags.items()])
    made.log_dict(run_id, config, "config.json")
    source = json.dumps({"uri": str(data.absolute()), "digest": manifest.digest})
    profile = json.dumps({"rows": manifest.counts.rows, **manifest.counts.splits, "recipe": manifest.spec.recipe.name})
    dataset = Dataset(data.name, manifest.digest[:DIGEST_LENGTH], "local", source, profile=profile)
    made.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat
