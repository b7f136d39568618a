"""What a stage is to the loop that trains it: phases of steps over modules, an engine for each module."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.training.config import Duration, Optimizer, TrainConfig

Metrics = dict[str, Tensor]


def means(metrics: Metrics, names: Sequence[str]) -> Tensor:
    """The named metrics' means, (N,), on the GPU where one of them is: a stage may have counted some on the CPU."""
    values = [torch.as_tensor(metrics[name]).detach().float().mean() for name in names]
    device = next((value.device for value in values if value.device.type != "cpu"), torch.device("cpu"))
    return torch.stack([value.to(device) for value in values]) if values else torch.zeros(0)


@dataclass
class Phase:
    """One training phase. `engines` maps names to the modules trained and how; `step` trains on one micro-batch."""

    name: str
    duration: Duration
    engines: dict[str, tuple[nn.Module, Optimizer]]
    step: Callable[["Step"], Metrics]


@dataclass
class Step:
    """What a phase's step function gets, once for every micro-batch.

    index: the optimisation step in the phase. batch: this micro-batch's rows ("key", "hq", "lq": (b, 3, S, S) in
    [-1, 1]; more where there is a latent cache). engines: by name; each gets `backward(loss)` and `step()` every time
    and moves its weights after the step's last micro-batch. part: which of the `parts` slices of the step's global
    batch these rows are, over ranks and micro-batches. Losses are means over rows: means over parts are then taken.
    """

    index: int
    batch: dict[str, Any]
    engines: dict[str, Any]
    generator: torch.Generator
    part: int = 0
    parts: int = 1

    def draw(self, sample: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        """This part's slice of numbers drawn for the global batch: they depend on neither ranks nor micro-batches.

        `sample(shape, generator=...)` is torch.randn or alike; `shape` is the slice's, on the pictures' device.
        """
        count, *rest = shape
        drawn = sample((count * self.parts, *rest), generator=self.generator)
        return drawn[self.part * count : (self.part + 1) * count].to(self.batch["hq"].device)


class Stage(Protocol):
    """A stage of training as the worker loop sees it; made by Stage(config, device, origin).

    origin: {"runs": MLflow run ids by stage, "dataset_digest": ...}, what an output says it came from. A stage heeds
    `config.activation_checkpointing` itself. Made twice of one configuration, it holds the same tensors: a phase may
    begin in a freshly made stage, as it does after a resume.
    """

    Config: type[TrainConfig]

    def state(self) -> dict[str, Tensor]:
        """What training changes in any phase: the live parameters themselves, and buffers; nothing frozen."""

    def phases(self) -> Iterator[Phase]:
        """The phases in order; code between two yields runs when the former has ended (again after a resume)."""

    def save(self, folder: Path) -> None:
        """Write the stage's output."""

    def drawings(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Pictures, uint8 RGB by name, of what the stage does to a few validation pairs; "sheet" is one of them."""

    def validate(self, batch: dict[str, Any]) -> Metrics:
        """Means over a batch of validation pairs, by name."""


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
