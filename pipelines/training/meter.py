"""What a training step costs: pictures a second, the share of time that waits for data, memory."""

import time
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from pipelines.training.stage import Metrics, means

T = TypeVar("T")
GIB = 2**30


class Meter:
    """Counts since it was last read."""

    def __init__(self, batch_size: int, device: torch.device):
        self.batch_size, self.device = batch_size, device
        self.waited = 0.0
        self.steps = 0
        self.since = time.perf_counter()

    def wait(self, results: Iterator[T]) -> T:
        """The next result; the time until it is there counts as waiting."""
        start = time.perf_counter()
        result = next(results)
        self.waited += time.perf_counter() - start
        return result

    def step(self) -> None:
        """A step has been made."""
        self.steps += 1

    def read(self) -> dict[str, float]:
        """pictures_per_second (all workers), data_wait (share of the time), memory_gib (most since the beginning)."""
        now = time.perf_counter()
        passed = max(now - self.since, 1e-9)
        values = {
            "pictures_per_second": self.steps * self.batch_size / passed,
            "data_wait": self.waited / passed,
            "memory_gib": self._memory() / GIB,
        }
        self.since, self.steps, self.waited = now, 0, 0.0
        return values

    def _memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def averaged(seen: list[Metrics]) -> dict[str, float]:
    """Means over micro-batches and ranks, of metrics that every one of them has. Every rank calls it."""
    names = sorted(set.intersection(*(set(metrics) for metrics in seen)))
    if not names:
        return {}
    values = torch.stack([means(metrics, names) for metrics in seen]).mean(0)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return dict(zip(names, values.tolist(), strict=True))
