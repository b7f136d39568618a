"""Joining Ray: what is refused, and with which words."""

import pytest
import ray

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
