"""What does not decompose over the ranks of a distributed training, taken over all of them.

Differentiable: a gradient is the sum of what all ranks' losses ask for, so that the mean over ranks of the gradients
that these losses give to weights is the gradient of one loss over all rows. Every rank must make the same calls in the
same order. Where torch.distributed is not in use there is one rank, and nothing is exchanged.
"""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as collective
from torch import Tensor, nn


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def summed(x: Tensor) -> Tensor:
    """The sum over ranks of tensors of one shape."""
    return collective.all_reduce(x) if count() > 1 else x


def mean(x: Tensor) -> Tensor:
    """The mean over ranks of tensors of one shape."""
    return summed(x) / count()


def gathered(x: Tensor) -> Tensor:
    """The ranks' tensors of one shape behind each other, along the first dimension."""
    return torch.cat(collective.all_gather(x)) if count() > 1 else x


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
