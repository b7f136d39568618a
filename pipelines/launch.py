"""Start a training stage on Ray Train workers, follow it, and put its output in place."""

import contextlib
import functools
import json
import os
import pkgutil
import shutil
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import ray
import ray.train
import ray.train.torch
import torch
from ray.util.queue import Empty, Queue

from osdface import presets, weights
from osdface.config import digest, home, resolved
from osdface.errors import UsageError, UserError
from osdface.files import aside, replace_folder, write_json
from pipelines import cluster, tracking
from pipelines.pairs.manifest import read_manifest
from pipelines.synthesize.build import absolute, synthesize
from pipelines.synthesize.config import Virtual
from pipelines.training import TrainConfig
from pipelines.training.worker import Progress, Worker

RECEIPT = "training.json"  # beside every output: what run made it from what

# By name, so that only the workers import them: Ray Train's controller starts seconds sooner.
STAGES = {
    "base": "pipelines.train_base:BaseStage",
    "vre": "pipelines.train_vre:VREStage",
    "osd": "pipelines.train_osd:OSDStage",
}


class Trained(NamedTuple):
    """out: the output folder; run_id: its MLflow run; digest: of configuration and inputs; fresh: trained just now."""

    out: Path
    run_id: str
    digest: str
    fresh: bool


def receipt(folder: Path) -> dict[str, Any]:
    """What `launch` noted beside an output: stage, digest, run_id, runs, dataset_digest. Empty for foreign folders."""
    path = folder / RECEIPT
    return json.loads(path.read_text()) if path.is_file() else {}


