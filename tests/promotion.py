"""Spoilt weights, an endpoint that does as it is told, and a stream of requests to a real one."""

import threading
from collections import Counter
from collections.abc import Callable

import httpx
import torch

from pipelines.promotion import selftest
from pipelines.promotion.gates import Gates
from pipelines.serve.live import Observed

FREE = Gates(trial=None)  # asks little, so that a test asks for what it is about


def not_a_number(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, float("nan")) for name, tensor in tensors.items()}


def too_short(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor[:-1].contiguous() for name, tensor in tensors.items()}


class Fake:
    """An endpoint as promotion sees it. `faults`: by method, what it raises; `answers`: what the staged version does.

    log: the calls that change something. Every look at live requests finds `rate` more of them.
    """

    def __init__(self, version: str):
        self.url, self.version = f"http://{version}", version
        self.log: list[tuple] = []
        self.faults: dict[str, BaseException] = {}
        self.answers: Callable = list
        self.looks, self.rate = 0, 30
        self.errors, self.slower = 0, 1.0
        self.staged: str | None = None
        self.on_look: Callable[[int], None] = lambda looks: None

    def _do(self, name: str, *more) -> None:
        self.log.append((name, *more))
        if name in self.faults:
            raise self.faults[name]

    def serving(self) -> str:
        return self.version

    def stage(self, version, share, shadow, seconds) -> None:
        assert seconds > 0
        self._do("stage", version.version, share, shadow)
        self.staged = version.version

    def try_staged(self, pictures) -> list[bytes]:
        assert self.staged
        return self.answers(pictures)

    def observed(self) -> dict[str, Observed]:
        self.looks += 1
        self.on_look(self.looks)
        count = self.rate * self.looks
        staged = Observed(count, min(self.errors, count), 0.1 * self.slower, 0.2 * self.slower)
        return {self.version: Observed(9 * count, 0, 0.1, 0.2), self.staged or "": staged}

    def settle(self) -> None:
        self._do("settle")
        assert self.staged
        self.version, self.staged = self.staged, None

    def withdraw(self, why) -> None:
        if self.staged:
            self._do("withdraw", why)
            self.staged = None

    def calls(self) -> list[str]:
        return [call[0] for call in self.log]


class Stream:
    """Requests without a pause, and what came back: (status, version) by count."""

    def __init__(self, url: str):
        self.url, self.seen, self.over = url, Counter(), threading.Event()
        self.thread = threading.Thread(target=self._ask)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def _ask(self) -> None:
        given = selftest.pictures(2)
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self.over.wait(0.05):
                answer = client.post("/v1/restore?faces=aligned", content=given[sum(self.seen.values()) % 2])
                self.seen[answer.status_code, answer.headers.get("x-model-version")] += 1
