"""Starting, showing and ending endpoints of this $OSDFACE_HOME."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from osdface.config import home
from osdface.errors import UsageError, UserError
from osdface.files import write_json

NAME = "osdface"  # of the Serve application
READY = 120  # seconds that a detached endpoint may take to answer


def up(model: str, host: str = "127.0.0.1", port: int = 8000, detach: bool = False) -> dict[str, Any]:
    """Serve `model` until SIGINT or SIGTERM, or, detached, return once it answers.

    Raises UserError for a port in use, a model that does not exist, an endpoint that does not come up.
    """
    _require_free(host, port)
    return _detached(model, host, port) if detach else _foreground(model, host, port)


def _foreground(model: str, host: str, port: int) -> dict[str, Any]:
    from ray import serve

    from pipelines import cluster
    from pipelines.serve.build import build

    application, told = build(model)
    cluster.connect()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which takes SIGTERM for itself
        signal.signal(number, signal.default_int_handler)
    try:
        try:
            serve.start(http_options={"host": host, "port": port}, proxy_location="HeadOnly")
            serve.run(application, name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise UserError(f"{model}: the endpoint does not come up: {_fault() or error}") from error
        record = _record(model, host, port, told.model_dump())
        write_json(_path(port), record)
        print(f"serving {told.model} at {record['url']} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    finally:
        _path(port).unlink(missing_ok=True)
        with contextlib.suppress(Exception):
            serve.shutdown()
        import ray

        ray.shutdown()
    return {"url": f"http://{host}:{port}", "ended": True}


def _fault() -> str:
    """Why the application does not run: the last line of what a failing deployment says, most often a traceback."""
    from ray import serve

    for deployment in serve.status().applications[NAME].deployments.values():
        lines = [line for line in deployment.message.splitlines() if line.strip()]
        if deployment.status == "DEPLOY_FAILED" and lines:
            return lines[-1].strip().rpartition("UserError: ")[2]
    return ""


def _detached(model: str, host: str, port: int) -> dict[str, Any]:
    log = home() / "serve" / f"{port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "jobs.cli", "serve", "up", "--model", model, "--host", host, "--port", str(port)]
    with log.open("w") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + READY
        while time.monotonic() < deadline:
            if child.poll() is not None:
                raise UserError(f"the endpoint ended at once: {_last_line(log).removeprefix('Error: ')} (log: {log})")
            if _path(port).exists() and _answers(host, port):
                return json.loads(_path(port).read_text())
            time.sleep(0.3)
        raise UserError(f"the endpoint did not answer within {READY} s; its log is {log}")
    except BaseException:
        _terminate(child.pid)
        raise


def status() -> list[dict[str, Any]]:
    """The endpoints that run, each with whether it answers."""
    return [record | {"answers": _answers(record["host"], record["port"])} for record in _records()]


def down() -> list[str]:
    """End the endpoints that this $OSDFACE_HOME started, and nothing else; returns their addresses."""
    ended = []
    for record in _records():
        _terminate(record["pid"])
        _path(record["port"]).unlink(missing_ok=True)
        ended.append(record["url"])
    return ended


def _path(port: int) -> Path:
    return home() / "serve" / f"{port}.json"


def _record(model: str, host: str, port: int, told: dict[str, str]) -> dict[str, Any]:
    process = psutil.Process()
    return {
        "url": f"http://{host}:{port}", "host": host, "port": port, "pid": process.pid,
        "started": process.create_time(), "ref": model, **told,
    }  # fmt: skip


def _records() -> list[dict[str, Any]]:
    """Records whose process still is the one that wrote them; others are removed."""
    found = []
    for path in sorted((home() / "serve").glob("*.json")):
        try:
            record = json.loads(path.read_text())
            process = psutil.Process(record["pid"])
            alive = abs(process.create_time() - record["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except (ValueError, KeyError, psutil.NoSuchProcess, FileNotFoundError):
            alive = False
        if alive:
            found.append(record)
        else:
            path.unlink(missing_ok=True)
    return found


def _terminate(pid: int) -> None:
    """SIGTERM, then SIGKILL after 30 s."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.terminate()
        try:
            process.wait(30)
        except psutil.TimeoutExpired:
            os.kill(pid, signal.SIGKILL)


def _require_free(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise UsageError(f"--port {port}: a port is a number from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"{host}:{port}: cannot listen there ({error.strerror}); give another --port") from None


def _answers(host: str, port: int) -> bool:
    try:
        return httpx.get(f"http://{host}:{port}/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
