"""Joining Ray: what is refused, and with which words."""

import pytest
import ray
import yaml

from osdface.errors import UserError
from pipelines import cluster

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_session_of_this_process_is_used_again():
    before = ray.get_runtime_context().get_job_id()
    cluster.connect()
    cluster.connect(cpus=64)
    assert ray.get_runtime_context().get_job_id() == before
    assert ray.cluster_resources()["CPU"] == 4


def test_as_many_cpus_as_there_are_are_enough():
    cluster.require_cpus(4)


def test_more_cpus_than_there_are_are_refused():
    with pytest.raises(UserError, match=r"ask for 4\.5 CPUs but the cluster has 4; lower workers or cpus_per_worker"):
        cluster.require_cpus(4.5)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "refused"),
        ("ray://127.0.0.1:1", "refused"),
        ("no-such-host.invalid:6379", "not known|resolution"),
    ],
)
def test_an_address_where_no_cluster_answers(address, reason, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=rf"--address {address}: no Ray cluster answers there \(.*({reason})"):
        cluster.connect(address)


def test_nodes_that_the_autoscaler_may_add_count(monkeypatch):
    monkeypatch.setenv(cluster.NODES, '[{"CPU": 16, "GPU": 4}, {"CPU": 2}]')
    cluster.require_cpus(18)
    cluster.require_gpus(4)
    with pytest.raises(UserError, match=r"ask for 5 GPUs but the cluster has 4; lower workers"):
        cluster.require_gpus(5)


def test_on_the_head_that_ray_up_made_its_file_tells_them(monkeypatch, tmp_path):
    types = {"head": {"resources": {"CPU": 99}}, "data": {"resources": {"CPU": 16}, "max_workers": 2}}
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump({"head_node_type": "head", "available_node_types": types}))
    monkeypatch.setattr(cluster, "LAUNCHED", file)
    assert cluster.launched(file) == [{"CPU": 16}, {"CPU": 16}]
    cluster.require_cpus(32)
    with pytest.raises(UserError, match="the cluster has 32"):
        cluster.require_cpus(33)


def test_a_submitted_job_joins_its_own_cluster(monkeypatch):
    given = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    cluster.connect()
    assert given["address"] == "local"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    cluster.connect()
    assert given["address"] == "auto"
