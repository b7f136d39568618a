"""Building the networks of others from the files of this machine, where their own constructors would fetch them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from osdface.errors import UserError
from osdface.tensors import check, read_pickle, shapes


def tensor(images: np.ndarray, device: str) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255


def frozen(network: nn.Module, device: str) -> nn.Module:
    return network.eval().requires_grad_(False).to(device)


@contextmanager
def replaced(module: ModuleType, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """While a constructor runs, what it calls to fetch a network or its weights is another function."""
    there = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, there)


def fill(network: nn.Module, path: Path, what: str) -> None:
    """Load a published file, a state dict, bare or under "state_dict", into the network that it is of.

    Raises UserError naming the file and the first tensors that differ; nothing in it is executed.
    """
    read = read_pickle(path)
    if isinstance(read, Mapping) and isinstance(read.get("state_dict"), Mapping):
        read = read["state_dict"]
    if not isinstance(read, Mapping):
        raise UserError(f"{path}: not {what}'s weights: it holds something else than a state dict")
    found = {key.removeprefix("module."): value for key, value in read.items() if not _counts(key)}
    wanted = {key: shape for key, shape in shapes(network.state_dict()).items() if not _counts(key)}
    check(f"{path}: not {what}'s weights", wanted, found)
    network.load_state_dict(found, strict=False)


def torchvision(name: str, path: Path) -> nn.Module:
    """torchvision's network of that name, of which only the convolutional part, `features`, is filled."""
    from torchvision.models import get_model

    with torch.device("meta"):
        network = get_model(name)
    read = read_pickle(path)
    wanted = {f"features.{key}": value.shape for key, value in network.features.state_dict().items()}
    found = {key: read[key] for key in wanted if key in read} if isinstance(read, Mapping) else {}
    check(f"{path}: not {name}'s weights", wanted, found)
    network.features.load_state_dict({key.removeprefix("features."): found[key] for key in wanted}, assign=True)
    return network


def _counts(key: str) -> bool:
    """What only training looks at, and the oldest files do not have."""
    return key.endswith("num_batches_tracked")
