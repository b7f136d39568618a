"""Starting, showing and ending endpoints."""

import json
import socket
import subprocess
import sys
from types import SimpleNamespace

import httpx
import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from ray._common.utils import import_attr
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ServeDeploySchema,
)

from jobs import console
from jobs.cli import app
from osdface.errors import UsageError, UserError
from osdface.files import write_json
from pipelines import registry, restoring, tracking
from pipelines.serve import control, keys
from pipelines.serve.settings import Settings


@pytest.fixture
def taken_port():
    """A loopback port that something else listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.fixture
def processes():
    """Two processes that sleep: an endpoint, and a stranger that has the number of another after a restart."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    children = [subprocess.Popen(command) for _ in range(2)]
    yield children
    for child in children:
        child.kill()
        child.wait()


@pytest.fixture
def record(processes):
    """What `serve up` would have written of the endpoint."""
    pid = processes[0].pid
    started = psutil.Process(pid).create_time()
    return {"url": "http://127.0.0.1:1", "host": "127.0.0.1", "port": 1, "pid": pid, "started": started}


STARTS = (
    lambda port: control.up("champion", port=port),
    lambda port: control.detached("127.0.0.1", port, []),
)


@pytest.mark.parametrize("start", STARTS)
def test_a_port_in_use_is_said_at_once(home, taken_port, start):
    with pytest.raises(
        UserError, match=f"127.0.0.1:{taken_port}: cannot listen there .*; give another --port"
    ) as caught:
        start(taken_port)
    assert caught.value.exit_code == 1
    assert not home.exists()


def test_an_address_that_is_not_ours_is_said_at_once(home, free_port):
    _, key = keys.new("alice", 60)
    with pytest.raises(UserError, match="203.0.113.1:.*: cannot listen there"):
        control.up("champion", host="203.0.113.1", port=free_port, settings=Settings(keys=[key]))
    for host in ("203.0.113.1", "0.0.0.0", "::", "some.host"):
        with pytest.raises(UsageError, match="no key is asked for; `osdface serve key NAME` makes one"):
            control.up("champion", host=host, port=free_port)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_out_of_range_is_wrong_use(home, port):
    with pytest.raises(UsageError, match=f"--port {port}: a port is a number from 1 to 65535") as caught:
        control.up("champion", port=port)
    assert caught.value.exit_code == 2


def test_exit_codes(home, taken_port, capsys):
    assert console.run(app, ["serve", "up", "--port", str(taken_port), "--json"]) == 1
    assert "cannot listen there" in json.loads(capsys.readouterr().out)["error"]
    assert console.run(app, ["serve", "up", "--port", "70000"]) == 2
    assert console.run(app, ["serve", "up", "--port", "many"]) == 2


def test_an_unknown_model_starts_nothing(mlflow_home, free_port):
    with pytest.raises(UserError, match="models:/osdface/9: no such version"):
        control.up("models:/osdface/9", port=free_port)
    assert not (mlflow_home / "serve").exists()


def test_an_unknown_model_detached_starts_nothing(mlflow_home, free_port, monkeypatch, environment):
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    with pytest.raises(UserError) as caught:
        control.detached("127.0.0.1", free_port, ["--model", "models:/osdface/9"])
    sentence = str(caught.value)
    assert "models:/osdface/9: no such version; `osdface models list` shows" in sentence
    assert str(mlflow_home / "serve" / f"{free_port}.log") in sentence
    assert "\n" not in sentence
    assert not list((mlflow_home / "serve").glob("*.json"))


def test_records_of_processes_that_are_gone_are_removed(home, processes, record):
    child, stranger = processes
    folder = home / "serve"
    write_json(folder / "1.json", record)
    write_json(folder / "2.json", record | {"port": 2, "pid": 2**22 + 1})
    write_json(folder / "3.json", record | {"port": 3, "pid": stranger.pid, "started": record["started"] - 60})
    (folder / "4.json").write_text("{")
    write_json(folder / "5.json", {"port": 5})
    assert control.status() == [record | {"answers": False}]
    assert [path.name for path in folder.iterdir()] == ["1.json"]
    child.kill()
    child.wait()
    assert control.status() == []


