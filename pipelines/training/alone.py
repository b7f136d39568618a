"""Training in this process, without Ray: for debugging, and where there is no cluster to be had."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from osdface.files import aside
from pipelines.runs import OWN
from pipelines.training import checkpoints
from pipelines.training.config import Validation

LAST = 2  # checkpoints kept, and the best one


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """torch.distributed with this process alone, which DeepSpeed's engines find and use."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", "0")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def keeper(folder: Path, validation: Validation) -> Callable[[dict[str, Any], Path | None], None]:
    """What takes a training's checkpoints into a run's folder, each whole or not at all, the last and the best kept."""
    folder.mkdir(parents=True, exist_ok=True)

    def keep(metrics: dict[str, Any], checkpoint: Path | None) -> None:
        if checkpoint is None:
            return
        before = sorted(folder.glob(OWN))
        number = int(before[-1].name.partition("_")[2]) + 1 if before else 0
        target = folder / f"checkpoint_{number:06d}"
        temporary = aside(target)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(checkpoint, temporary)
        temporary.rename(target)
        kept = {*[*before, target][-LAST:], _best([*before, target], validation)}
        for old in set(before) - kept:
            shutil.rmtree(old)

    return keep


def _best(folders: list[Path], validation: Validation) -> Path | None:
    sign = 1 if validation.direction == "max" else -1
    name = f"validation/{validation.best}"
    scores = {folder: checkpoints.note(folder).get("scores", {}).get(name) for folder in folders}
    scored = {folder: sign * score for folder, score in scores.items() if score is not None}
    return max(scored, key=lambda folder: scored[folder]) if scored else None