def launch(
    stage: str,
    config: TrainConfig,
    inputs: dict[str, tuple[Path, str]],
    address: str | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train, resume, or find finished what this configuration, data and `inputs` (name -> folder, digest) describe.

    The run's name comes from their digest, so the same command again continues what a kill left, and never what
    another configuration left. Raises UserError or UsageError before any worker starts where something is missing.
    """
    if isinstance(config.data, Virtual):
        config = config.model_copy(update={"data": _indexed(config.data, progress, address)})
    manifest = read_manifest(config.folder)
    _check(config, manifest)
    settings = {k: v for k, v in resolved(config).items() if k not in ("data", "out", *inputs)}
    parents = {name: made for name, (_, made) in inputs.items()}
    identity = digest({"stage": stage, "config": settings, "dataset": manifest.digest, "inputs": parents})
    if config.out.exists():
        return _finished(config.out, identity)
    name = f"{stage}-{identity[:12]}"
    runs: dict[str, str] = {}
    for folder, _ in inputs.values():
        runs |= receipt(folder).get("runs", {})
    if address is None:  # elsewhere, the workers' machines have them, or say so themselves
        for file in config.weights():
            weights.find(file)
    cluster.connect(address, None)
    cluster.require_cpus(config.workers * config.cpus_per_worker)
    memo = home() / "runs" / f"{name}.json"
    resume = json.loads(memo.read_text())["run_id"] if memo.is_file() else None
    with tracking.run(stage, name, resolved(config), manifest, config.folder, runs, resume) as run:
        write_json(memo, {"run_id": run.id})
        runs[stage] = run.id
        origin = {"runs": runs, "dataset_digest": manifest.digest}
        checkpoint = _fit(stage, name, config, origin, run, progress)
        note = {"stage": stage, "digest": identity, "run_id": run.id, "runs": runs, "dataset_digest": manifest.digest}
        _place(checkpoint, config.out, note)
    return Trained(config.out, run.id, identity, True)


def _indexed(data: Virtual, progress: Progress | None, address: str | None) -> str:
    """Where the index of virtual data lies, made or found: a place for each configuration, wherever it is used."""
    data = data.model_copy(update={"sources": absolute(data.sources)})
    out = home() / "virtual" / digest(resolved(data))[:12]
    count = functools.partial(_count, progress) if progress else None
    synthesize(data.index(str(out)), count, address)
    return str(out)


def _count(progress: Progress, label: str, done: int, total: int, values: dict[str, float] | None = None) -> None:
    progress(label, done, total, values or {})


def _check(config: TrainConfig, manifest: Any) -> None:
    preset = presets.preset(config.preset)
    if manifest.spec.size != preset.size:
        raise UserError(
            f"{config.data}: pictures of {manifest.spec.size} px, but preset '{preset.name}' works at {preset.size}; "
            f"make the pairs with --size {preset.size}"
        )
    if config.batch_size % config.workers:
        raise UsageError(
            f"batch_size {config.batch_size} cannot be shared by workers {config.workers}: make it a multiple"
        )
    rows = manifest.counts.splits.get("train", 0)
    if rows < config.batch_size:
        raise UserError(
            f"{config.data}: its training split has {rows} pairs, fewer than batch_size {config.batch_size}"
        )


def _finished(out: Path, identity: str) -> Trained:
    note = receipt(out)
    if note.get("digest") != identity:
        raise UserError(f"{out}: exists and is not this run's output; remove it or give another --out")
    return Trained(out, note["run_id"], identity, False)


def _fit(
    stage: str, name: str, config: TrainConfig, origin: dict[str, Any], run: tracking.Run, progress: Progress | None
) -> Any:
    """Run the workers; returns the checkpoint that holds the stage's output."""
    with _forwarding(progress) as queue:
        trainer = ray.train.torch.TorchTrainer(
            _work,
            train_loop_config={
                "stage": stage,
                "config": resolved(config),
                "origin": origin,
                "run": (run.id, run.uri),
                "queue": queue,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.workers,
                use_gpu=config.gpus_per_worker > 0,
                resources_per_worker={"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker},
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=str(home() / "runs"),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            ),
        )
        try:
            return trainer.fit().checkpoint
        except ray.train.TrainingFailedError as error:
            raise _explain(name, error) from error


def _explain(name: str, error: Exception) -> UserError:
    """One sentence for a failed run: the worker's own where it was written for people."""
    causes = list(getattr(error, "worker_failures", {}).values()) or [error]
    for cause in causes:
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or getattr(cause, "cause", None)
        if cause is not None:
            return cause
    last = str(causes[0]).strip().splitlines()[-1]
    return UserError(f"{name}: training stopped ({last}); the same command again continues from its last checkpoint")


@contextlib.contextmanager
def _forwarding(progress: Progress | None) -> Any:
    """A queue whose events reach `progress` in this process while the block runs."""
    if progress is None:
        yield None
        return
    queue, done = Queue(actor_options={"num_cpus": 0}), threading.Event()

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


def _place(checkpoint: Any, out: Path, note: dict[str, Any]) -> None:
    temporary = aside(out)
    shutil.rmtree(temporary, ignore_errors=True)
    with checkpoint.as_directory() as folder:
        shutil.copytree(Path(folder) / "output", temporary)
    write_json(temporary / RECEIPT, note | {"finished": time.time()})
    replace_folder(temporary, out)


def _work(loop: dict[str, Any]) -> None:
    """What Ray Train runs on each worker."""
    device = ray.train.torch.get_device()
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    stage_class = pkgutil.resolve_name(STAGES[loop["stage"]])
    config: TrainConfig = stage_class.Config.model_validate(loop["config"])
    torch.set_num_threads(config.threads)
    context, queue = ray.train.get_context(), loop["queue"]
    rank = context.get_world_rank()
    run = tracking.attach(*loop["run"]) if rank == 0 else None

    def report(metrics: dict[str, Any], folder: Path) -> None:
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def show(*event: Any) -> None:
        if queue is not None:
            queue.put(event)

    worker = Worker(
        config, stage_class(config, device, loop["origin"]), device, rank, context.get_world_size(), report, run, show
    )
    checkpoint = ray.train.get_checkpoint()
    with checkpoint.as_directory() if checkpoint else contextlib.nullcontext() as folder:
        worker.train(Path(folder) if folder else None)
