"""The loop of one training worker: phases, steps, micro-batches, and what is reported on the way."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osdface.config import digest
from osdface.errors import UserError
from pipelines import tracking
from pipelines.outputs import OUTPUT
from pipelines.pairs.reading import PairDataset, ShuffledBatches, ahead
from pipelines.preemption import Notice, Stopped
from pipelines.training import checkpoints
from pipelines.training.checkpoints import Snapshot
from pipelines.training.checks import refuse_infinite, refuse_nan
from pipelines.training.config import Progress, TrainConfig
from pipelines.training.engines import Engine
from pipelines.training.meter import Meter, averaged
from pipelines.training.stage import Metrics, Phase, Stage, Step

DRAWN = 8  # pictures of a drawing at most
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Worker:
    """One rank. make: builds the stage. report: takes metrics and a checkpoint's folder (rank 0) or None (others)."""

    config: TrainConfig
    make: Callable[[], Stage]
    device: torch.device
    rank: int
    world: int
    report: Callable[[dict[str, Any], Path | None], None]
    run: tracking.Run | None = None  # rank 0 only
    progress: Progress | None = None
    notice: Notice = field(default_factory=Notice)
    stage: Stage = field(init=False)
    data: PairDataset = field(init=False)
    validation: PairDataset = field(init=False)
    averages: dict[str, Tensor] = field(init=False, default_factory=dict)  # "ema/NAME" as of the last snapshot
    since: float = field(init=False, default_factory=time.perf_counter)  # less the time up to the checkpoint

    def __post_init__(self) -> None:
        self.data, self.validation = self.config.pairs("train"), PairDataset(self.config.folder, "val")

    def train(self, checkpoint: Path | None) -> None:
        """Go on from the checkpoint, through every phase to the stage's output, which the last checkpoint holds.

        Where the command is asked to end, the last checkpoint is of that moment, and holds no output.
        """
        with self._tracked(), contextlib.suppress(Stopped):
            self._train(checkpoint)

    @contextlib.contextmanager
    def _tracked(self) -> Iterator[None]:
        if not self.run:
            yield
            return
        try:
            with tracking.system_metrics(self.run):
                yield
        finally:
            self.run.close()

    def _train(self, checkpoint: Path | None) -> None:
        snapshot = checkpoints.read(checkpoint) if checkpoint else None
        self.since -= checkpoints.seconds(checkpoint) if checkpoint else 0.0
        if snapshot and snapshot.exported == self.config.export:
            return
        phases = self._begin(snapshot)
        number = snapshot.phase if snapshot else 0
        if not snapshot:
            self._look("", 0, "start")
        while phase := next(phases, None):
            if snapshot and snapshot.step:  # what the stage does between phases was done before
                snapshot.load(self.stage)
            snapshot = self._train_phase(number, phase, snapshot)
            number += 1
            if self.config.zero_stage == 3 or self.config.precision in HALF:  # the modules are no use any more
                del phase, phases, self.stage  # their memory is wanted
                phases = self._begin(snapshot)
        self._export(snapshot or checkpoints.take(self.stage, {}, number, 0, {}))

    def _begin(self, snapshot: Snapshot | None) -> Iterator[Phase]:
        """A new stage, at the end of the phase before the snapshot's; and the phases to come."""
        self.stage = self.make()
        phases = iter(self.stage.phases())
        if snapshot:
            self.averages = snapshot.ended().moments
            snapshot.load(self.stage)
            for _ in range(snapshot.phase):
                next(phases)
                snapshot.load(self.stage)
        return phases

    def _train_phase(self, number: int, phase: Phase, snapshot: Snapshot | None) -> Snapshot:
        """Train a phase from its beginning, or from where the snapshot is in it."""
        config, start = self.config, snapshot.step if snapshot else 0
        batches = ShuffledBatches(self.data, config.batch_size, config.seed)
        steps = phase.duration.resolve(batches.per_epoch)
        kept = snapshot.kept(self.stage) if snapshot else {}
        positions = snapshot.positions if snapshot else {}
        engines = {
            name: Engine(module, how, config, steps, kept, positions.get(name))
            for name, (module, how) in phase.engines.items()
        }
        meter = Meter(config.batch_size, self.device)
        for index, parts in self._parts(batches, range(start, steps), meter):
            seen = [self._micro(number, phase, index, part, batch, engines) for part, batch in parts]
            refuse_infinite(phase.name, index, engines, self._pairs(parts[0][1]))
            meter.step()
            if index + 1 == steps or index % config.log_every == 0:
                self._log(phase.name, index, steps, seen, engines, meter)
            scores = self._validate(phase.name, index + 1, steps)
            scored = bool(scores) and config.validation.best is not None
            due = scored or (index + 1) % config.checkpoint_every == 0
            if (self.notice.heard(index) or due) and index + 1 < steps:
                snapshot = checkpoints.take(self.stage, engines, number, index + 1, self.averages)
                self._report(phase.name, index + 1, snapshot, scores)
                self.notice.kept()
        snapshot = checkpoints.take(self.stage, engines, number + 1, 0, self.averages).ended()
        self.averages = snapshot.moments
        for engine in engines.values():
            engine.close()
        self._report(phase.name, steps, snapshot, {})
        return snapshot

    def _parts(
        self, batches: ShuffledBatches, steps: range, meter: Meter
    ) -> Iterator[tuple[int, list[tuple[int, dict[str, Any]]]]]:
        """Steps with this rank's micro-batches: the part of the global batch that each is, and its rows."""
        count = self.config.accumulation
        parts = [micro * self.world + self.rank for micro in range(count)]
        of = len(parts) * self.world
        reading = ahead(
            lambda wanted: self.data.batch(batches.part(wanted[0], wanted[1], of)),
            product(steps, parts),
            self.config.readers,
        )
        with contextlib.closing(reading):
            for index in steps:
                yield index, [(part, meter.wait(reading)) for part in parts]

    def _micro(
        self, number: int, phase: Phase, index: int, part: int, batch: dict[str, Any], engines: dict[str, Engine]
    ) -> Metrics:
        generator = torch.Generator().manual_seed(int(digest([self.config.seed, number, index])[:15], 16))
        parts = self.world * self.config.accumulation
        with self._precision():
            metrics = phase.step(Step(index, self._to_device(batch), engines, generator, part, parts))
        refuse_nan(phase.name, index, metrics, self._pairs(batch))
        return metrics

    def _pairs(self, batch: dict[str, Any]) -> str:
        """Which pairs a batch has, and how to look at them."""
        first = batch["key"][0]
        return f"pairs {', '.join(batch['key'])}; `osdface data show {self.config.folder} {first}` shows one"

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """Half precision also where fp32 networks look at an engine's results."""
        half = HALF.get(self.config.precision)
        return torch.autocast(self.device.type, half) if half else contextlib.nullcontext()

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in batch.items()}

    def _log(
        self, phase: str, index: int, steps: int, seen: list[Metrics], engines: dict[str, Engine], meter: Meter
    ) -> None:
        """Means over all workers and micro-batches; the machine's figures are rank 0's."""
        values = averaged(seen) | meter.read()
        for name, engine in engines.items():
            values |= {f"gradient_norm/{name}": engine.norm or 0.0, f"lr/{name}": engine.lr}
        self._tell(phase, index, values)
        if self.rank == 0 and self.progress:
            self.progress(phase, index + 1, steps, {f"{phase}/{name}": value for name, value in values.items()})

    def _tell(self, phase: str, step: int, values: dict[str, float]) -> None:
        if self.rank == 0 and self.run:
            self.run.metrics({f"{phase}/{name}": value for name, value in values.items()}, step)

    def _validate(self, phase: str, step: int, steps: int) -> dict[str, float]:
        every = self.config.validation.every
        return self._look(phase, step, f"{phase}-{step:07d}") if (every and step % every == 0) or step == steps else {}

    @torch.no_grad()
    def _look(self, phase: str, step: int, name: str) -> dict[str, float]:
        """Validate and draw on rank 0; on every rank where modules are partitioned, which it takes all to gather."""
        count = min(self.config.validation.pictures, len(self.validation))
        if not count or (self.rank and self.config.zero_stage < 3):
            return {}
        totals: dict[str, float] = {}
        with self._precision():
            for start in range(0, count, DRAWN):
                rows = range(start, min(start + DRAWN, count))
                batch = self._to_device(self.validation.batch(rows))
                for key, value in self.stage.validate(batch).items():
                    totals[key] = totals.get(key, 0.0) + float(value) * len(rows) / count
                drawings = self.stage.drawings(batch) if start == 0 else {}
                if self.rank == 0 and self.run:
                    for drawing, image in drawings.items():
                        self.run.image(f"{drawing}/{name}.png", image)
        scores = {f"validation/{key}": value for key, value in totals.items()}
        self._tell(phase or "start", step, scores)
        return scores

    def _report(self, phase: str, step: int, snapshot: Snapshot, scores: dict[str, float]) -> None:
        """Hand in a checkpoint: rank 0 writes it."""
        best = self.config.validation.best
        metrics: dict[str, Any] = {"phase": snapshot.phase, "step": snapshot.step}
        if scores and best:
            if f"validation/{best}" not in scores:
                known = ", ".join(name.partition("/")[2] for name in scores)
                raise UserError(f"validation.best: {best} is not measured here; there are {known}")
            metrics["score"] = scores[f"validation/{best}"]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if self.rank == 0:
                size = checkpoints.write(folder, snapshot, self._spent(), name=phase, scores=scores)
                self._tell(phase, step, {"checkpoint_mib": size / 2**20})
            self.report(metrics, folder if self.rank == 0 else None)

    def _spent(self) -> float:
        """Seconds of this training, over all its beginnings; not those that a kill undid."""
        return time.perf_counter() - self.since

    def _export(self, snapshot: Snapshot) -> None:
        """Write the stage's output, from the weights that the configuration chooses, into the last checkpoint."""
        if self.rank == 0:
            snapshot.export(self.stage, self.config.export)
        self._look("end", 0, "end")
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if self.rank == 0:
                self.stage.save(folder / OUTPUT)
                snapshot.exported = self.config.export
                checkpoints.write(folder, snapshot, self._spent())
            self.report({"phase": snapshot.phase, "step": 0}, folder if self.rank == 0 else None)
