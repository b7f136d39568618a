"""A cluster's Job API, its faults in one sentence each."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient
from ray.util.state.api import StateApiClient
from ray.util.state.common import ListApiOptions, StateResource

from jobs.submission.contexts import Context
from osdface.errors import UserError

REACH = 5  # seconds in which a dashboard has to take a connection
POLL = 0.5  # seconds between two looks at a job's status


class JobFailed(UserError):
    """A job that was waited for and did not succeed; its exit code becomes this program's."""

    def __init__(self, sentence: str, exit_code: int):
        super().__init__(sentence)
        self.exit_code = exit_code


class Cluster:
    """One cluster. Every method raises UserError, naming the address, where it doesn't answer or refuses."""

    def __init__(self, context: Context):
        self.address = context.address
        headers = context.headers()
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # or Ray would take $RAY_ADDRESS, whatever it is given
        with self._told():
            _knock(self.address)
            self._client = JobSubmissionClient(self.address, headers=dict(headers))
            self._states = StateApiClient(self.address, headers={"Content-Type": "application/json", **headers})
        theirs = self._client._server_ray_version
        if theirs != ray.__version__:
            raise UserError(
                f"{self.address} runs Ray {theirs}, this is {ray.__version__}: submit with the version that the "
                "cluster has, or start it with this one"
            )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError:
            raise UserError(
                f"{self.address} refuses these credentials: the token is missing, wrong or out of date; set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or the variable that clusters.yaml names"
            ) from None
        except (OSError, requests.RequestException) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.address}: no Ray dashboard answers there ({reason})") from None
        except RuntimeError as error:
            raise UserError(f"{self.address}: {str(error).strip().splitlines()[-1]}") from None

    def nodes(self) -> list[dict[str, float]]:
        """Resources of every node that is there now."""
        with self._told():
            nodes = self._states.list(
                StateResource.NODES, options=ListApiOptions(detail=True), raise_on_missing_output=False
            )
        return [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]

    def submit(self, name: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Send a job. Raises UserError if one of its name is known, whatever became of it: Ray keeps names for good."""
        self.refuse_known(name)
        with self._told():
            self._client.submit_job(
                entrypoint=entrypoint, submission_id=name, runtime_env=runtime_env, metadata=metadata
            )

    def refuse_known(self, name: str) -> None:
        """Raise UserError if a job of this name is known."""
        if name in (jobs := self.jobs()):
            raise UserError(
                f"a job '{name}' is there already ({jobs[name].status.lower()}): give another --name, or "
                f"`osdface jobs retry {name}` once it has ended"
            )

    def jobs(self) -> dict[str, JobDetails]:
        """Every job that was submitted, the newest first."""
        with self._told():
            found = self._client.list_jobs()
        newest = sorted(found, key=lambda job: -(job.start_time or 0))
        return {job.submission_id: job for job in newest if job.submission_id}

    def job(self, name: str) -> JobDetails:
        """One job. Raises UserError if there is none of this name."""
        try:
            with self._told():
                return self._client.get_job_info(name)
        except UserError as error:
            if isinstance(error.__context__, RuntimeError) and "404" in str(error.__context__):
                raise UserError(f"no job '{name}' at {self.address}; `osdface jobs list` shows them") from None
            raise

    def stop(self, name: str) -> JobDetails:
        """End a job and wait until it has; one that has ended already stays as it is."""
        if not self.job(name).status.is_terminal():
            with self._told():
                self._client.stop_job(name)
        return self.ended(name)

    def ended(self, name: str) -> JobDetails:
        """Wait until a job has ended."""
        while not (job := self.job(name)).status.is_terminal():
            time.sleep(POLL)
        return job

    def logs(self, name: str) -> str:
        """What a job has written so far."""
        self.job(name)
        with self._told():
            return self._client.get_job_logs(name)

    def follow(self, name: str) -> JobDetails:
        """Print what a job writes until it ends; returns how it did. An interrupt leaves the job as it is."""
        self.job(name)

        async def tail() -> None:
            async for text in self._client.tail_job_logs(name):
                print(text, end="", flush=True)

        with self._told():
            asyncio.run(tail())
        return self.ended(name)


def exit_code(job: JobDetails) -> int:
    """Of a job that has ended, as a shell has it: 0 done, its own, or 128 and the signal that ended it."""
    if job.status == "SUCCEEDED":
        return 0
    code = job.driver_exit_code or 1
    return code if code > 0 else 128 - code


def _knock(address: str) -> None:
    """Ray's client would wait for minutes where packets are dropped. Raises OSError if nothing listens."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname or "", port), timeout=REACH).close()
