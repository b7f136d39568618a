"""Training in this process, without Ray: for debugging, and where there is no cluster to be had."""

import contextlib
import fnmatch
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipelines.runs import NOTE, OWN
from pipelines.store import Store
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
        if "deepspeed" in sys.modules:  # it remembers groups, and would look for these ones the next time
            from deepspeed.comm import comm
            from deepspeed.utils import groups

            comm.cdb = groups._WORLD_GROUP = None


def keeper(run: Store, validation: Validation) -> Callable[[dict[str, Any], Path | None], None]:
    """What takes a training's checkpoints into a run's folder, each whole or not at all, the last and the best kept."""

    def keep(metrics: dict[str, Any], checkpoint: Path | None) -> None:
        if checkpoint is None:
            return
        before = fnmatch.filter(run.names(), OWN)
        number = int(before[-1].partition("_")[2]) + 1 if before else 0
        target = f"checkpoint_{number:06d}"
        with run.folder(target, receipt=NOTE) as folder:
            shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        whole = [*(name for name in before if run.exists(f"{name}/{NOTE}")), target]
        for old in {*before} - {*whole[-LAST:], _best(run, whole, validation)}:
            run.remove(old)

    return keep


def _best(run: Store, names: list[str], validation: Validation) -> str | None:
    sign = 1 if validation.direction == "max" else -1
    metric = f"validation/{validation.best}"
    scores = {name: checkpoints.note(run.label(name)).get("scores", {}).get(metric) for name in names}
    scored = {name: sign * score for name, score in scores.items() if score is not None}
    return max(scored, key=lambda name: scored[name]) if scored else None
