"""Stock `serve deploy` of what `serve build` writes: replicas by queues, refusals, traces by Ray Serve's own hook."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from jobs import console
from jobs.cli import app
from tests.heads import free, ray_head, wait
from tests.serving import assert_problem, encoded, picture

pytestmark = pytest.mark.full
TRACES = {
    "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "ray.serve._private.tracing_utils:default_tracing_exporter",
    "RAY_SERVE_TRACING_SAMPLING_RATIO": "1.0",
}
HEADERS = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "pipelines.serve.proxy:middlewares"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
TOKEN = "a-token-that-is-long-enough-for-ray"
AUTHORIZED = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
SIDE = 256  # of pictures that take a while


@pytest.fixture(scope="module")
def deployed(bundle_folder, tmp_path_factory):
    """The head it runs on, and a client of it."""
    port, file = free(), tmp_path_factory.mktemp("deployed") / "serve.yaml"
    words = ["serve", "build", "--model", str(bundle_folder), "--port", str(port), "--out", str(file)]
    assert console.run(app, [*words, "--set", "replicas=[1, 2]", "--set", "waiting=8"]) == 0
    home = {"OSDFACE_HOME": str(tmp_path_factory.mktemp("home")), "OMP_NUM_THREADS": "1"}
    with ray_head(TRACES | HEADERS | AUTHORIZED | home) as head:
        command = [Path(sys.executable).with_name("serve"), "deploy", str(file), "--address", head.dashboard]
        subprocess.run(command, env=os.environ | AUTHORIZED, check=True, timeout=120)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=150) as client:
            wait(lambda: _ready(client), 180)
            yield head, client


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def test_it_answers_and_a_trace_that_was_begun_elsewhere_goes_on(deployed):
    head, client = deployed
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    answer = client.post("/v1/restore", content=encoded(picture(1)), params={"faces": "aligned"}, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["x-model-version"] == client.get("/v1/model").json()["version"]
    spans = head.logs / "serve" / "spans"
    wait(lambda: spans.is_dir() and len(_of_trace(spans)) >= 3, 30)  # proxy, ingress, replica


def _of_trace(folder: Path) -> list[Path]:
    """Files, one of each process, that have spans of the trace."""
    return [file for file in folder.iterdir() if TRACE in file.read_text()]


def test_too_many_requests_are_refused_at_once_and_more_replicas_start(deployed):
    head, client = deployed
    body = encoded(picture(2, SIDE, SIDE))
    assert _replicas(head) == 1
    end, seen = time.monotonic() + 120, []

    def ask() -> list[httpx.Response]:
        answers = []
        while time.monotonic() < end and 2 not in seen:
            answers.append(client.post("/v1/restore", content=body, params={"faces": "whole", "identity": "false"}))
        return answers

    with ThreadPoolExecutor(80) as pool:  # more than 32 on their way and 8 that wait
        asked = [pool.submit(ask) for _ in range(80)]
        while time.monotonic() < end and 2 not in seen:
            seen.append(_replicas(head))
            time.sleep(1)
        answers = [answer for future in asked for answer in future.result()]
    assert 2 in seen
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert_problem(answer, 503, "busy")
        assert int(answer.headers["retry-after"]) > 0
    assert len(refused) < len(answers)


def _replicas(head) -> int:
    """That run, of the slot with the traffic."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    told = httpx.get(f"{head.dashboard}/api/serve/applications/", headers=headers, timeout=60).json()
    replicas = told["applications"]["osdface"]["deployments"]["a"]["replicas"]
    return sum(replica["state"] == "RUNNING" for replica in replicas)
