"""What every training stage shares in a worker: DeepSpeed engines, data order, checkpoints, resume, reporting.

A stage is a sequence of phases; a phase is a number of steps over some modules, an engine for each. Stages live in
train_base.py, train_vre.py and train_osd.py and know nothing of Ray; launch.py starts the workers.
"""

import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from osdface.config import Strict, digest
from osdface.errors import UserError
from pipelines import tracking
from pipelines.pairs.manifest import Location
from pipelines.pairs.reading import PairDataset, ShuffledBatches
from pipelines.synthesize.config import Virtual

Metrics = dict[str, Tensor]
Progress = Callable[[str, int, int, dict[str, float]], None]


class Duration(Strict):
    """How long a phase lasts: `steps`, or `epochs` over the training split."""

    steps: int | None = Field(None, ge=0)
    epochs: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one(self) -> "Duration":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a duration is either steps or epochs: give exactly one of the two")
        return self

    def resolve(self, steps_per_epoch: int) -> int:
        """The number of optimisation steps."""
        return self.steps if self.steps is not None else round((self.epochs or 0) * steps_per_epoch)


class Optimizer(Strict):
    """Adam, AdamW or SGD, and how its steps are taken.

    clip: limit of the gradient's norm (0: none; DeepSpeed's own default would be 1). warmup: steps over which the
    learning rate rises from 0. schedule: "cosine" lets it fall to 0 by the phase's last step; the paper names none.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if self.name == "sgd":
            return torch.optim.SGD(parameters, self.lr, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return kind(parameters, self.lr, betas=self.betas, weight_decay=self.weight_decay)

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by at a step of a phase of `steps`."""
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        return rise * (1 + math.cos(math.pi * step / steps)) / 2 if self.schedule == "cosine" else rise


class TrainConfig(Strict):
    """What every stage's configuration has.

    data: a pair dataset's folder or URL; or `{mode: virtual, sources: [...], ...}`: pairs made as they are read.
    """

    preset: str
    data: Location | Virtual
    out: Path
    seed: int = 0
    batch_size: int  # pictures a step over all workers
    workers: int = 2
    cpus_per_worker: float = 0.5
    gpus_per_worker: float = 0
    threads: int = 1  # CPU threads of a worker
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    zero_stage: Literal[0, 1, 2] = 0
    checkpoint_every: int = 1000
    log_every: int = 10
    max_failures: int = 0  # how often Ray Train restarts a failed worker group from the last checkpoint

    @property
    def folder(self) -> str:
        """The dataset's place; of virtual data once it has its index."""
        assert isinstance(self.data, str), "virtual data has no place before `launch` indexes it"
        return self.data

    def weights(self) -> list[str]:
        """The third-party weight files (names in `osdface.weights`) that this configuration needs."""
        return []


@dataclass
class Phase:
    """One training phase. `engines` maps names to the modules trained and how; `step` does one optimisation step."""

    name: str
    duration: Duration
    engines: dict[str, tuple[nn.Module, Optimizer]]
    step: Callable[["Step"], Metrics]


