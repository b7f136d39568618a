"""A Ray head with a dashboard, in processes of its own, as `ray start` makes one on a machine."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parent.parent


class Head(NamedTuple):
    """dashboard: its URL, to which jobs are submitted and applications deployed; logs: the session's folder of them."""

    dashboard: str
    logs: Path


@contextlib.contextmanager
def ray_head(
    environment: dict[str, str], cpus: int = 2, options: Sequence[str] = (), gcs: int | None = None
) -> Iterator[Head]:
    """A head whose processes have these variables beside this one's. options: more of `ray start`. gcs: its port."""
    port, temporary = free(), Path(tempfile.mkdtemp(prefix="rh"))  # short: Ray's sockets are under it
    environment = os.environ | {
        "RAY_TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    } | environment  # fmt: skip
    words = [
        Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={gcs or free()}",
        f"--num-cpus={cpus}", "--include-dashboard=true", f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={free()}",
        f"--dashboard-agent-grpc-port={free()}", f"--ray-client-server-port={free()}",
        f"--temp-dir={temporary}", "--disable-usage-stats", *options,
    ]  # fmt: skip
    told = temporary / "start.log"
    with told.open("wb") as log:
        head = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    try:
        wait(lambda: "Ray runtime started" in told.read_text() or head.poll() is not None, 300)
        assert head.poll() is None, told.read_text()
        yield Head(f"http://127.0.0.1:{port}", temporary / "session_latest" / "logs")
    finally:
        family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(30)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def free() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def wait(until, seconds: float) -> None:
    """Until it holds. Raises AssertionError where it does not in time."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
