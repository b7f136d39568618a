"""Promotion at a real endpoint, while it is asked without a pause: by another process, as a user's command is."""

import json
import subprocess
import sys

import httpx
import pytest

from pipelines import registry
from pipelines.promotion import history
from pipelines.serve import control
from tests.promotion import Stream, not_a_number, too_short

pytestmark = pytest.mark.full

PROMOTIONS = """
import json, sys
from osdface.errors import UserError
from pipelines.promotion import promoting
from pipelines.promotion.gates import Gates, Live
from pipelines.promotion.promoting import Wishes

plain, quick = Gates(trial=None, live=Live(requests=5)), Gates(trial=None, live=Live(requests=5, p95=1e-6))
steps = {
    "good": lambda: promoting.promote("2", Wishes(plain, share=0.5, seconds=8), tell=lambda _: None),
    "NaN": lambda: promoting.promote("3", Wishes(plain, share=0.5, seconds=8), tell=lambda _: None),
    "does not load": lambda: promoting.promote("4", Wishes(plain), tell=lambda _: None),
    "slow": lambda: promoting.promote("5", Wishes(quick, share=1.0, seconds=4, shadow=True), tell=lambda _: None),
    "back": lambda: promoting.rollback(Wishes(plain), tell=lambda _: None),
}
for name, step in steps.items():
    try:
        outcome = step()["outcome"]
    except UserError as error:
        outcome = str(error)
    print(json.dumps([name, outcome]), flush=True)
"""


@pytest.fixture
def endpoint(with_provenance, spoilt, mlflow_home, free_port):
    """An endpoint of the champion, version 1; sound versions are 1, 2 and 5."""
    for folder in (
        with_provenance("a"), with_provenance("b", dataset_digest="b"), spoilt(not_a_number), spoilt(too_short),
        with_provenance("e", dataset_digest="e"),
    ):  # fmt: skip
        registry.register(folder)
    registry.promote("1")
    yield control.detached("127.0.0.1", free_port, ["--model", "models:/osdface@champion"])["url"]
    control.down()


def test_versions_come_and_go_without_a_failed_request(endpoint, environment):
    with Stream(endpoint) as stream:
        done = subprocess.run(
            [sys.executable, "-c", PROMOTIONS], env=environment, capture_output=True, text=True, timeout=400
        )
    told = dict(map(json.loads, done.stdout.splitlines()))
    assert told["good"] == "promoted", (told, done.stderr)
    assert "version 3 does not load" in told["NaN"]
    assert "version 4 does not load" in told["does not load"]
    assert "live latency, p95" in told["slow"]
    assert told["back"] == "rolled back"
    assert registry.aliases() == {"champion": "1"}
    assert httpx.get(f"{endpoint}/v1/model").json()["version"] == "1"
    assert {status for status, _ in stream.seen} == {200}, stream.seen
    assert {version for _, version in stream.seen} == {"1", "2"}, "a bad version, or a shadow, answered somebody"
    assert [one["outcome"] for one in history.attempts("osdface")] == [
        "rolled back", "refused", "failed", "failed", "promoted",
    ]  # fmt: skip