def test_down_ends_what_was_started_here_and_nothing_else(home, processes, record):
    child, stranger = processes
    write_json(home / "serve" / "1.json", record)
    write_json(home / "serve" / "2.json", record | {"port": 2, "pid": stranger.pid, "started": record["started"] - 60})
    assert control.down() == ["http://127.0.0.1:1"]
    assert not psutil.pid_exists(child.pid)
    assert stranger.poll() is None
    assert list((home / "serve").iterdir()) == []
    assert control.down() == []


def test_nothing_was_ever_started(home):
    assert control.status() == control.down() == []


def test_up_status_restore_and_down(mlflow_home, with_provenance, environment, free_port, tmp_path):
    """The round trip that a user makes, every command a process of its own."""

    def osdface(*words):
        command = [sys.executable, "-m", "jobs.cli", *map(str, words), "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    version = registry.register(with_provenance(runs={"osd": "a" * 32}, dataset_digest="d" * 64)).version
    tracking.client(tracking.uri()).set_registered_model_alias("osdface", "champion", version)
    url = f"http://127.0.0.1:{free_port}"
    try:
        told = osdface("serve", "up", "--port", free_port, "--detach")
        assert (told["url"], told["model"], told["version"]) == (url, "models:/osdface/1", "1")
        assert told["ref"] == "models:/osdface@champion"
        assert httpx.get(f"{url}/v1/model", timeout=30).json()["run_id"] == "a" * 32
        (endpoint,) = osdface("serve", "status")["endpoints"]
        assert endpoint == told | {"answers": True, "status": "ready", "notice": ""}
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "in.png")
        facts = restoring.at_endpoint(tmp_path / "in.png", url, "auto").facts
        assert facts == {"version": "1", "run_id": "a" * 32, "dataset_digest": "d" * 64, "faces": "0"}
        family = [psutil.Process(told["pid"]), *psutil.Process(told["pid"]).children(recursive=True)]
        assert len(family) > 3
        with pytest.raises(UserError, match="cannot listen there"):
            control.up("champion", port=free_port)
    finally:
        ended = osdface("serve", "down")["ended"]
    assert ended == [url]
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")
    assert control.status() == []


def test_why_an_endpoint_does_not_come_up():
    def deployment(status, message):
        trigger = DeploymentStatusTrigger.REPLICA_STARTUP_FAILED
        return DeploymentStatusOverview(DeploymentStatus[status], trigger, {}, message)

    def fault(overall="DEPLOY_FAILED", words="", **deployments):
        return control._fault(ApplicationStatusOverview(ApplicationStatus[overall], words, 0.0, deployments))

    failed = (
        "The deployment failed to start 3 times. Error:\nTraceback\n  File x\nosdface.errors.UserError: base: gone\n"
    )
    assert fault(a=deployment("HEALTHY", "fine"), b=deployment("DEPLOY_FAILED", failed)) == "base: gone"
    assert fault(a=deployment("DEPLOY_FAILED", "no resources")) == "no resources"
    assert fault(words="Traceback\n ImportError: no such module") == "ImportError: no such module"
    assert fault("DEPLOYING", a=deployment("UPDATING", "")) == ""


def test_a_key_is_made_and_an_endpoint_knows_it(tmp_path, capsys):
    assert console.run(app, ["serve", "key", "alice", "--per-minute", "7", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    settings = Settings(keys=made["keys"])
    request = SimpleNamespace(headers={"authorization": f"Bearer {made['key']}"})
    keys.Doorkeeper(settings.keys).admit(request)
    assert settings.keys[0].per_minute == 7


def test_a_configuration_file_is_one_that_serve_takes(mlflow_home, with_provenance, tmp_path):
    folder, out = with_provenance(runs={"osd": "a" * 32}), tmp_path / "serve.yaml"
    arguments = ["serve", "build", "--model", str(folder), "--out", str(out), "--set", "limits.pixels=1000000"]
    assert console.run(app, arguments) == 0
    config = ServeDeploySchema.model_validate(yaml.safe_load(out.read_text()))
    (application,) = config.applications
    assert import_attr(application.import_path)
    assert application.args["limits"]["pixels"] == 1_000_000
    assert {deployment.name for deployment in application.deployments} == {"ingress", "a", "b"}
    assert console.run(app, [*arguments, "--host", "0.0.0.0"]) == 2
    assert console.run(app, [*arguments, "--set", "limits.pixel=1"]) == 2
