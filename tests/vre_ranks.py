"""Stage 1's association phase on one rank or two, in plain PyTorch: what tests compare."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipelines.train_vre import VREConfig, VREStage
from pipelines.training import Step

CPU = torch.device("cpu")
STEPS, BATCH = 3, 4


class Plain:
    """An engine in plain PyTorch: gradients averaged over ranks, then an optimizer's step."""

    def __init__(self, module, how):
        self.module, self.parameters = module, [p for p in module.parameters() if p.requires_grad]
        self.optimizer = how.build(module)

    def __call__(self, *inputs):
        return self.module(*inputs)

    def backward(self, loss):
        self.optimizer.zero_grad()
        loss.backward()

    def step(self):
        for parameter in self.parameters if dist.is_initialized() else ():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        self.optimizer.step()


def steps(part: int = 0, parts: int = 1, count: int = STEPS):
    """This part's rows of global batches of noise pictures."""
    for index in range(count):
        source = torch.Generator().manual_seed(1000 + index)
        pictures = {name: torch.rand(BATCH, 3, 64, 64, generator=source) * 2 - 1 for name in ("hq", "lq")}
        mine = {name: rows.chunk(parts)[part] for name, rows in pictures.items()}
        yield Step(index, mine, {}, torch.Generator().manual_seed(index), part, parts)


def configuration(**changes) -> VREConfig:
    durations = {name: {"steps": STEPS} for name in ("hq", "lq", "association")}
    settings = {"preset": "tiny", "data": "none", "out": "none", "batch_size": BATCH, "workers": 1}
    losses = {"perceptual": 0} | changes.pop("losses", {})
    how = {"optimizer": {"name": "sgd", "lr": 0.01}, "losses": losses}
    return VREConfig.model_validate(settings | durations | how | changes)


def trained(config: VREConfig, phase: str = "association", kind=Plain) -> tuple[VREStage, list[dict]]:
    """A stage after STEPS steps of a phase, and their metrics."""
    stage = VREStage(config, CPU, {})
    chosen = next(found for found in stage.phases() if found.name == phase)
    engines = {name: kind(module, how) for name, (module, how) in chosen.engines.items()}
    there = dist.is_initialized()
    metrics = []
    for step in steps(dist.get_rank() if there else 0, dist.get_world_size() if there else 1):
        step.engines = engines
        metrics.append(chosen.step(step))
    return stage, metrics


def _rank(rank: int, folder: Path, configs: list[VREConfig]) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = [trained(config) for config in configs]
    states = [{name: tensor.detach() for name, tensor in stage.state().items()} for stage, _ in found]
    torch.save([states, [metrics for _, metrics in found]], folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def on_two_ranks(folder: Path, configs: list[VREConfig]) -> list[tuple[list[dict], list[list[dict]]]]:
    """Each rank's tensors, and metrics by step, of each configuration."""
    mp.spawn(_rank, (folder, configs), 2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
