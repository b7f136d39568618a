"""Start a training stage on Ray Train workers, follow it, and put its output in place."""

import contextlib
import functools
import os
import pkgutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow.fs
import ray
import ray.train
import ray.train.torch
import torch
from ray.util.queue import Empty

from osdface.config import Strict, digest, resolved
from osdface.errors import UserError
from pipelines import cluster, lease, nodes, outputs, preemption, runs, tracking
from pipelines.pairs.manifest import MANIFEST, Manifest, checked_manifest
from pipelines.store import Store, storage
from pipelines.synthesize.build import absolute, synthesize
from pipelines.synthesize.config import Virtual
from pipelines.training import Progress, TrainConfig, alone, checkpoints, checks
from pipelines.training.worker import Worker

Settings = TypeVar("Settings", bound=Strict)
FORMAT = 1  # of that note
# What weights do not depend on, nor so what a run is called: a run may go on with others of these.
APART = (
    "data", "out", "cpus_per_worker", "threads", "readers", "zero_stage", "offload", "export", "checkpoint_every",
    "log_every", "cache", "latents", "max_failures", "fetch",
)  # fmt: skip
SHARES = ("workers", "accumulation")  # as well, where losses are means over rows

# By name, so that only the workers import them: Ray Train's controller starts seconds sooner.
STAGES = {
    "base": "pipelines.train_base:BaseStage",
    "vre": "pipelines.train_vre:VREStage",
    "osd": "pipelines.train_osd:OSDStage",
}


class Trained(NamedTuple):
    """out: the output's place; run_id: its MLflow run; digest: of configuration and inputs; fresh: trained just now."""

    out: Path | str
    run_id: str
    digest: str
    fresh: bool


class Plan(NamedTuple):
    """A training that could start: its settled configuration, data, and what it is called by."""

    config: TrainConfig
    manifest: Manifest
    identity: dict[str, Any]
    steps: dict[str, int]

    @property
    def digest(self) -> str:
        """Of all that the weights depend on."""
        return digest(self.identity)


