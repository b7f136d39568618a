"""The HTTP side of the endpoint: who may ask, what, and what comes back. It looks into no picture."""

import asyncio
import base64
import json
from typing import Annotated, Any

import httpx
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, Field
from ray import serve
from ray.serve.handle import DeploymentHandle

from osdface.config import Strict
from osdface.modes import FaceMode
from pipelines.serve import bodies, metrics, negotiation, openapi, problems
from pipelines.serve.jobs import Jobs, Status
from pipelines.serve.keys import Doorkeeper
from pipelines.serve.problems import Problem
from pipelines.serve.replica import Answer, Format, Task
from pipelines.serve.router import FAILURES, Router
from pipelines.serve.settings import SLOTS, Limits, Model, Routing, Settings, Slot
from pipelines.serve.web import Outside, Page

api = FastAPI(title="osdface", summary="One-step diffusion face restoration", docs_url=None, redoc_url=None)
api.add_middleware(Outside)
problems.install(api)
api.mount("/page", Page())


class Wanted(BaseModel):
    """The query of a request for pictures."""

    faces: FaceMode = Field("auto", description="Every face, the one aligned face it is, or the whole picture at once.")
    strength: float = Field(1.0, ge=0, le=1, allow_inf_nan=False, description="The part of the change that is made.")
    compare: bool = Field(False, description="The picture as sent on the left of the restored one.")
    identity: bool = Field(True, description="Compare each face with what it was: 0.1 s a face on a CPU.")


class OfOne(Wanted):
    """Of one picture."""

    format: Format | None = Field(None, description="Of the answer; absent: what `Accept` prefers, else png.")
    only: str | None = Field(
        None,
        pattern=r"^\d{1,4}(,\d{1,4})*$",
        description="Faces to restore, by their place in X-Face-Boxes.",
        examples=["0,2"],
    )


class OfSeveral(Wanted):
    """Of several."""

    format: Format = Field("png", description="Of the pictures.")


class Told(Model):
    """What is served, and the most that a request may have."""

    limits: Limits


class Ready(Strict):
    """notice: what is wrong around the endpoint, while it serves."""

    status: str
    version: str
    notice: str = ""


def _task(request: Request, wanted: OfOne | OfSeveral) -> Task:
    """What is wanted of a picture that is still to come. Raises Problem (406)."""
    chosen = negotiation.chosen(wanted.format, request.headers.get("accept", ""))
    only = wanted.only if isinstance(wanted, OfOne) else None
    numbers = tuple(map(int, only.split(","))) if only else None
    identity = wanted.identity and wanted.faces != "whole"
    return Task(b"", wanted.faces, chosen, wanted.strength, wanted.compare, identity, numbers)


def _lineage(model: Model) -> dict[str, str]:
    return {"X-Model-Version": model.version, "X-Run-Id": model.run_id, "X-Dataset-Digest": model.dataset_digest}


def _faces(answer: Answer) -> dict[str, str]:
    identity = [None if value is None else round(value, 4) for value in answer.identity]
    boxes = json.dumps(answer.boxes)
    return {"X-Faces": str(len(answer.boxes)), "X-Face-Boxes": boxes, "X-Identity": json.dumps(identity)}


