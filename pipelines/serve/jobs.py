"""Pictures that take longer than a connection should: taken now, fetched later. Kept in memory, for a while."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from fastapi import Response

from osdface.config import Strict
from pipelines.serve.bodies import Guest
from pipelines.serve.problems import Problem
from pipelines.serve.settings import Limits

AT_ONCE = 4  # jobs that are being worked on
BUSY = 1.0  # seconds until a job asks again where all replicas are busy


class Status(Strict):
    """What is told of a job. problem: a problem document, of one that failed."""

    id: str
    status: Literal["queued", "running", "done", "failed"]
    problem: dict[str, Any] | None = None


class Jobs:
    """All jobs of an endpoint."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.told: dict[str, Status] = {}
        self.results: dict[str, Response] = {}
        self.ended: dict[str, float] = {}
        self.tasks: dict[str, asyncio.Task] = {}
        self.guests: dict[str, Guest] = {}
        self.room = asyncio.Semaphore(AT_ONCE)

    def add(self, work: Callable[[], Awaitable[Response]], guest: Guest) -> Status:
        """Begin a job that ends with the answer that `work` makes, and holds its bytes as `guest` until it is dropped.

        Raises Problem (429) where too many are kept.
        """
        self._forget()
        if len(self.told) >= self.limits.jobs:
            raise Problem(429, f"{self.limits.jobs} jobs are kept already; try again later", {"Retry-After": "30"})
        id = uuid.uuid4().hex
        self.told[id] = Status(id=id, status="queued")
        self.guests[id] = guest
        self.tasks[id] = asyncio.create_task(self._run(id, work))
        return self.told[id]

    def status(self, id: str) -> Status:
        """Raises Problem (404)."""
        self._forget()
        if id not in self.told:
            raise Problem(404, "there is no such job (any more)")
        return self.told[id]

    def result(self, id: str) -> Response:
        """The answer of a job that is done. Raises Problem: 404, or 409 for one that isn't."""
        status = self.status(id)
        if status.problem:
            raise Problem(status.problem["status"], status.problem["detail"])
        if id not in self.results:
            raise Problem(409, f"the job is {status.status}; ask again later", {"Retry-After": "1"})
        return self.results[id]

    def remove(self, id: str) -> None:
        """Forget a job, and end it if it runs. Raises Problem (404)."""
        self.status(id)
        self.tasks[id].cancel()
        self._drop(id)

    async def _run(self, id: str, work: Callable[[], Awaitable[Response]]) -> None:
        async with self.room:
            self.told[id] = Status(id=id, status="running")
            try:
                response = await self._patiently(work)
                self.guests[id].leave()
                self.guests[id].hold(len(response.body))
                self.results[id] = response
                self.told[id] = Status(id=id, status="done")
            except Problem as problem:
                self.guests[id].leave()
                self.told[id] = Status(id=id, status="failed", problem=problem.body())
            except Exception:
                failed = Problem(500, "something went wrong here; the endpoint's log has more")
                self.told[id] = Status(id=id, status="failed", problem=failed.body())
                raise
            finally:
                self.ended[id] = time.monotonic()

    async def _patiently(self, work: Callable[[], Awaitable[Response]]) -> Response:
        """A job waits where others are refused."""
        deadline = time.monotonic() + self.limits.job_seconds
        while True:
            try:
                return await work()
            except Problem as problem:
                if problem.status != 503 or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(BUSY)

    def _forget(self) -> None:
        """Drop what ended long ago."""
        for id, when in list(self.ended.items()):
            if time.monotonic() - when > self.limits.job_seconds:
                self._drop(id)

    def _drop(self, id: str) -> None:
        if id in self.guests:
            self.guests[id].leave()
        for kept in (self.guests, self.told, self.results, self.ended, self.tasks):
            kept.pop(id, None)