def plan(
    stage: str,
    config: TrainConfig,
    inputs: dict[str, tuple[Path, str]],
    address: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Look at everything that a training needs, without starting it. Raises what `launch` would."""
    checks.refuse_configuration(config)
    if isinstance(config.data, Virtual):
        config = config.model_copy(update={"data": _indexed(config.data, progress, address)})
    config = anchored(config).model_copy(update={"data": Store(config.folder).uri})
    manifest = checked_manifest(config.folder)
    checks.refuse_data(config, manifest)
    if address is None:  # elsewhere, the workers' machines have them, or say so themselves
        config.check()
    config = config.settled()
    apart = (*APART, *inputs, *(() if config.undivided() else SHARES))
    settings = {name: value for name, value in resolved(config).items() if name not in apart}
    parents = {name: made for name, (_, made) in inputs.items()}
    identity = {"stage": stage, "config": settings, "dataset": manifest.digest, "inputs": parents}
    epoch = manifest.counts.splits["train"] / config.batch_size
    return Plan(config, manifest, identity, {name: d.resolve(epoch) for name, d in config.durations().items()})


def launch(
    stage: str,
    config: TrainConfig,
    inputs: dict[str, tuple[Path, str]],
    address: str | None = None,
    progress: Progress | None = None,
    resume: str = "auto",
) -> Trained:
    """Train, resume, or find finished what this configuration, data and `inputs` (name -> folder, digest) describe.

    The run's name comes from their digest, so the same command again continues what a kill left, and never what
    another configuration left. resume: as `runs.choose` has it. Raises UserError or UsageError before any worker
    starts where something is missing.
    """
    planned = plan(stage, config, inputs, address, progress)
    with _answering(Store(planned.config.out)):
        if finished := _finished(planned.config, planned.digest):
            return finished
    name, known = runs.choose(stage, planned.digest, planned.identity, resume)
    with _answering(runs.place()), lease.hold(Store(runs.place().label(name)), "give --resume never"):
        return _trained(stage, name, known, planned, inputs, address, progress)


def _trained(
    stage: str,
    name: str,
    known: dict[str, Any],
    planned: Plan,
    inputs: dict[str, tuple[Path, str]],
    address: str | None,
    progress: Progress | None,
) -> Trained:
    """Train a run that is this process's alone."""
    config, manifest = planned.config, planned.manifest
    parents: dict[str, str] = {}
    for folder, _ in inputs.values():
        parents |= outputs.receipt(folder).get("runs", {})
    if config.workers:
        cluster.connect(address, None)
        cluster.require_cpus(config.workers * config.cpus_per_worker)
        cluster.require_gpus(config.workers * config.gpus_per_worker)
        here = [folder for field, (folder, _) in inputs.items() if field not in config.fetch]
        nodes.refuse_unshared(runs.place(), [Store(config.folder).label(MANIFEST), *map(str, here)])
    config = config.prepared(progress, address)
    begun = tracking.run(stage, name, resolved(config), manifest, config.folder, parents, known.get("run_id"))
    with begun as run:
        remembered = {"run_id": run.id, "stage": stage, "digest": planned.digest, "identity": planned.identity}
        runs.remember(name, remembered)
        origin = {"runs": parents | {stage: run.id}, "dataset_digest": manifest.digest}
        loop: dict[str, Any] = {"stage": stage, "config": resolved(config), "origin": origin, "run": (run.id, run.uri)}
        loop["checkpoint"] = runs.whole_checkpoints(name)[-1:]
        checkpoint = _fit(name, config, loop, progress) if config.workers else _alone(name, config, loop, progress)
        preemption.refuse_unfinished(checkpoint)
        note = {"format_version": FORMAT, "stage": stage, "digest": planned.digest, "export": config.export}
        note["seconds"] = checkpoints.seconds(checkpoint)
        with _answering(Store(config.out)):
            outputs.place(checkpoint, config.out, note | {"run_id": run.id, **origin})
        run.tag({"output": str(config.out), "run_name": name})
    return Trained(config.out, run.id, planned.digest, True)


def anchored(config: Settings) -> Settings:
    """The configuration with every relative path in it made absolute: workers stand in folders of their own."""
    fields = {name: getattr(config, name) for name in type(config).model_fields}
    paths = {name: value.absolute() for name, value in fields.items() if isinstance(value, Path)}
    inner = {name: anchored(value) for name, value in fields.items() if isinstance(value, Strict)}
    return config.model_copy(update=paths | inner)


def _indexed(data: Virtual, progress: Progress | None, address: str | None) -> str:
    """Where the index of virtual data lies, made or found: a place for each configuration, wherever it is used."""
    data = data.model_copy(update={"sources": absolute(data.sources)})
    out = storage(f"virtual/{digest(resolved(data))[:12]}").uri
    count = functools.partial(_count, progress) if progress else None
    synthesize(data.index(out), count, address)
    return out


def _count(progress: Progress, label: str, done: int, total: int, values: dict[str, float] | None = None) -> None:
    progress(label, done, total, values or {})


@contextlib.contextmanager
def _answering(place: Store) -> Iterator[None]:
    """Raises UserError where a remote storage fails: what was put there stays."""
    try:
        yield
    except OSError as error:
        if place.local:
            raise
        reason = error.strerror or tracking.reason(error)
        raise UserError(f"{place}: does not answer ({reason}); the same command again continues") from error


def _finished(config: TrainConfig, identity: str) -> Trained | None:
    """What lies at `out` from this very run, if anything does. Raises UserError for anything else that lies there."""
    out = Store(config.out)
    there = out.exists() if out.local else out.tree()  # some servers show folders that nothing is in
    if not there or outputs.begun(out) == identity:
        return None
    note = outputs.receipt(out.uri)
    if note.get("digest") != identity:
        raise UserError(f"{out}: exists and is not this run's output; remove it or give another --out")
    if (exported := note.get("export", "last")) != config.export:
        raise UserError(f"{out}: has the weights '{exported}' of this run; give another --out for the others")
    return Trained(config.out, note["run_id"], identity, False)


def _fit(name: str, config: TrainConfig, loop: dict[str, Any], progress: Progress | None) -> str:
    """Run the workers; returns the checkpoint that holds the stage's output."""
    best, place = config.validation.best, runs.place()
    with _forwarding(progress) as queue, preemption.flag() as flag:
        trainer = ray.train.torch.TorchTrainer(
            _work,
            train_loop_config=loop | {"queue": queue, "flag": flag},
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.workers,
                use_gpu=config.gpus_per_worker > 0,
                resources_per_worker={"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker},
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=place.root,
                storage_filesystem=_arrow(place),
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=1 if best else alone.LAST,  # beside the latest, which Ray keeps
                    checkpoint_score_attribute="score" if best else None,
                    checkpoint_score_order=config.validation.direction,
                ),
                failure_config=preemption.failures(config.max_failures),
            ),
        )
        try:
            done = trainer.fit().checkpoint
            assert done is not None  # every training ends with one
            return place.label(f"{name}/{Path(done.path).name}")
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            raise _explain(name, error) from error


