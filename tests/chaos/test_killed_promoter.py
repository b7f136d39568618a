"""A promoter that is killed in its canary leaves nothing: the endpoint takes the traffic back, the next promotes."""

import signal
import subprocess
import sys
import time

import httpx
import pytest

from pipelines import registry
from pipelines.promotion import history
from pipelines.serve import control
from tests.promotion import Stream

pytestmark = pytest.mark.chaos
LEASE = 10

PROMOTE = f"""
import sys
from pipelines.promotion import promoting
from pipelines.promotion.gates import Gates
from pipelines.promotion.promoting import Wishes

promoting.LEASE = {LEASE}.0
promoting.promote(sys.argv[1], Wishes(Gates(trial=None), float(sys.argv[2]), float(sys.argv[3])), tell=lambda _: None)
"""


@pytest.fixture
def endpoint(with_provenance, mlflow_home, free_port):
    for name in "abc":
        registry.register(with_provenance(name, dataset_digest=name))
    registry.promote("1")
    yield control.detached("127.0.0.1", free_port, ["--model", "models:/osdface@champion"])["url"]
    control.down()


def test_a_promoter_that_is_killed_leaves_nothing(endpoint, environment):
    with Stream(endpoint) as stream:
        promoter = subprocess.Popen([sys.executable, "-c", PROMOTE, "2", "0.5", "600"], env=environment)
        deadline = time.monotonic() + 300
        while not stream.seen[200, "2"]:
            assert promoter.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(LEASE)  # the lease is renewed while it lives
        assert httpx.get(f"{endpoint}/v1/model").json()["version"] == "1"
        promoter.send_signal(signal.SIGKILL)
        promoter.wait()
        time.sleep(LEASE + 2)
        before = stream.seen[200, "2"]
        time.sleep(3)
        assert stream.seen[200, "2"] == before, "the endpoint has not taken the traffic back"
        assert registry.aliases() == {"champion": "1", "challenger": "2"}
        subprocess.run([sys.executable, "-c", PROMOTE, "3", "0", "0"], env=environment, check=True, timeout=400)
        deadline = time.monotonic() + 60
        while not stream.seen[200, "3"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert registry.aliases() == {"champion": "3", "previous": "1"}
    assert {status for status, _ in stream.seen} == {200}, stream.seen
    assert [one["outcome"] for one in history.attempts("osdface")] == ["promoted", "under way, or killed"]
