"""Weights after a few steps under DeepSpeed, beside those of plain PyTorch: `python -m tests.exactness` prints a table.

Plain PyTorch does the same micro-batches and the same reductions, written out below: gradients are summed over
micro-batches and averaged over ranks.
"""

import os
import queue
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from osdface import presets
from osdface.base import new_base, save_base
from osdface.quantizer import VectorQuantizer
from pipelines.train_osd import OSDConfig, OSDStage
from pipelines.train_vre import VREConfig, VREStage
from pipelines.training import Step, engines
from pipelines.training.alone import process_group
from pipelines.training.engines import Engine

CPU = torch.device("cpu")
BATCH = 4  # pictures of an optimisation step
STEPS = 3
SGD = {"name": "sgd", "lr": 0.1}
ADAM = {"name": "adam", "lr": 1e-3, "eps": 1e-3}  # a large epsilon: Adam divides by gradients near nothing
OPTIMIZERS = {
    "sgd": SGD,
    "clipped": SGD | {"clip": 0.05},
    "adam": ADAM,
    "lora+": ADAM | {"lora_ratio": 4},  # of generator and discriminator alone
}
PHASES = {"hq": 0, "lq": 1, "association": 2, "osd": 0}


class Cell(NamedTuple):
    """What is compared: a phase, and how it is run."""

    phase: str
    zero: int
    accumulation: int = 1
    optimizer: str = "sgd"

    def named(self) -> str:
        """The row of the table."""
        return f"{self.phase} {self.optimizer}"


class Plain:
    """An engine's part, in plain PyTorch."""

    def __init__(self, module, how, config, *_):
        self.module, self.how, self.accumulation, self.seen = module, how, config.accumulation, 0
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = how.build(module)

    def __call__(self, *inputs):
        return self.module(*inputs)

    def backward(self, loss):
        (loss / self.accumulation).backward()

    def step(self):
        self.seen += 1
        if self.seen % self.accumulation:
            return
        for parameter in self.parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        if self.how.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.how.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def steps(part_of: int, parts: list[int], device: torch.device) -> Iterator[Step]:
    """This rank's micro-batches of STEPS global batches of noise pictures."""
    for index in range(STEPS):
        source = torch.Generator().manual_seed(1000 + index)
        pictures = {name: torch.rand(BATCH, 3, 64, 64, generator=source) * 2 - 1 for name in ("lq", "hq")}
        for part in parts:
            mine = {name: rows.chunk(part_of)[part].to(device) for name, rows in pictures.items()}
            yield Step(index, mine, {}, torch.Generator().manual_seed(index), part, part_of)


def make(cell: Cell, folder: Path, device: torch.device) -> tuple:
    """A stage and its phase."""
    shared = {
        "preset": "tiny", "data": "none", "out": "none", "batch_size": BATCH, "workers": dist.get_world_size(),
        "accumulation": cell.accumulation, "zero_stage": cell.zero,
    }  # fmt: skip
    how = OPTIMIZERS[cell.optimizer]
    if cell.phase == "osd":
        losses = {"mse": 1.0, "perceptual": 0, "identity": 0, "adversarial": 0.1}
        more = {"base": folder / "base", "vre": folder / "vre", "duration": {"steps": STEPS}, "losses": losses}
        both = {"generator": how, "discriminator": how}
        config = OSDConfig.model_validate(shared | more | both)
        stage = OSDStage(config, device, {})
    else:
        how = how | {"lr": 0.02}
        durations = {name: {"steps": STEPS} for name in ("hq", "lq", "association")}
        losses = {"perceptual": 0, "adversarial_start": 1}
        config = VREConfig.model_validate(shared | durations | {"optimizer": how, "losses": losses})
        stage = VREStage(config, device, {})
        _spread(stage)
    return config, stage, list(stage.phases())[PHASES[cell.phase]]


def _spread(stage: VREStage) -> None:
    """Codes that lie far apart: among fresh ones, all near zero, rounding may decide which is the nearest."""
    source = torch.Generator().manual_seed(0)
    for module in stage.autoencoders.modules():
        if isinstance(module, VectorQuantizer):
            weight = module.embedding.weight.data
            weight.copy_(torch.randn(weight.shape, generator=source))