def _arrow(place: Store) -> pyarrow.fs.FileSystem | None:
    """A remote store's filesystem as Ray Train takes it: with the credentials and endpoints that it has here."""
    return None if place.local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(place.fs))


def _alone(name: str, config: TrainConfig, loop: dict[str, Any], progress: Progress | None) -> str:
    """Train in this process; returns the checkpoint that holds the stage's output."""
    device = torch.device("cuda" if config.gpus_per_worker else "cpu")
    keep = alone.keeper(Store(runs.place().label(name)), config.validation)
    with alone.process_group(device), preemption.of_process() as notice, _latest(loop) as checkpoint:
        _worker(loop, device, 0, 1, keep, progress, notice).train(checkpoint)
    return runs.whole_checkpoints(name)[-1]


def _latest(loop: dict[str, Any]) -> contextlib.AbstractContextManager[Path | None]:
    """The checkpoint to begin with, on this machine."""
    return Store(loop["checkpoint"][0]).on_disk() if loop["checkpoint"] else contextlib.nullcontext()


def _explain(name: str, error: Exception) -> UserError:
    """One sentence for a failed run: the worker's own where it was written for people."""
    causes = list(getattr(error, "worker_failures", {}).values()) or [error]
    for cause in causes:
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or getattr(cause, "cause", None)
        if cause is not None:
            return cause
    last = str(causes[0]).strip().splitlines()[-1].partition(". ")[0]
    return UserError(f"{name}: training stopped ({last}); the same command again continues from its last checkpoint")


@contextlib.contextmanager
def _forwarding(progress: Progress | None) -> Any:
    """A queue whose events reach `progress` in this process while the block runs."""
    if progress is None:
        yield None
        return
    queue, done = preemption.beside(), threading.Event()

    def drain() -> None:
        while not (done.is_set() and queue.empty()):
            try:
                progress(*queue.get(timeout=0.5))
            except Empty:
                continue
            except ray.exceptions.RayError:  # the cluster is going away
                return

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        done.set()
        thread.join(timeout=10)
        queue.shutdown()


def _work(loop: dict[str, Any]) -> None:
    """What Ray Train runs on each worker."""
    device = ray.train.torch.get_device()
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    context, queue = ray.train.get_context(), loop["queue"]

    def report(metrics: dict[str, Any], folder: Path | None) -> None:
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder) if folder else None)

    def show(*event: Any) -> None:
        if queue is not None:
            queue.put(event)

    notice = preemption.of_worker(loop["flag"])
    worker = _worker(loop, device, context.get_world_rank(), context.get_world_size(), report, show, notice)
    torch.set_num_threads(worker.config.threads)
    checkpoint = ray.train.get_checkpoint()
    with checkpoint.as_directory() if checkpoint else _latest(loop) as folder:
        worker.train(Path(folder) if folder else None)


def _worker(
    loop: dict[str, Any],
    device: torch.device,
    rank: int,
    world: int,
    report: Any,
    progress: Progress | None,
    notice: preemption.Notice,
) -> Worker:
    stage_class = pkgutil.resolve_name(STAGES[loop["stage"]])
    config: TrainConfig = stage_class.Config.model_validate(loop["config"]).here()
    make = functools.partial(stage_class, config, device, loop["origin"])
    run = tracking.attach(*loop["run"]) if rank == 0 else None
    return Worker(config, make, device, rank, world, report, run, progress, notice)
