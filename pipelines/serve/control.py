"""Starting, showing and ending endpoints of this $OSDFACE_HOME."""

import contextlib
import ipaddress
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from osdface.config import home
from osdface.errors import UsageError, UserError
from pipelines.serve import records
from pipelines.serve.settings import Loaded, Settings

READY = 300  # seconds that an endpoint may take to answer
POLL = 0.2


def up(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: Settings | None = None,
    follow: bool = True,
) -> dict[str, Any]:
    """Serve `model` until SIGINT or SIGTERM.

    Raises UserError for a port in use, a model that does not exist, an endpoint that does not come up; UsageError for
    one that others can reach and that asks for no keys.
    """
    from pipelines.serve import follow as following

    settings = settings or Settings()
    _require(host, port, settings)
    loaded, notice = following.first(model)
    try:
        record = _start(model, loaded, settings, host, port)
        print(f"serving {loaded.model.model} at {record['url']} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            _keep(record, model, follow, notice)
    finally:
        records.path(port).unlink(missing_ok=True)
        _end()
    return {"url": f"http://{host}:{port}", "ended": True}


def _start(model: str, loaded: Loaded, settings: Settings, host: str, port: int) -> dict[str, Any]:
    from pipelines import cluster

    cluster.connect()
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which takes SIGTERM for itself
        signal.signal(number, signal.default_int_handler)
    try:
        return deploy(model, loaded, settings, host, port)
    except RuntimeError as error:
        raise UserError(f"{model}: the endpoint does not come up: {error}") from error


def deploy(model: str, loaded: Loaded, settings: Settings, host: str, port: int) -> dict[str, Any]:
    """Have the Ray that this process is in serve a model; returns what is recorded of it.

    Raises RuntimeError with what Serve says where that fails.
    """
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from pipelines.serve import application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    config = application.configuration(settings, loaded, host, port)
    serve.start(http_options=config["http_options"], proxy_location=config["proxy_location"])
    client: Any = _get_global_client()
    client.deploy_apps(ServeDeploySchema.model_validate(config))
    _wait()
    reached = {"ray": ray.get_runtime_context().gcs_address, "tokens": os.environ.get("RAY_AUTH_MODE") == "token"}
    facts = {"url": f"http://{host}:{port}", "host": host, "ref": model, **reached}
    return records.write(port, **facts, **loaded.model.model_dump())


def _wait() -> None:
    """Until the application runs. Raises RuntimeError with what it says otherwise."""
    from ray import serve

    deadline = time.monotonic() + READY
    while time.monotonic() < deadline:
        application = next(iter(serve.status().applications.values()), None)
        if application and application.status == "RUNNING":
            return
        if application and (fault := _fault(application)):
            raise RuntimeError(fault)
        time.sleep(POLL)
    raise RuntimeError(f"not within {READY} s")


def _fault(application: Any) -> str:
    """Why an application does not run: the last line of what it or a failing deployment says, mostly a traceback."""
    from pipelines.serve.live import last_line

    for deployment in application.deployments.values():
        if deployment.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            return last_line(deployment.message)
    return last_line(application.message) if application.status == "DEPLOY_FAILED" else ""


def _keep(record: dict[str, Any], model: str, follow: bool, notice: str) -> None:
    """Look after the endpoint, for ever."""
    from pipelines.serve.follow import EVERY, Follower
    from pipelines.serve.live import Running

    endpoint = Running(record)
    if notice:
        endpoint.note(notice)
    follower = Follower(endpoint, model, follow)
    while True:
        time.sleep(EVERY)
        try:
            follower.look()
        except Exception as error:  # the endpoint serves on; the next look may find it better
            print(f"looking after the endpoint: {error}", file=sys.stderr, flush=True)


def _end() -> None:
    import ray
    from ray import serve

    with contextlib.suppress(Exception):
        serve.shutdown()
    ray.shutdown()


def detached(host: str, port: int, arguments: Sequence[str]) -> dict[str, Any]:
    """Start `osdface serve up` with these arguments in the background; returns its record once it answers."""
    _require_free(host, port)
    log = home() / "serve" / f"{port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "jobs.cli", "serve", "up", *arguments, "--host", host, "--port", str(port)]
    with log.open("w") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + READY
        while time.monotonic() < deadline:
            if child.poll() is not None:
                raise UserError(f"the endpoint ended at once: {_last_line(log).removeprefix('Error: ')} (log: {log})")
            if records.path(port).exists() and answers(host, port):
                return json.loads(records.path(port).read_text())
            time.sleep(POLL)
        raise UserError(f"the endpoint did not answer within {READY} s; its log is {log}")
    except BaseException:
        _terminate(child.pid)
        raise


def status() -> list[dict[str, Any]]:
    """The endpoints that run, each with whether it answers, and what `/readyz` says."""
    return [record | _ready(record["host"], record["port"]) for record in records.alive()]


def down() -> list[str]:
    """End the endpoints that this $OSDFACE_HOME started, and nothing else; returns their addresses."""
    ended = []
    for record in records.alive():
        _terminate(record["pid"])
        records.path(record["port"]).unlink(missing_ok=True)
        ended.append(record["url"])
    return ended


def _terminate(pid: int) -> None:
    """SIGTERM, then SIGKILL after 30 s."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.terminate()
        try:
            process.wait(30)
        except psutil.TimeoutExpired:
            os.kill(pid, signal.SIGKILL)


def _require(host: str, port: int, settings: Settings) -> None:
    require_keys(host, settings)
    _require_free(host, port)


def require_keys(host: str, settings: Settings) -> None:
    """Raise UsageError for an address that others reach, with no keys."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost" and not settings.keys:
        raise UsageError(
            f"--host {host}: others reach this address, and no key is asked for; `osdface serve key NAME` makes "
            "one for --config"
        )


def _require_free(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise UsageError(f"--port {port}: a port is a number from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"{host}:{port}: cannot listen there ({error.strerror}); give another --port") from None


def answers(host: str, port: int) -> bool:
    """Whether something there answers like an endpoint."""
    try:
        return httpx.get(f"http://{_reached(host)}:{port}/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _ready(host: str, port: int) -> dict[str, Any]:
    try:
        ready = httpx.get(f"http://{_reached(host)}:{port}/readyz", timeout=10)
        told = ready.json() if ready.status_code == 200 else {"notice": ready.json()["detail"]}
    except (httpx.HTTPError, ValueError, KeyError):
        return {"answers": False}
    return {"answers": ready.status_code == 200, **told}


def _reached(host: str) -> str:
    """Where an address that listens everywhere is reached from here."""
    return "127.0.0.1" if host == "0.0.0.0" else host


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