def trained(kind, cell: Cell, folder: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """All of the stage's tensors after STEPS steps."""
    config, stage, phase = make(cell, folder, device)
    made = {name: kind(module, how, config, STEPS) for name, (module, how) in phase.engines.items()}
    owners = {id(parameter): engine for engine in made.values() for parameter in engine.parameters}
    rank, world = dist.get_rank(), dist.get_world_size()
    parts = [micro * world + rank for micro in range(cell.accumulation)]
    for step in steps(world * cell.accumulation, parts, device):
        step.engines = made
        phase.step(step)
    whole = {}
    for name, tensor in stage.state().items():
        owner = owners.get(id(tensor))
        whole[name] = (owner.whole(tensor) if isinstance(owner, Engine) else tensor).detach().cpu().clone()
    for engine in made.values():
        if isinstance(engine, Engine):
            engine.close()
    return whole


def difference(cell: Cell, folder: Path, device: torch.device) -> float:
    """The largest difference of any weight between the two. Raises AssertionError where nothing was trained."""
    plain = trained(Plain, cell, folder, device)
    before = make(cell, folder, CPU)[1].state()
    moved = max(float((plain[name] - tensor).detach().abs().max()) for name, tensor in before.items())
    assert moved > 1e-4, f"{cell}: nothing was trained"
    deepspeed = trained(Engine, cell, folder, device)
    return max(float((deepspeed[name] - tensor).abs().max()) for name, tensor in plain.items())


def _process(rank: int, world: int, folder: Path, cells: list[Cell], results, device: torch.device) -> None:
    os.environ |= {"DS_ACCELERATOR": device.type, "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    engines.PERSISTENT = 0  # else ZeRO 3 leaves all parameters of a tiny network whole
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting-{world}", rank=rank, world_size=world)
    for cell in cells:
        found = difference(cell, folder, device)
        if rank == 0:
            results.put((cell, found))
    dist.barrier()
    dist.destroy_process_group()


def differences(world: int, folder: Path, cells: list[Cell], device: torch.device = CPU) -> dict[Cell, float]:
    """The differences of all cells, each compared in `world` processes. `folder` holds a base and a stage-1 output."""
    context = mp.get_context("spawn")
    results = context.Queue()
    started = mp.start_processes(
        _process, (world, folder, cells, results, device), world, join=False, start_method="spawn"
    )
    found: dict[Cell, float] = {}
    while len(found) < len(cells):
        try:
            cell, value = results.get(timeout=1)
            found[cell] = value
        except queue.Empty:
            started.join(timeout=0.01)  # raises what a process raised
    while not started.join():
        pass
    return found


def weights(cell: Cell, folder: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """All of the stage's tensors after STEPS steps of plain PyTorch in this process, on the CPU."""
    with process_group(device):
        return trained(Plain, cell, folder, device)


def inputs(folder: Path) -> Path:
    """A base and a stage-1 output, untrained, in a folder."""
    torch.manual_seed(0)
    save_base(new_base(presets.preset("tiny")), folder / "base")
    phase = {"steps": 1}
    config = VREConfig.model_validate(
        {
            "preset": "tiny", "data": "none", "out": "none", "batch_size": 4, "hq": phase, "lq": phase,
            "association": phase, "optimizer": SGD, "losses": {"perceptual": 0},
        }
    )  # fmt: skip
    VREStage(config, CPU, {}).save(folder / "vre")
    return folder


def matrix() -> list[Cell]:
    """Every cell of the table."""
    whole = [Cell(phase, zero, n) for phase in PHASES for zero in range(4) for n in (1, 2)]
    others = [Cell("osd", zero, 2, how) for how in ("adam", "lora+", "clipped") for zero in range(4)]
    return whole + others


def table(found: dict[int, dict[Cell, float]]) -> str:
    """Largest differences: a row for a phase and optimizer, a column for ZeRO x workers x accumulation."""
    columns = sorted({(cell.zero, world, cell.accumulation) for world, cells in found.items() for cell in cells})
    rows = list(dict.fromkeys(cell.named() for cells in found.values() for cell in cells))
    values = {
        (cell.named(), (cell.zero, world, cell.accumulation)): value
        for world, cells in found.items()
        for cell, value in cells.items()
    }
    lines = ["| ZeRO x workers x accumulation |" + "".join(f" {z}x{w}x{a} |" for z, w, a in columns)]
    lines.append("|---|" + "---|" * len(columns))
    for row in rows:
        shown = (f"{values[row, column]:.1e}" if (row, column) in values else "" for column in columns)
        lines.append(f"| {row} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        start = time.monotonic()
        made = inputs(Path(temporary))
        print(table({world: differences(world, made, matrix()) for world in (1, 2)}))
        print(f"{time.monotonic() - start:.0f} s")
