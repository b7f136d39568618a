"""What tests of the endpoint share: its limits, pictures to send, what a problem looks like."""

import contextlib
import io
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
from PIL import Image

from pipelines.serve.settings import Limits
from tests.heads import wait

LIMITS = Limits(
    bytes=2**21,
    pixels=1_500_000,
    whole_pixels=128 * 128,
    pictures=4,
    faces=8,
    seconds=120,
    read_seconds=100,
    body_seconds=2,
    jobs=3,
    job_seconds=20,
)


def picture(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """Noise of one colour a picture: no face."""
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3), np.uint8)
    return noise + np.uint8(seed * 20)


def encoded(image: np.ndarray, format: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, format, **options)
    return data.getvalue()


def assert_problem(answer: httpx.Response, status: int, words: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail"}
    assert body["status"] == status
    assert words in body["detail"]


def wait_for_room(endpoint: httpx.Client) -> None:
    """Until no job is kept: those of other tests are forgotten after a while."""

    def is_there() -> bool:
        begun = [endpoint.post("/v1/jobs", content=b"no picture") for _ in range(LIMITS.jobs)]
        kept = [answer for answer in begun if answer.status_code == 202]
        for answer in kept:
            endpoint.delete(answer.headers["location"])
        return kept == begun

    wait(is_there, 60)


def kill_replicas(slot: str) -> list[int]:
    """SIGKILL the replicas of a slot, of endpoints that this process started; returns their process ids."""
    killed = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(f"ServeReplica:osdface:{slot}" in word for word in process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
    return killed


class Load:
    """Requests one after the other from some clients, until it is over.

    answers: when each was sent and answered, its status and its version.
    """

    def __init__(self, url, clients=3):
        self.url, self.over, self.answers = url, threading.Event(), []
        self.pool = ThreadPoolExecutor(clients)
        self.futures = [self.pool.submit(self._ask, seed) for seed in range(clients)]

    def _ask(self, seed):
        body = encoded(picture(seed))
        with httpx.Client(base_url=self.url, timeout=150) as client:
            while not self.over.is_set():
                sent = time.time()
                answer = client.post("/v1/restore", content=body, params={"faces": "aligned", "identity": "false"})
                self.answers.append((sent, time.time(), answer.status_code, answer.headers.get("x-model-version")))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        self.pool.shutdown()
        for future in self.futures:
            future.result()

    def versions(self):
        return [version for *_, version in self.answers]

    def failed(self):
        return [answer for answer in self.answers if answer[2] != 200]
