"""MLflow runs: configuration, lineage, metrics and pictures of every stage. Nothing is pickled."""

import contextlib
import functools
import io
import itertools
import json
import logging
import os
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import mlflow
import numpy as np
from filelock import FileLock
from mlflow import MlflowClient, MlflowException
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    Metric,
    Param,
    RunStatus,
    RunTag,
)
from mlflow.environment_variables import MLFLOW_RUN_CONTEXT
from mlflow.tracking.context.system_environment_context import SystemEnvironmentContext
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from PIL import Image

from osdface.config import home
from osdface.errors import UserError
from pipelines.store import Reference, Store

if TYPE_CHECKING:  # the registry's commands need no torch
    from pipelines.pairs.manifest import Manifest

log = logging.getLogger(__name__)
FORMAT = "1"  # of what a run records, kept as a tag
REVISION = "OSDFACE_GIT_REVISION"  # the environment variable of a submitted job
TAG = "osdface."  # before every tag of ours
DIGEST_LENGTH = 36  # what MLflow's table of datasets holds; tags and the source keep the whole digest
VALUE_LENGTH = 500  # of a parameter
PARAMS_PER_CALL = 100
METRICS_PER_CALL = 1000
PAUSE = 30.0  # seconds in which a run leaves a server alone that did not take a record
LAST_TRY = 30.0  # seconds in which a run that ends tries to send what is left
BUFFER = 64 * 2**20  # bytes of records that wait for a server
SETTINGS = {  # of MLflow, where the environment has none
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # by default a server that is down takes minutes of every call
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def uri() -> str:
    """The tracking server: $MLFLOW_TRACKING_URI, or this machine's SQLite file.

    Raises UserError for a server's address with a password in it, since messages and notes have addresses in them.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
    if address.startswith("http") and urlsplit(address).password:
        raise UserError(
            "MLFLOW_TRACKING_URI: has a password in it; put it into MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or a token into MLFLOW_TRACKING_TOKEN"
        )
    return address


@functools.lru_cache
def client(address: str) -> MlflowClient:
    """A client of a tracking server. The first use of a new SQLite file makes its tables, one process at a time.

    Raises UserError naming the server if it does not answer.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        with _making(address):
            made = MlflowClient(address)
            made.search_experiments(max_results=1)
        return made
    except Exception as error:  # every kind of store has its own
        raise UserError(f"MLflow at {address}: does not answer ({reason(error)}); is it running?") from None


def _making(address: str) -> contextlib.AbstractContextManager[Any]:
    """A lock between the processes that may make a SQLite file's tables; servers look after themselves."""
    if not address.startswith("sqlite:///"):
        return contextlib.nullcontext()
    path = Path(address.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_suffix(".lock"))


@contextlib.contextmanager
def process_wide(address: str) -> Iterator[None]:
    """Make `address` MLflow's process-wide one for a while: its SQL registry looks LoggedModels up there alone."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(address)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None: back to the default


def reason(error: Exception) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


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
    """The code's git revision ("+" where files are changed); None where this file is in no repository.

    A submitted job's code is in none either: what was submitted from is in $OSDFACE_GIT_REVISION.
    """
    if not _git("ls-files", Path(__file__).name):  # installed: a repository around it is somebody else's
        return os.environ.get(REVISION)
    return _git("describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


class Named(NamedTuple):
    """Pictures as MLflow knows them: a dataset's or a folder's address, our digest, and what is told of them."""

    uri: str
    digest: str
    profile: dict[str, Any]

    @classmethod
    def of(cls, manifest: "Manifest", uri: str) -> "Named":
        """A pair dataset."""
        counts = manifest.counts
        told = {"rows": counts.rows, **counts.splits, "recipe": manifest.spec.recipe.name}
        return cls(uri, manifest.digest, told | {"licences": manifest.licences})

    @property
    def name(self) -> str:
        """Its last part."""
        return self.uri.rstrip("/").rpartition("/")[2]

    @property
    def short(self) -> str:
        """As much of the digest as a table of MLflow's holds."""
        return self.digest[:DIGEST_LENGTH]


class Run:
    """One MLflow run, begun here or elsewhere.

    Records are sent by a thread, in order. What a failing server does not take is kept, BUFFER bytes of it at most, and
    sent later: it is asked again every PAUSE seconds, and once more by `close`. What is lost in the end is said.
    """

    def __init__(self, run_id: str, address: str):
        self.id, self.uri = run_id, address
        self._waiting: deque[Record] = deque()
        self._change = threading.Condition()
        self._held = self._lost = 0
        self._busy = self._closing = self._warned = False
        self._thread: threading.Thread | None = None

    def metrics(
        self, values: dict[str, float], step: int, model: str | None = None, dataset: Named | None = None
    ) -> None:
        """Log metrics at a step; also as a LoggedModel's, by its id, and as measured on a dataset."""
        now = int(time.time() * 1000)
        on = (model, dataset.name, dataset.short) if dataset else (model,)
        made = [Metric(name, value, now, step, *on) for name, value in values.items()]
        self._add(Record(made, None, 200 * len(values)))

    def uses(self, model: str) -> None:
        """Link a LoggedModel, by its id, as what the run takes."""
        given = [LoggedModelInput(model)]
        self._add(Record([], lambda made: made.log_inputs(self.id, models=given), 100))

    def tag(self, values: dict[str, str]) -> None:
        """Set tags of ours."""
        tags = [RunTag(TAG + name, value) for name, value in values.items()]
        self._add(Record([], lambda made: made.log_batch(self.id, tags=tags), 1000 * len(tags)))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, as it is now."""
        self._file(path.name, path.read_bytes(), folder)

    def image(self, name: str, image: np.ndarray) -> None:
        """Log a uint8 RGB picture under an artifact name such as `sheets/end.png`."""
        coded = io.BytesIO()
        Image.fromarray(image).save(coded, "PNG")
        folder, _, file = name.rpartition("/")
        self._file(file, coded.getvalue(), folder or None)

    def flush(self, seconds: float) -> bool:
        """Wait until everything is sent; whether it was in that time."""
        with self._change:
            return self._change.wait_for(lambda: not (self._waiting or self._busy), seconds)

    def end(self, status: int) -> None:
        """Give the run its status, and close it."""
        name = RunStatus.to_string(status)
        self._add(Record([], lambda made: made.set_terminated(self.id, name), 0))
        self.close()

    def close(self) -> None:
        """Send what waits, for LAST_TRY seconds at most; then say what is lost."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        self.flush(LAST_TRY)
        with self._change:
            self._lost += len(self._waiting)
            self._waiting.clear()
            self._held = 0
        if self._lost:
            log.warning("MLflow at %s: %d records of run %s are lost", self.uri, self._lost, self.id)

    def _file(self, name: str, data: bytes, folder: str | None) -> None:
        def send(made: MlflowClient) -> None:
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / name
                path.write_bytes(data)
                made.log_artifact(self.id, str(path), folder)

        self._add(Record([], send, len(data)))

    def _add(self, record: "Record") -> None:
        with self._change:
            self._waiting.append(record)
            self._held += record.size
            while self._held > BUFFER and len(self._waiting) > 1:
                self._held -= self._waiting.popleft().size
                self._lost += 1
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)
                self._thread.start()

    def _send_all(self) -> None:
        while True:
            with self._change:
                if not self._waiting:
                    self._thread = None
                    return
                records, self._busy = self._together(), True
            sent = self._send(records)
            with self._change:
                self._busy = False
                if not sent:
                    self._waiting.extendleft(reversed(records))
                    self._held += sum(record.size for record in records)
                self._change.notify_all()
                if not sent and self._closing:
                    self._change.wait(1)
                elif not sent:
                    self._change.wait_for(lambda: self._closing, PAUSE)

    def _together(self) -> list["Record"]:
        """The first record, with the metrics that follow it if it is of metrics: one call takes them all."""
        records = [self._waiting.popleft()]
        count = len(records[0].metrics)
        while count and self._waiting and 0 < len(self._waiting[0].metrics) <= METRICS_PER_CALL - count:
            records.append(self._waiting.popleft())
            count += len(records[-1].metrics)
        self._held -= sum(record.size for record in records)
        return records

    def _send(self, records: list["Record"]) -> bool:
        """Whether they are done with: taken, or refused for good."""
        try:
            made = client(self.uri)
            if records[0].send:
                records[0].send(made)
            else:
                made.log_batch(self.id, metrics=[metric for record in records for metric in record.metrics])
            return True
        except Exception as error:  # training must not stop for its log
            final = refused(error)
            if not self._warned:
                kept = "going on without them" if final else "keeping them for later"
                log.warning("MLflow at %s does not take records (%s); %s", self.uri, reason(error), kept)
            self._warned = True
            self._lost += len(records) if final else 0
            return final


