"""What does not decompose over the ranks of a distributed training, taken over all of them.

Differentiable: a gradient is the sum of what all ranks' losses ask for, so that the mean over ranks of the gradients
that these losses give to weights is the gradient of one loss over all rows. Every rank must make the same calls in the
same order. Where torch.distributed is not in use there is one rank, and nothing is exchanged.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def summed(x: Tensor) -> Tensor:
    """The sum over ranks of tensors of one shape."""
    return _Sum.apply(x) if count() > 1 else x


def mean(x: Tensor) -> Tensor:
    """The mean over ranks of tensors of one shape."""
    return summed(x) / count()


def gathered(x: Tensor) -> Tensor:
    """The ranks' tensors of one shape behind each other, along the first dimension."""
    if count() == 1:
        return x
    # A sum over ranks, each with zeros in the others' places, has the gradient that is wanted.
    places = [torch.zeros_like(x)] * count()
    places[dist.get_rank()] = x
    return summed(torch.cat(places))


class _Sum(torch.autograd.Function):
    """An all-reduce whose gradient is an all-reduce."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Sum.apply(gradient)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d with the statistics of all ranks' rows, on any device (torch's own refuses a CPU).

    Over the micro-batches that the ranks hold at one time: not over those that are accumulated one after another. For
    training alone: it keeps no running statistics.
    """

    def __init__(self, channels: int):
        super().__init__(channels, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        center = mean(x.mean((0, 2, 3), keepdim=True))
        variance = mean((x - center).square().mean((0, 2, 3), keepdim=True))
        weight, bias = (parameter.reshape(1, -1, 1, 1) for parameter in (self.weight, self.bias))
        return (x - center) * (variance + self.eps).rsqrt() * weight + bias