# Serve copies the application here, with what is known of this module by now: helpers come before the class.
@serve.ingress(api)
class Ingress:
    """Takes requests, asks the slots, answers."""

    def __init__(self, settings: Settings, a: DeploymentHandle, b: DeploymentHandle):
        self.settings, self.limits = settings, settings.limits
        self.router = Router(dict(zip(SLOTS, (a, b), strict=True)), settings.limits)
        self.door = Doorkeeper(settings.keys)
        self.jobs = Jobs(settings.limits)
        self.room = bodies.Room(settings.limits.held)
        self.shared: set[str] = set()

    def reconfigure(self, routing: dict[str, Any]) -> None:
        """Serve calls this with the ingress's `user_config`."""
        self.router.take(Routing.model_validate(routing))

    async def check_health(self) -> None:
        """What Serve asks every few seconds; a good moment to say where the traffic goes."""
        if routing := self.router.routing:
            share = routing.share if routing.at_stake() and not routing.shadow else 0
            shares = {routing.models[routing.staged].version: share} if routing.staged else {}
            shares[routing.models[routing.champion].version] = 1 - share
            for version in self.shared | shares.keys():  # what left keeps its last number otherwise
                metrics.level("share", shares.get(version, 0), version=version)
            self.shared |= shares.keys()
            metrics.level("notice", float(bool(routing.notice)))

    def routing(self) -> Routing | None:
        """Where the traffic goes now."""
        return self.router.routing

    def observed(self) -> dict[str, tuple[int, int, float, float]]:
        """What was seen of each version since the last was staged: requests, errors, percentiles 50 and 95."""
        return self.router.observed()

    def pending(self, slot: Slot) -> int:
        """Requests that wait for a slot's answer."""
        return self.router.pending[slot]

    @api.post(
        "/v1/restore",
        response_class=Response,
        responses=openapi.picture(*openapi.PICTURE_FAULTS),
        openapi_extra=openapi.body(openapi.FORM),
    )
    async def restore(self, request: Request, wanted: Annotated[OfOne, Query()]) -> Response:
        """Restore a picture: the body is one, or a multipart form with one in `image`."""
        self.door.admit(request)
        task = _task(request, wanted)
        with self.room.guest() as guest:
            return await self._answer(task._replace(data=await bodies.one(request, self.limits, guest)))

    @api.post(
        "/v1/restore:batch",
        responses=openapi.problems(*openapi.PICTURE_FAULTS),
        openapi_extra=openapi.body(openapi.FORMS, raw=False),
    )
    async def batch(self, request: Request, wanted: Annotated[OfSeveral, Query()]) -> JSONResponse:
        """Restore the pictures of a multipart form. Each has a status, and its bytes in base64 or a problem."""
        self.door.admit(request)
        task = _task(request, wanted)
        with self.room.guest() as guest:
            pictures = await bodies.several(request, self.limits, guest)
            self.door.admit(request, len(pictures) - 1)
            answers = await asyncio.gather(*(self._item(task._replace(data=data)) for data in pictures))
        return JSONResponse({"pictures": answers})

    @api.post(
        "/v1/jobs",
        status_code=202,
        responses=openapi.problems(*openapi.PICTURE_FAULTS),
        openapi_extra=openapi.body(openapi.FORM),
    )
    async def begin(self, request: Request, response: Response, wanted: Annotated[OfOne, Query()]) -> Status:
        """Restore a picture while nobody waits: `GET /v1/jobs/ID` tells how far it is, `.../result` gives it."""
        self.door.admit(request)
        task = _task(request, wanted)
        guest = bodies.Guest(self.room)
        try:
            task = task._replace(data=await bodies.one(request, self.limits, guest))
            status = self.jobs.add(lambda: self._answer(task), guest)
        except BaseException:
            guest.leave()
            raise
        response.headers["Location"] = f"/v1/jobs/{status.id}"
        return status

    @api.get("/v1/jobs/{id}", responses=openapi.problems(401, 404, 422, 429))
    async def job(self, request: Request, id: str) -> Status:
        """How far a job is."""
        self.door.admit(request)
        return self.jobs.status(id)

    @api.get(
        "/v1/jobs/{id}/result", response_class=Response, responses=openapi.picture(404, 409, *openapi.PICTURE_FAULTS)
    )
    async def result(self, request: Request, id: str) -> Response:
        """What a job made, or the problem that it had."""
        self.door.admit(request)
        return self.jobs.result(id)

    @api.delete("/v1/jobs/{id}", status_code=204, responses=openapi.problems(401, 404, 422, 429))
    async def forget(self, request: Request, id: str) -> None:
        """Forget a job and what it made."""
        self.door.admit(request)
        self.jobs.remove(id)

    @api.get("/v1/model", responses=openapi.problems(401, 429))
    async def served(self, request: Request) -> Told:
        """What answers, and where it comes from."""
        self.door.admit(request)
        routing = self._routing()
        return Told(**routing.models[routing.champion].model_dump(), limits=self.limits)

    @api.head("/healthz", include_in_schema=False)
    @api.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """That the process lives."""
        return {"status": "ok"}

    @api.get("/readyz", responses=openapi.problems(503))
    async def readyz(self) -> Ready:
        """Whether a model answers, and what is wrong around it."""
        routing = self._routing()
        try:
            loaded = await asyncio.wait_for(self.router.slots[routing.champion].loaded.remote(), 5)
        except FAILURES:
            loaded = None
        if not loaded:
            raise Problem(503, "no replica has a model", {"Retry-After": "5"})
        return Ready(status="ready", version=loaded.model.version, notice=routing.notice)

    @api.get("/metrics", response_class=PlainTextResponse, responses=openapi.problems(401, 429, 503))
    async def metrics(self, request: Request) -> PlainTextResponse:
        """What Prometheus reads: the part of Ray's page of this node that is about serving."""
        self.door.admit(request)
        try:
            return PlainTextResponse(await metrics.page(), media_type="text/plain; version=0.0.4")
        except httpx.HTTPError:
            raise Problem(503, "Ray's metrics agent does not answer", {"Retry-After": "10"}) from None

    @api.head("/", include_in_schema=False)
    @api.get("/", include_in_schema=False)
    async def page(self) -> Response:
        return await Page().get_response("index.html", {"type": "http", "method": "GET", "headers": []})

    def _routing(self) -> Routing:
        assert self.router.routing
        return self.router.routing

    async def _item(self, task: Task) -> dict[str, Any]:
        """One of several: a problem of its own spoils none of the others."""
        try:
            answer = await self._answer(task)
        except Problem as problem:
            return {"status": problem.status, "problem": problem.body()}
        headers = {name: value for name, value in answer.headers.items() if name.startswith("x-")}
        return {"status": 200, "headers": headers, "picture": base64.b64encode(answer.body).decode()}

    async def _answer(self, task: Task) -> Response:
        """The answer of HTTP to a task. Raises Problem, with the version where one was asked."""
        try:
            answer, slot = await self.router.ask(task)
        except Problem as problem:
            metrics.count("answers", self._champion().version, outcome="failed" if problem.status == 504 else "refused")
            raise
        headers = _lineage(self._routing().models[slot]) | {"X-Model-Version": answer.version}
        metrics.parts(answer.version, answer.seconds)
        metrics.count("answers", answer.version, outcome="fault" if answer.fault else "ok")
        metrics.count("faces", answer.version, len(answer.boxes))
        if answer.fault:
            raise Problem(answer.status, answer.fault, headers)
        return Response(answer.picture, media_type=f"image/{task.format}", headers=headers | _faces(answer))

    def _champion(self) -> Model:
        return self._routing().models[self._routing().champion]
