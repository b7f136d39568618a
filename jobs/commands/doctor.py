"""osdface doctor: what this machine has and what that switches off."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from jobs import console
from jobs.commands import weights as weights_command
from osdface.config import home

PACKAGES = (
    "osdface", "torch", "torchvision", "diffusers", "peft", "albumentations", "numpy", "opencv-python-headless",
    "dlib-bin", "ray", "deepspeed", "mlflow", "pyarrow", "insightface", "lpips", "pyiqa",
)  # fmt: skip


def doctor() -> dict[str, Any]:
    """Show versions, devices, memory, the compiler for DeepSpeed's op, and third-party weights."""
    import torch

    from osdface import weights

    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    files = weights.status(check=True)
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "home": str(home()),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _gib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "disk_free_gib": _gib(shutil.disk_usage(_nearest(home())).free),
        "gpus": [{"name": device.name, "memory_gib": _gib(device.total_memory)} for device in devices],
        "compiler": {"c++": shutil.which(os.environ.get("CXX", "c++")), "ninja": shutil.which("ninja")},
        "packages": {name: _version(name) for name in PACKAGES},
        "weights": [status._asdict() for status in files],
    }
    console.show(_machine(result))
    if missing := [name for name, path in result["compiler"].items() if not path]:
        console.say(
            f"[yellow]Without {' and '.join(missing)} DeepSpeed cannot compile its op, so training won't start.[/]"
        )
    weights_command.tables(files)
    return result


def _machine(result: dict[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name in ("python", "home", "cpus"):
        grid.add_row(name, escape(str(result[name])))
    grid.add_row("memory", f"{result['memory_gib']} GiB")
    grid.add_row("disk", f"{result['disk_free_gib']} GiB free for home")
    gpus = [f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in result["gpus"]]
    grid.add_row("GPUs", ", ".join(gpus) or "none: training and restoring run on the CPU")
    for name, path in result["compiler"].items():
        grid.add_row(name, escape(path) if path else "[yellow]not found[/]")
    found = {name: number for name, number in result["packages"].items() if number}
    grid.add_row("packages", ", ".join(f"{name} {number}" for name, number in found.items()))
    if missing := result["packages"].keys() - found:
        grid.add_row("not installed", f"[yellow]{', '.join(sorted(missing))}[/] (`make install` brings them)")
    return grid


def _gib(size: int) -> float:
    return round(size / 2**30, 1)


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def register(app: typer.Typer) -> None:
    """Add the command."""
    console.command(app, "doctor", "osdface doctor")(doctor)
