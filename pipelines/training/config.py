"""What every stage's configuration has: data, machines, precision, optimizers, durations, validation."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import nn

from osdface.config import Strict
from osdface.errors import UsageError
from pipelines import outputs
from pipelines.pairs.manifest import Location
from pipelines.pairs.reading import PairDataset
from pipelines.synthesize.config import Virtual

# A folder, or a URL of any fsspec filesystem.
Out = Annotated[Path | str, BeforeValidator(lambda value: value if "://" in str(value) else Path(value))]
Progress = Callable[[str, int, int, dict[str, float]], None]  # what, done, of how many, values


class Duration(Strict):
    """How long a phase lasts: `steps`, or `epochs` over the training split."""

    steps: int | None = Field(default=None, ge=0)
    epochs: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one(self) -> "Duration":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a duration is either steps or epochs: give exactly one of the two")
        return self

    def resolve(self, steps_per_epoch: float) -> int:
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
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = Field(default=0, ge=0)

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Of the module's trainable parameters."""
        kind, options = self._kind()
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return kind(trained, lr=self.lr, weight_decay=self.weight_decay, **options)

    def _kind(self) -> tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]:
        if self.name == "sgd":
            return torch.optim.SGD, {}
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return kind, {"betas": self.betas, "eps": self.eps}

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by at a step of a phase of `steps`."""
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        return rise * (1 + math.cos(math.pi * step / steps)) / 2 if self.schedule == "cosine" else rise


class LoRAOptimizer(Optimizer):
    """An optimizer of a network with LoRA adapters.

    lora_ratio: how many times `lr` the matrices B (and biases) learn at: LoRA+ (Hayou et al. 2024), by peft. B begins
    at zero and A does not: at one rate for both, what is fast enough for B destroys A. Not in the paper.
    """

    lora_ratio: float = Field(default=1.0, gt=0)

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        if self.lora_ratio == 1:
            return super().build(module)
        from peft.optimizers import create_loraplus_optimizer

        kind, options = self._kind()
        rates = {"lr": self.lr, "loraplus_lr_ratio": self.lora_ratio, "loraplus_weight_decay": self.weight_decay}
        return create_loraplus_optimizer(module, kind, **rates, **options)


class Validation(Strict):
    """What is measured and drawn on the first `pictures` pairs of the split "val", every `every` steps of a phase.

    every: 0 validates before the first step and after the last one alone. best: the metric of `Stage.validate` by
    which a best checkpoint is kept beside the last one, and one is written at every validation; none: only the last
    ones are kept.
    """

    every: int = Field(default=0, ge=0)
    pictures: int = Field(default=8, ge=1)
    best: str | None = None
    direction: Literal["max", "min"] = "max"


class TrainConfig(Strict):
    """What every stage's configuration has.

    data: a pair dataset's folder or URL; or `{mode: virtual, sources: [...], ...}`: pairs made as they are read.
    fetch: URLs of what training starts from, by field (base, vre, init): every machine makes itself a copy.
    workers: 0 trains in this process, without Ray. ema: decay of an exponential moving average of all that is trained;
    export: which of the two weights the output has, which may be chosen again after the end. Half precision is
    DeepSpeed's, with fp32 weights partitioned over the ranks: zero_stage 0 is then the same as 1.
    """

    preset: str
    data: Location | Virtual
    out: Out
    fetch: dict[str, str] = {}
    # Share of pairs that aim at their retouched twin, as FFHQR's of FFHQ's pictures, where the dataset has twins; the
    # others at the picture that was degraded. The paper names both sets, and no ratio.
    twins: float = Field(default=1.0, ge=0, le=1)
    seed: int = 0
    batch_size: int = Field(ge=1)  # pictures of an optimisation step over all workers and micro-batches
    accumulation: int = Field(default=1, ge=1)  # micro-batches of an optimisation step on every worker
    workers: int = Field(default=2, ge=0)
    cpus_per_worker: float = 0.5
    gpus_per_worker: float = 0
    threads: int = 1  # CPU threads of a worker
    readers: int = Field(default=1, ge=1)  # threads of a worker that read and decode pairs ahead of it
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "parameters"] = "none"  # DeepSpeed's CPU offload; "parameters" with both
    activation_checkpointing: bool = False
    ema: float | None = Field(default=None, gt=0, lt=1)
    export: Literal["last", "ema"] = "last"
    checkpoint_every: int = Field(default=1000, ge=1)
    log_every: int = Field(default=10, ge=1)
    validation: Validation = Validation()
    max_failures: int = 0  # how often Ray Train restarts a failed worker group from the last checkpoint

    @property
    def folder(self) -> str:
        """The dataset's place; of virtual data once it has its index."""
        assert isinstance(self.data, str), "virtual data has no place before `launch` indexes it"
        return self.data

    @property
    def parts(self) -> int:
        """In how many micro-batches the pictures of an optimisation step are shared."""
        return max(self.workers, 1) * self.accumulation

    @property
    def micro_batch(self) -> int:
        """Pictures of a micro-batch."""
        return self.batch_size // self.parts

    def here(self) -> Self:
        """With this machine's copies of what is to be fetched. Raises UserError where there is none to be had."""
        if unknown := self.fetch.keys() - type(self).model_fields.keys():
            raise UsageError(f"fetch: {min(unknown)} is nothing that this training starts from")
        return self.model_copy(update={name: outputs.here(place) for name, place in self.fetch.items()})

    def settled(self) -> "TrainConfig":
        """With every "auto" replaced by what this machine has; asked once, before the run gets its digest."""
        return self

    def check(self) -> None:
        """Look at what the workers will read beside the data: weights of others, and what training starts from.

        Raises UserError or MissingWeights naming the file that is missing, damaged, or of another network.
        """

    def prepared(self, progress: Progress | None, address: str | None) -> "TrainConfig":
        """With what is computed once before training made, or found, and its place noted; default: nothing is."""
        return self

    def pairs(self, split: str) -> PairDataset:
        """The pairs that training reads."""
        return PairDataset(self.folder, split, twins=self.twins)

    def undivided(self) -> list[str]:
        """Options by which a step's result depends on how its batch is shared over workers and micro-batches.

        Where there are any, a run goes on with as many of both as it was begun with.
        """
        return []

    def durations(self) -> dict[str, Duration]:
        """The phases' durations by field, in order."""
        fields = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: value for name, value in fields if isinstance(value, Duration)}
