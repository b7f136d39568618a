"""What goes with a job: the working directory, within bounds, and the environment it runs in."""

import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env import packaging

from jobs.submission.spec import Job
from osdface.errors import UsageError, UserError
from pipelines.tracking import REVISION

# Beside .git, .venv and what .gitignore and .rayignore name, all of which Ray leaves out by itself.
EXCLUDES = [
    ".osdface", "*.egg-info", ".*_cache", "node_modules", "dist", "/build", "mlruns", "mlflow.db", "*.parquet",
    "*.ckpt", "*.pth", "*.tar", "*.zip", "/tests", "/docs",
]  # fmt: skip
LIMIT = 64 * 2**20  # bytes before compression; Ray holds it in the head's memory, and takes 512 MiB at most
LOCK = "requirements.lock"
# Of a job that is told to stop, before it is killed: it ends its workers and its run's record. Ray's own is 3 s.
STOP_SECONDS = 60
QUIET = logging.getLogger(__name__)  # since Ray logs every folder at which a walk is ended as an issue
QUIET.setLevel(logging.CRITICAL)


def measure(folder: Path, excludes: list[str], limit: int = LIMIT) -> int:
    """Bytes of `folder` that would be sent; looked for in Ray's own way, and no further than the limit.

    Raises UsageError if there is no folder, UserError naming its largest files if they are more than `limit`.
    """
    if not folder.is_dir():
        raise UsageError(f"--working-dir {folder}: no such folder")
    sizes: dict[Path, int] = {}

    def weigh(path: Path) -> None:
        if path.is_file():
            sizes[path] = path.stat().st_size
            if sum(sizes.values()) > limit:
                raise _TooLarge

    try:
        _travel(folder.absolute(), excludes, weigh)
    except _TooLarge:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:3]
        names = ", ".join(f"{path.relative_to(folder.absolute())} ({sizes[path] / 2**20:.1f} MiB)" for path in largest)
        raise UserError(
            f"{folder.absolute()} holds more than the {limit / 2**20:.0f} MiB that a job may bring, {names} among it; "
            "keep data on storage that the nodes share, name what to leave out in .rayignore, or give --working-dir"
        ) from None
    return sum(sizes.values())


class _TooLarge(Exception):
    pass


def _travel(folder: Path, excludes: list[str], handler: Callable[[Path], None]) -> None:
    match = packaging._get_excludes(folder, get_runtime_env_default_excludes() + excludes)
    packaging._dir_travel(folder, [match], handler, include_gitignore=True, logger=QUIET)


def environment(job: Job, folder: Path, given: dict[str, str], revision: str | None) -> dict[str, Any]:
    """Ray's runtime environment of a job. given: its cluster's environment variables.

    Raises as `measure` does, and UsageError if a lock is asked for and not there.
    """
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **given, **job.env}
    if revision:  # the package has no .git
        variables[REVISION] = revision
    if job.environment == "image":  # its code too: Ray lets nothing else go with an image
        return {"image_uri": job.image, "env_vars": variables}
    excludes = EXCLUDES + job.excludes
    measure(folder, excludes)
    runtime: dict[str, Any] = {"working_dir": str(folder.absolute()), "excludes": excludes, "env_vars": variables}
    if job.environment == "lock":
        runtime["uv"] = {"packages": locked(folder / LOCK), "uv_check": False}
    return runtime


def locked(lock: Path) -> list[str]:
    """The pins of a lock file for Ray's uv: without hashes, which uv would ask of torch too, and without Ray itself.

    torch isn't in the lock, since its build depends on the machine: the version that this environment has.
    """
    if not lock.is_file():
        raise UsageError(f"--env lock: {lock} is not there; give --working-dir, or use the cluster's own environment")
    lines = (line.removesuffix("\\").strip() for line in lock.read_text().splitlines())
    pins = [line for line in lines if line and not line.startswith(("#", "-", "ray=", "ray["))]
    return pins + [f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "torchvision")]
