"""osdface doctor: what this machine has and what that switches off."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from jobs import console

PACKAGES = (
    "osdface", "ray", "torch", "torchvision", "diffusers", "peft", "deepspeed", "albumentations", "pyarrow", "mlflow",
    "insightface", "lpips", "pyiqa", "opencv-python-headless", "numpy", "dlib-bin", "ninja",
)  # fmt: skip


def doctor() -> dict[str, Any]:
    """Show versions, devices, memory, the compiler for DeepSpeed's op, and third-party weights."""
    import torch

    from osdface import weights

    files = weights.status(check=True)
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "compiler": {tool: shutil.which(tool) for tool in ("g++", "ninja")},
        "weights": [status._asdict() for status in files],
    }
    for name, value in result.items():
        if name == "weights":
            continue
        console.say(f"[bold]{name}[/]  {value if not isinstance(value, dict) else ''}")
        if isinstance(value, dict):
            for key, inner in value.items():
                console.say(f"  {key:<24}{inner or 'not found'}")
    if not result["compiler"]["g++"]:
        console.say("no g++: DeepSpeed cannot compile its op, so training will not start; install a C++ compiler")
    console.say("[bold]third-party weights[/]")
    for status in files:
        console.say(f"  {_mark(status)} {status.name:<18}{_place(status)}")
    return result


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _mark(status: Any) -> str:
    return "[green]+[/]" if status.present else "[yellow]-[/]"


def _place(status: Any) -> str:
    if status.present:
        return f"{status.path} (digest {status.digest}; {status.licence})"
    return f"absent: no {status.switches_off} ({status.licence})"


def register(app: typer.Typer) -> None:
    console.command(app, "doctor", "osdface doctor")(doctor)