class Record(NamedTuple):
    """Metrics, or something else to send; its size in bytes, about."""

    metrics: list[Metric]
    send: Callable[[MlflowClient], Any] | None
    size: int


@contextlib.contextmanager
def system_metrics(run: Run, seconds: float = 10) -> Iterator[None]:
    """MLflow's own figures of this machine, logged every so many seconds while the block runs."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor, done = SystemMetricsMonitor(run.id, resume_logging=True, tracking_uri=run.uri), threading.Event()

    def watch() -> None:  # not the monitor's own loop, which ends for good where the server does not answer once
        for step in itertools.count(monitor._logging_step):
            monitor.collect_metrics()
            if done.wait(seconds):
                return
            monitor.collect_metrics()
            run.metrics({f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}, step)
            for one in monitor.monitors:
                one.clear_metrics()

    thread = threading.Thread(target=watch, name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def refused(error: Exception) -> bool:
    """Whether MLflow answered, and what it was asked for is not there or not allowed."""
    return getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


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


def attach(run_id: str, address: str) -> Run:
    """A run begun by another process."""
    return Run(run_id, address)


def exists(made: MlflowClient, run_id: str) -> bool:
    """Whether the server knows this run (and it is not deleted)."""
    try:
        return made.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if refused(error):
            return False
        raise


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
