"""A job on a cluster that is a head alone: nodes come for it and go after it, by Ray's fake multi-node provider."""

import json
import time

import pytest
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from jobs import console
from jobs.cli import app
from jobs.submission import contexts
from jobs.submission.cluster import Cluster
from tests.heads import free, ray_head, wait
from tests.nodes import TOKEN

pytestmark = pytest.mark.chaos
FAKE = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
MOST, IDLE = 2, 6.0  # worker nodes; seconds without work after which one goes


def autoscaling(gcs: int) -> dict:
    """What `ray up` hands a head: no node but it, up to MOST of one CPU each."""
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    data = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": MOST}
    # By its module: Ray's wheel lacks the file of defaults that the name fake_multinode stands for.
    provider = {"type": "external", "module": FAKE, "gcs_address": f"127.0.0.1:{gcs}", "launch_multiple": True}
    filled = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "fake",
        "max_workers": MOST,
        "idle_timeout_minutes": IDLE / 60,
        "provider": provider | {"head_node_id": FAKE_HEAD_NODE_ID},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {FAKE_HEAD_NODE_TYPE: head, "data": data},
        # What `ray up` would have filled in.
        "upscaling_speed": 1.0,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        **{f"{commands}_commands": [] for commands in filled},
    }


@pytest.fixture
def growing(tmp_path):
    """The dashboard of such a head."""
    gcs, file = free(), tmp_path / "autoscaling.json"
    file.write_text(json.dumps(autoscaling(gcs)))
    variables = {
        "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN,
    }  # fmt: skip
    with ray_head(variables, 0, options=[f"--autoscaling-config={file}"], gcs=gcs) as head:
        yield head.dashboard


def test_nodes_come_for_a_job_and_go_after_it(growing, home, faces_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # set by what is tested; undone here
    monkeypatch.setenv("LAB", TOKEN)
    home.mkdir()
    lab = {"address": growing, "token_env": "LAB", "env": {"OSDFACE_HOME": str(home)}, "nodes": [{"CPU": 1.0}] * MOST}
    (home / contexts.FILE).write_text(yaml.safe_dump({"clusters": {"lab": lab}, "default": "lab"}))
    cluster = Cluster(contexts.find(None))
    assert [node.get("CPU", 0) for node in cluster.nodes()] == [0]

    out, empty = tmp_path / "pairs", tmp_path / "empty"
    empty.mkdir()
    begun = time.monotonic()
    # --no-track: nodes of this provider share one session, where each unpacks the job's working directory anew, so that
    # the driver then stands in a folder that is gone; MLflow can't be imported there.
    words = ["jobs", "submit", "synth", "--name", "grows", "--working-dir", str(empty), "--"]
    words += [str(faces_folder), "--out", str(out), "--size", "64", "--set", "cpus_per_worker=1", "--no-track"]
    assert console.run(app, words) == 0
    wait(lambda: len(cluster.nodes()) > 1, 300)
    came = time.monotonic()
    most = 0
    while not cluster.job("grows").status.is_terminal():
        most = max(most, len(cluster.nodes()) - 1)
        time.sleep(0.5)
    done = time.monotonic()
    assert cluster.job("grows").status == "SUCCEEDED", cluster.logs("grows")
    assert (out / "manifest.json").is_file()
    wait(lambda: len(cluster.nodes()) == 1, 300)
    gone = time.monotonic()
    with capsys.disabled():
        print("\n| nodes at first | the first came after | at most | the job was done after | the last went |")
        print("| --- | --- | --- | --- | --- |")
        print(f"| 0 | {came - begun:.0f} s | {most} | {done - begun:.0f} s | {gone - done:.0f} s later |")
    assert 1 <= most <= MOST
