"""What Prometheus reads of an endpoint, and that the dashboard asks for what is there."""

import contextlib
import copy
import io
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

import pipelines.serve
from pipelines.serve.metrics import COUNTERS

FOLDER = Path(pipelines.serve.__file__).parent / "monitoring"
NAME = re.compile(r"\bray_\w+")
RARE = {f"ray_osdface_{name}_total" for name in COUNTERS}  # one that counts failures is there once there was one
NEEDED = {
    program: pytest.mark.skipif(not shutil.which(program), reason=f"no {program} on PATH: apt-get install prometheus")
    for program in ("prometheus", "promtool")
}


@pytest.fixture(scope="module")
def dashboard() -> dict:
    return json.loads((FOLDER / "grafana.json").read_text())


def targets(dashboard) -> list[tuple[str, str]]:
    """(panel's title, expression) of every query."""
    return [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])]


def family(name: str) -> str:
    """A metric's name without what histograms add to it."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


@pytest.fixture(scope="module")
def metrics(endpoint) -> str:
    """What the endpoint's page says after an answer and a refusal; Ray's processes report every 10 s."""
    data = io.BytesIO()
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(data, "PNG")
    assert endpoint.post("/v1/restore", content=data.getvalue()).status_code == 200
    assert endpoint.post("/v1/restore", content=b"no picture").status_code == 415
    wanted = ("osdface_answers_total{", 'outcome="fault"', "osdface_share{", "serve_num_http_error_requests_total{")
    deadline = time.monotonic() + 60
    while not all(word in (page := endpoint.get("/metrics").text) for word in wanted):
        assert time.monotonic() < deadline, page
        time.sleep(1)
    return page


def test_the_dashboard_imports_anywhere(dashboard):
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert "id" not in dashboard  # or it would overwrite another one
    used = [panel["datasource"] for panel in dashboard["panels"] if panel["type"] != "row"]
    used += [target["datasource"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert {source["uid"] for source in used} == {"${datasource}"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def lost(ours: Any, held: Any, at: str = "") -> list[str]:
    """Where `held` differs from what is in `ours`; it may have more."""
    if isinstance(ours, dict) and isinstance(held, dict):
        return [place for key in ours for place in lost(ours[key], held.get(key), f"{at}/{key}")]
    if isinstance(ours, list) and isinstance(held, list) and len(ours) == len(held):
        return [
            place for number, pair in enumerate(zip(ours, held, strict=True)) for place in lost(*pair, f"{at}/{number}")
        ]
    return [] if ours == held else [at]


def test_grafanas_own_types_hold_all_of_it(dashboard):
    pytest.importorskip("grafana_foundation_sdk", reason="no grafana_foundation_sdk: pip install 'osdface[dev]' has it")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()  # the types of a panel's options, and of a query for Prometheus

    def through(given: dict) -> dict:
        return json.loads(JSONEncoder().encode(Dashboard.from_json(given)))

    assert lost(dashboard, through(dashboard)) == []
    wrong = copy.deepcopy(dashboard)
    wrong["panels"][1]["targets"][0]["exp"] = wrong["panels"][1]["targets"][0].pop("expr")
    wrong["panels"][1]["tilte"] = "x"
    assert lost(wrong, through(wrong)) == ["/panels/1/targets/0/exp", "/panels/1/tilte"]


def test_no_panel_lies_on_another(dashboard):
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_metric_of_the_dashboard_is_at_the_endpoint(dashboard, metrics):
    there = set(re.findall(r"^# TYPE (\w+)", metrics, re.M))
    asked = {family(name) for _, expression in targets(dashboard) for name in NAME.findall(expression)}
    assert asked - there <= RARE
    assert {"ray_osdface_answers_total", "ray_osdface_part_seconds", "ray_osdface_share"} <= there & asked


def test_every_label_of_the_dashboard_is_at_the_endpoint(dashboard, metrics):
    for title, expression in targets(dashboard):
        for name, labels in re.findall(r"(ray_\w+)\{([^}]*)\}", expression):
            lines = re.findall(rf"^{name}\{{(.*)\}} ", metrics, re.M)
            for label in re.findall(r"(\w+)=~?", labels):
                assert label == "job" or name in RARE or all(f'{label}="' in line for line in lines), (title, label)


@NEEDED["promtool"]
def test_promtool_finds_nothing_of_ours(metrics):
    """Its other complaints are about names of Ray Serve's, and about labels that Ray adds to every metric."""
    done = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr  # 1: it cannot be read
    complaints = {tuple(line.split(" ", 1)) for line in (done.stdout + done.stderr).splitlines()}
    assert {words for name, words in complaints if name.startswith("ray_osdface_")} <= {
        "label names should be written in 'snake_case' not 'camelCase'"
    }


@pytest.fixture(scope="module")
def prometheus(endpoint, metrics, tmp_path_factory):
    """A client of a Prometheus that reads the endpoint by our own configuration, every second."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    scrape |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
    scrape["static_configs"] = [{"targets": [f"{endpoint.base_url.host}:{endpoint.base_url.port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10) as client:
            wait_for(client, process, folder / "log")
            yield client
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(client: httpx.Client, process: subprocess.Popen, log: Path) -> None:
    """Until it has read the endpoint twice: a rate needs two samples."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.HTTPError, IndexError, ValueError):
            if float(ask(client, "count_over_time(ray_osdface_share[1m])")[0]["value"][1]) >= 2:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


def ask(client: httpx.Client, expression: str) -> list[dict]:
    answer = client.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", (expression, answer)
    return answer["data"]["result"]


@NEEDED["prometheus"]
@pytest.mark.full
def test_a_real_prometheus_reads_it_and_answers_every_panel(dashboard, prometheus):
    (target,) = prometheus.get("/api/v1/targets").json()["data"]["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert float(ask(prometheus, 'sum(ray_osdface_answers_total{job="osdface",outcome="ok"})')[0]["value"][1]) >= 1
    empty = []
    for title, expression in targets(dashboard):
        expression = expression.replace("$__rate_interval", "1m").replace("$job", ".*")
        if not ask(prometheus, expression):
            empty.append(title)
    assert set(empty) <= {"Asked once more", "Not answered"}  # nothing of the kind happened
