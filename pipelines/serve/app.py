"""The HTTP side of the endpoint: limits, errors as problem documents (RFC 9457), lineage headers."""

import logging
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from osdface.config import Strict
from osdface.imagefile import ImageError, open_header
from osdface.modes import FaceMode
from pipelines.serve.replica import Answer, Task

log = logging.getLogger("ray.serve")
STATUS = {"empty": 400, "unknown": 415, "animated": 415, "too_large": 413, "unreadable": 422}
Format = Literal["png", "jpeg"]


class Model(Strict):
    """What is served, as `GET /v1/model` tells it."""

    model: str
    version: str
    run_id: str
    dataset_digest: str
    bundle_digest: str
    preset: str


class Limits(Strict):
    """bytes of a request's body; pixels of a picture, from its header; whole_pixels: of one with `faces=whole`, all of
    which goes through the network at once."""

    bytes: int = 20 * 2**20
    pixels: int = 25_000_000
    whole_pixels: int = 2**20


class Problem(Exception):
    """An answer other than what was asked for."""

    def __init__(self, status: int, detail: str, headers: Any = None):
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers

    def response(self) -> JSONResponse:
        """As a problem document (RFC 9457); `about:blank` means that the status says what kind it is."""
        title = HTTPStatus(self.status).phrase
        body = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}
        return JSONResponse(body, self.status, self.headers, media_type="application/problem+json")


api = FastAPI(title="osdface", summary="One-step diffusion face restoration", docs_url=None, redoc_url=None)


@api.exception_handler(HTTPException)
async def _http_error(_: Request, error: HTTPException) -> JSONResponse:
    return Problem(error.status_code, str(error.detail), error.headers).response()


@api.exception_handler(RequestValidationError)
async def _bad_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    return Problem(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}").response()


class Endpoint:
    """Takes a picture by HTTP, checks its header, hands it to the replicas."""

    def __init__(self, replica: DeploymentHandle, model: dict[str, str], limits: dict[str, int]):
        self.replica, self.model, self.limits = replica, Model(**model), Limits(**limits)

    @api.post("/v1/restore", response_class=Response)
    async def restore(self, request: Request, faces: FaceMode = "auto", format: Format = "png") -> Response:
        """Restore a picture: the body is an image, or a multipart form with one in `image` (or `file`)."""
        try:
            answer = await self._answer(await self._picture(request), faces, format)
            response = Response(answer.picture, media_type=f"image/{format}", headers={"X-Faces": str(answer.faces)})
        except Problem as problem:
            response = problem.response()
        response.headers["X-Model-Version"] = self.model.version
        response.headers["X-Run-Id"] = self.model.run_id
        response.headers["X-Dataset-Digest"] = self.model.dataset_digest
        return response

    @api.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/v1/model")
    async def served(self) -> Model:
        return self.model

    async def _answer(self, data: bytes, faces: FaceMode, format: Format) -> Answer:
        check(data, self.limits.whole_pixels if faces == "whole" else self.limits.pixels)
        try:
            answer = await self.replica.restore.remote(Task(data, faces, format))
        except (RayError, RayServeException):
            log.exception("a replica failed")
            raise Problem(503, "the model could not answer; try again", {"Retry-After": "5"}) from None
        if answer.fault:
            raise Problem(422, answer.fault)
        return answer

    async def _picture(self, request: Request) -> bytes:
        """The picture's bytes. The body is counted as it arrives, so that a long one is never held."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.limits.bytes:
                raise Problem(413, f"the body has more than {self.limits.bytes} bytes")
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            return bytes(body)
        return await self._from_form(request, bytes(body))

    async def _from_form(self, request: Request, body: bytes) -> bytes:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            form = await Request(request.scope, receive).form(max_files=4, max_fields=16)
        except Exception as error:  # the parsers raise many kinds for a malformed form
            raise Problem(400, f"the multipart form cannot be read ({getattr(error, 'detail', error)})") from None
        for name in ("image", "file"):
            part = form.get(name)
            if isinstance(part, UploadFile):
                return await part.read()
        raise Problem(400, "the multipart form has no file named 'image'")


def check(data: bytes, pixels: int) -> None:
    """Look at a picture's header, before anything is decoded. Raises Problem for what will not be taken."""
    try:
        open_header(data, "the picture", pixels)
    except ImageError as error:
        raise Problem(STATUS[error.fault], str(error)) from None


deployment = serve.deployment(
    max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.1}, graceful_shutdown_wait_loop_s=0.2
)(serve.ingress(api)(Endpoint))
