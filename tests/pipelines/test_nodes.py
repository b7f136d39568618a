"""What nodes must share; the second one of the last test is real, with a host name and a disk of its own."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from osdface.errors import UserError
from pipelines import cluster
from pipelines import nodes as checked
from pipelines.store import Store
from tests.heads import ROOT, free, wait

pytestmark = pytest.mark.usefixtures("ray_session")
SERVER = "http://127.0.0.1:5000"


@pytest.fixture
def two(monkeypatch):
    """This node stands for two, and one that is dead."""
    nodes = [{"NodeManagerHostname": name, "NodeID": name, "Alive": name != "dead"} for name in ("a", "b", "dead")]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(checked, "_only", lambda node: "DEFAULT")


def test_one_node_may_keep_everything_to_itself(home):
    checked.refuse_unshared(Store(home / "runs"), ["nowhere"])
    assert not home.exists()


@pytest.mark.parametrize("address", ["", "sqlite:////mnt/x.db", "file:///mnt/x", "/mnt/mlruns"])
def test_records_in_a_file_are_refused_of_several(home, monkeypatch, two, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(
        UserError, match=r"MLflow at .*: a file on one node, and the cluster has several; start a server"
    ):
        checked.refuse_unshared(Store(home / "runs"), [])
    assert not (home / "runs").exists()


def test_and_where_an_autoscaler_may_add_more(home, monkeypatch):
    monkeypatch.setenv(cluster.NODES, '[{"CPU": 2}]')
    with pytest.raises(UserError, match="a file on one node"):
        checked.refuse_unshared(Store(home / "runs"), [])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    checked.refuse_unshared(Store(home / "runs"), [])


def test_what_all_see_is_fine_and_what_one_does_not_is_named(home, monkeypatch, two, pairs):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    store = Store(home / "runs")
    checked.refuse_unshared(store, [str(pairs)])
    with pytest.raises(UserError, match=r"/gone: is not there on a; put it where all nodes reach it"):
        checked.refuse_unshared(store, [str(home / "gone")])
    assert store.names() == []


@pytest.fixture
def two_nodes(tmp_path, environment) -> Iterator[tuple[str, Path]]:
    """The address of a cluster whose second node has its own host name, and its own disk where the first has `disk`."""
    probe = subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"this machine lets no test make a namespace: {probe.stderr.strip()}")
    disk, temporary, port = tmp_path / "disk", Path(tempfile.mkdtemp(prefix="rm")), free()
    disk.mkdir()
    env = environment | {"RAY_TMPDIR": str(temporary)}
    start = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    ports = [f"--dashboard-agent-listen-port={free()}", f"--dashboard-agent-grpc-port={free()}"]
    head = [*start, "--head", f"--port={port}", f"--temp-dir={temporary}", "--include-dashboard=false"]
    inner = f'hostname second && mount -t tmpfs tmpfs {disk} && exec "$@"'
    second = ["unshare", "--uts", "--mount", "sh", "-c", inner, "sh", *start, f"--address=127.0.0.1:{port}"]
    with (tmp_path / "log").open("wb") as log:
        begun = [subprocess.Popen(head + ports, env=env, stdout=log, stderr=log)]
        try:
            wait(lambda: b"runtime started" in (tmp_path / "log").read_bytes(), 120)
            more = [f"--dashboard-agent-listen-port={free()}", f"--dashboard-agent-grpc-port={free()}"]
            begun.append(subprocess.Popen(second + more, env=env, stdout=log, stderr=log))
            wait(lambda: (tmp_path / "log").read_bytes().count(b"runtime started") == 2, 120)
            yield f"127.0.0.1:{port}", disk
        finally:
            family = [child for one in begun for child in psutil.Process(one.pid).children(recursive=True)]
            for process in [*begun, *family]:
                process.kill()
            for process in begun:
                process.wait()
            shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.full
def test_a_training_over_two_nodes_wants_what_both_reach(two_nodes, environment, pairs, tmp_path):
    address, disk = two_nodes
    words = [sys.executable, "-m", "jobs.cli", "train", "base", "--data", str(pairs), "--address", address]

    def refused(**env: str) -> str:
        done = subprocess.run(
            [*words, "--out", str(tmp_path / "out")], cwd=ROOT, env=environment | env, capture_output=True, text=True
        )
        assert done.returncode == 1, done.stderr[-2000:]
        return done.stderr.strip().splitlines()[-1]

    local = {name: value for name, value in os.environ.items() if name == "MLFLOW_TRACKING_URI"}
    assert not local
    assert "a file on one node, and the cluster has several; start a server" in refused()
    shared = {"MLFLOW_TRACKING_URI": SERVER}
    said = refused(**shared, OSDFACE_STORAGE=str(disk))
    assert (
        f"{disk}/runs: is not there on second; give a URL or a folder that all nodes share as OSDFACE_STORAGE" in said
    )
    assert "MLflow at http://127.0.0.1:5000: " in refused(**shared)  # the storage is seen by both: on to the server
    assert not (tmp_path / "out").exists()
