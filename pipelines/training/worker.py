"""The loop of one training worker."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from osdface.config import digest
from osdface.errors import UserError
from pipelines import tracking
from pipelines.pairs.reading import PairDataset, ShuffledBatches
from pipelines.training.config import Optimizer, TrainConfig
from pipelines.training.stage import Metrics, Phase, Stage, Step

Progress = Callable[[str, int, int, dict[str, float]], None]


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
            for drawing, image in self.stage.drawings(batch).items():
                self.run.image(f"{drawing}/{name}.png", image)
