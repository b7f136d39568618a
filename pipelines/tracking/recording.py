"""Records of a run, sent while it goes on; a server that fails holds nothing up."""

import contextlib
import io
import itertools
import logging
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, Metric, RunStatus, RunTag
from PIL import Image

from pipelines.tracking.server import client, reason, refused

if TYPE_CHECKING:  # the registry's commands need no torch
    from pipelines.pairs.manifest import Manifest

log = logging.getLogger(__name__)

TAG = "osdface."  # before every tag of ours
DIGEST_LENGTH = 36  # what MLflow's table of datasets holds; tags and the source keep the whole digest
METRICS_PER_CALL = 1000
PAUSE = 30.0  # seconds in which a run leaves a server alone that did not take a record
LAST_TRY = 30.0  # seconds in which a run that ends tries to send what is left
BUFFER = 64 * 2**20  # bytes of records that wait for a server


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


def attach(run_id: str, address: str) -> Run:
    """A run begun by another process."""
    return Run(run_id, address)


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
