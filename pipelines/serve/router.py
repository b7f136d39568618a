"""Which version answers: shares, copies in the shadow, one more try, and what was seen of each version."""

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Mapping

import numpy as np
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from pipelines.serve import metrics
from pipelines.serve.problems import Problem
from pipelines.serve.replica import Answer, Task
from pipelines.serve.settings import Limits, Routing, Slot

log = logging.getLogger("ray.serve")
REMEMBERED = 4096  # answers of each version, for percentiles
SHADOWS = 8  # copies on their way at a time; more requests have none
FAILURES = (RayError, RayServeException, asyncio.TimeoutError)


class Seen:
    """What was seen of a version since it could be."""

    def __init__(self) -> None:
        self.requests = self.errors = 0
        self.seconds: deque[float] = deque(maxlen=REMEMBERED)

    def numbers(self) -> tuple[int, int, float, float]:
        """Requests, errors, and percentiles 50 and 95 of seconds."""
        p50, p95 = np.percentile(self.seconds, (50, 95)) if self.seconds else (0.0, 0.0)
        return self.requests, self.errors, float(p50), float(p95)


class Router:
    """Hands tasks to the slots as its routing says."""

    def __init__(self, slots: Mapping[Slot, DeploymentHandle], limits: Limits):
        self.slots, self.limits = slots, limits
        self.routing: Routing | None = None
        self.pending: Counter[Slot] = Counter()
        self.shadows: set[asyncio.Task] = set()
        self.seen: dict[Slot, Seen] = {}

    def take(self, routing: Routing) -> None:
        """Route like this from now on; what was seen begins anew where another version is staged."""
        if not self.routing or routing.since != self.routing.since:
            self.seen = {}
        self.routing = routing

    def observed(self) -> dict[str, tuple[int, int, float, float]]:
        """What was seen, by version."""
        if not self.routing:
            return {}
        slots = [slot for slot in (self.routing.champion, self.routing.staged) if slot]
        return {self.routing.models[slot].version: self.seen.get(slot, Seen()).numbers() for slot in slots}

    async def ask(self, task: Task) -> tuple[Answer, Slot]:
        """The answer to a task, and the slot that gave it.

        A replica that dies, or a staged version that fails, costs nobody an answer: the champion is asked once more.
        Raises Problem (503, 504) where that fails too, or all are busy.
        """
        assert self.routing
        champion, staged = self.routing.champion, self.routing.at_stake()
        chosen = staged if staged and not self.routing.shadow and random.random() < self.routing.share else champion
        if staged and self.routing.shadow and len(self.shadows) < SHADOWS and random.random() < self.routing.share:
            copy = asyncio.create_task(self._in_shadow(staged, task))
            self.shadows.add(copy)
            copy.add_done_callback(self.shadows.discard)
        deadline = time.monotonic() + self.limits.seconds
        try:
            return await self._call(chosen, task, deadline), chosen
        except (TimeoutError, BackPressureError) as error:
            if chosen == champion:
                raise _refused(error, self.limits) from None
        except FAILURES:
            log.warning("a replica of slot %s failed; asking once more", chosen, exc_info=True)
            metrics.count("retries", self.routing.models[chosen].version)
        try:
            champion = self.routing.champion  # it may have changed
            return await self._call(champion, task, deadline), champion
        except FAILURES as error:
            raise _refused(error, self.limits) from None

    async def _call(self, slot: Slot, task: Task, deadline: float) -> Answer:
        began, seen = time.monotonic(), self.seen.setdefault(slot, Seen())
        self.pending[slot] += 1
        seen.requests += 1
        try:
            answer: Answer = await asyncio.wait_for(self.slots[slot].restore.remote(task), deadline - began)
        except BackPressureError:
            seen.requests -= 1  # that says nothing of the version
            raise
        except (*FAILURES, asyncio.CancelledError) as error:
            seen.errors += not isinstance(error, asyncio.CancelledError)
            raise
        finally:
            self.pending[slot] -= 1
        seen.seconds.append(time.monotonic() - began)
        return answer

    async def _in_shadow(self, slot: Slot, task: Task) -> None:
        with contextlib.suppress(*FAILURES):
            await self._call(slot, task, time.monotonic() + self.limits.seconds)


def _refused(error: Exception, limits: Limits) -> Problem:
    if isinstance(error, BackPressureError):
        return Problem(503, "all replicas are busy; try again later", {"Retry-After": "2"})
    if isinstance(error, asyncio.TimeoutError):
        return Problem(504, f"the picture took more than {limits.seconds:g} s", {"Retry-After": "10"})
    log.error("the model could not answer", exc_info=error)
    return Problem(503, "the model could not answer; try again", {"Retry-After": "5"})
