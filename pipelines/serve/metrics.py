"""What the endpoint counts beside what Ray Serve counts by itself, and where Prometheus reads both.

They are metrics of Ray (`ray.util.metrics`): every node's own page has them, with the prefix `ray_`. `GET /metrics` is
the part of that page, on the ingress's node, that is about serving.
"""

import functools
import re

import httpx
import ray
from ray.util.metrics import Counter, Gauge, Histogram, Metric

SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
FAMILIES = re.compile(r"(# (?:HELP|TYPE) )?ray_(serve|osdface)_")
COUNTERS = {
    "answers": ("Answers by version and outcome (ok, fault, refused, failed).", ("version", "outcome")),
    "retries": ("Requests that were asked once more, by the version that failed.", ("version",)),
    "faces": ("Faces restored, by version.", ("version",)),
}


@functools.cache
def _metrics() -> dict[str, Metric]:
    made: dict[str, Metric] = {name: Counter(f"osdface_{name}", told, tags) for name, (told, tags) in COUNTERS.items()}
    parts = ("part", "version")
    made["parts"] = Histogram("osdface_part_seconds", "Seconds of an answer's parts.", SECONDS, parts)
    made["share"] = Gauge("osdface_share", "Share of the traffic that a version has.", ("version",))
    made["notice"] = Gauge("osdface_notice", "1 while something around the endpoint is wrong (/readyz says what).")
    return made


def count(name: str, version: str, by: float = 1, **tags: str) -> None:
    """Add to one of COUNTERS."""
    if by:
        _metrics()[name].inc(by, {"version": version, **tags})  # type: ignore[attr-defined]


def parts(version: str, seconds: dict[str, float]) -> None:
    """Note the seconds of an answer's parts."""
    for part, value in seconds.items():
        _metrics()["parts"].observe(value, {"part": part, "version": version})  # type: ignore[attr-defined]


def level(name: str, value: float, **tags: str) -> None:
    """Set `share` or `notice`."""
    _metrics()[name].set(value, tags)  # type: ignore[attr-defined]


async def page() -> str:
    """What Prometheus reads. Raises httpx.HTTPError where Ray's agent of this node does not answer."""
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    async with httpx.AsyncClient(timeout=10) as client:
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        whole = (await client.get(address)).raise_for_status().text
    return "".join(line + "\n" for line in whole.splitlines() if FAMILIES.match(line))