@dataclass
class Step:
    """What a phase's step function gets: this rank's pictures ((b, 3, S, S) in [-1, 1]), the engines, and noise."""

    index: int
    batch: dict[str, Any]
    engines: dict[str, Any]
    generator: torch.Generator
    rank: int = 0
    world: int = 1

    def draw(self, sample: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        """This rank's slice of numbers drawn for the global batch, so that they do not depend on the world size.

        `sample(shape, generator=...)` is torch.randn or alike; `shape` is the slice's, on the pictures' device.
        """
        count, *rest = shape
        drawn = sample((count * self.world, *rest), generator=self.generator)
        return drawn[self.rank * count : (self.rank + 1) * count].to(self.batch["hq"].device)


class Stage(Protocol):
    """A stage of training as the worker loop sees it; made by Stage(config, device, origin).

    origin: {"runs": MLflow run ids by stage, "dataset_digest": ...}, what an output says it came from.
    """

    Config: type[TrainConfig]

    def state(self) -> dict[str, Tensor]:
        """The live tensors that training changes in any phase; never those of a frozen part."""

    def phases(self) -> Iterator[Phase]:
        """The phases in order; code between two yields runs when the former has ended (again after a resume)."""

    def save(self, folder: Path) -> None:
        """Write the stage's output."""

    def sheet(self, batch: dict[str, Any]) -> np.ndarray:
        """A picture of what the stage does to a few validation pictures, uint8 RGB."""


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """The module with all parameters frozen: how a generator's step passes through its discriminator.

    Always the module inside an engine, never the engine: calling another engine in a step breaks or falsifies
    DeepSpeed's gradients at every ZeRO stage.
    """
    thawed = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield module
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


def engine(module: nn.Module, optimizer: Optimizer, config: TrainConfig, steps: int) -> Any:
    """A DeepSpeed engine over the module's trainable parameters, for a phase of `steps`."""
    import deepspeed

    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    settings = {
        "train_micro_batch_size_per_gpu": config.batch_size // config.workers,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.clip,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
        "steps_per_print": 10**12,
    }
    return deepspeed.initialize(
        model=module,
        model_parameters=parameters,
        optimizer=optimizer.build(parameters),
        lr_scheduler=lambda built: LambdaLR(built, lambda step: optimizer.factor(step, steps)),
        config=settings,
    )[0]


@dataclass
class Worker:
    """The loop of one training worker."""

    config: TrainConfig
    stage: Stage
    device: torch.device
    rank: int
    world: int
    report: Callable[[dict[str, Any], Path], None]
    run: tracking.Run | None = None  # rank 0 only
    progress: Callable[..., None] | None = None
    data: PairDataset = field(init=False)

    def __post_init__(self) -> None:
        self.data = PairDataset(self.config.folder, "train")

    def train(self, checkpoint: Path | None) -> None:
        """Run every phase that the checkpoint does not have behind it, then report the stage's output."""
        state = json.loads((checkpoint / "state.json").read_text()) if checkpoint else {"phase": 0, "step": 0}
        if state.get("finished"):
            return
        if checkpoint:
            tensors = load_file(checkpoint / "state.safetensors")
            for name, tensor in self.stage.state().items():
                tensor.data.copy_(tensors[name])
        self._draw_sheet("start")
        for number, phase in enumerate(self.stage.phases()):
            if number < state["phase"]:
                continue
            resumed = number == state["phase"] and state["step"] > 0
            self._train_phase(number, phase, state["step"] if resumed else 0, checkpoint if resumed else None)
        self._draw_sheet("end")
        with tempfile.TemporaryDirectory() as folder:
            if self.rank == 0:
                self.stage.save(Path(folder) / "output")
                (Path(folder) / "state.json").write_text(json.dumps({"finished": True}))
            self.report({}, Path(folder))

    def _train_phase(self, number: int, phase: Phase, start: int, checkpoint: Path | None) -> None:
        batches = ShuffledBatches(self.data, self.config.batch_size, self.config.seed, self.rank, self.world)
        steps = phase.duration.resolve(batches.per_epoch)
        engines = {name: engine(module, how, self.config, steps) for name, (module, how) in phase.engines.items()}
        for name, built in engines.items():
            if checkpoint:
                # Not strict: frozen parameters are not in it.
                built.load_checkpoint(str(checkpoint / name), tag="state", load_module_strict=False)
        for index, rows in zip(range(start, steps), batches.from_step(start), strict=False):
            batch = self._to_device(self.data.batch(rows))
            generator = torch.Generator().manual_seed(int(digest([self.config.seed, number, index])[:15], 16))
            metrics = phase.step(Step(index, batch, engines, generator, self.rank, self.world))
            self._refuse_nan(phase.name, index, metrics, batch["key"])
            self._log(phase.name, index, steps, metrics)
            if (index + 1) % self.config.checkpoint_every == 0 and index + 1 < steps:
                self._checkpoint(number, index + 1, engines)
        for built in engines.values():
            built.destroy()
        self._checkpoint(number + 1, 0, {})

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.precision]
        return {
            key: value.to(self.device, dtype) if isinstance(value, Tensor) else value for key, value in batch.items()
        }

    def _refuse_nan(self, phase: str, index: int, metrics: Metrics, keys: list[str]) -> None:
        for name, value in metrics.items():
            if not torch.isfinite(torch.as_tensor(value)).all():
                raise UserError(
                    f"{phase}/{name} is not a number at step {index} (pairs {', '.join(keys[:4])}...); the last "
                    "checkpoint is kept: lower the learning rate or look at these pairs"
                )

    def _log(self, phase: str, index: int, steps: int, metrics: Metrics) -> None:
        last = index + 1 == steps
        if self.rank or not (last or index % self.config.log_every == 0):
            return
        values = {f"{phase}/{name}": float(value) for name, value in metrics.items()}
        if self.run:
            self.run.metrics(values, index)
        if self.progress:
            self.progress(phase, index + 1, steps, values)

    def _checkpoint(self, phase: int, step: int, engines: dict[str, Any]) -> None:
        """Report where training stands: the finished modules, and the running engines' own state."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            for name, built in engines.items():
                (path / name / "state").mkdir(parents=True)
                built.save_checkpoint(str(path / name), tag="state", exclude_frozen_parameters=True)
            if self.rank == 0:
                tensors = {k: v.detach().cpu().contiguous() for k, v in self.stage.state().items()}
                save_file(tensors, path / "state.safetensors")
                (path / "state.json").write_text(json.dumps({"phase": phase, "step": step}))
            self.report({"phase": phase, "step": step}, path)

    def _draw_sheet(self, name: str) -> None:
        if self.rank == 0 and self.run:
            data = PairDataset(self.config.folder, "val")
            batch = self._to_device(data.batch(range(min(8, len(data)))))
            self.run.image(f"sheets/{name}.png", self.stage.sheet(batch))
