"""The HTTP side of the endpoint: limits, errors as problem documents (RFC 9457), lineage headers."""

from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from osdface import bundle
from osdface.config import Strict
from osdface.imagefile import ImageError, open_header
from osdface.restorer import resolve
from pipelines import registry
from pipelines.serve.replica import Replica

STATUS = {"empty": 400, "unknown": 415, "animated": 415, "too_large": 413, "unreadable": 422}
TITLES = {400: "Bad request", 413: "Picture too large", 415: "Not a picture", 422: "Unreadable picture"}


class Model(Strict):
    """What is served, as `GET /v1/model` tells it."""

    model: str
    version: str
    run_id: str
    dataset_digest: str
    bundle_digest: str
    preset: str


class Limits(Strict):
    """bytes of a request's body; pixels of a picture, from its header."""

    bytes: int = 20 * 2**20
    pixels: int = 25_000_000


class Problem(Exception):
    """An answer other than the picture."""

    def __init__(self, status: int, detail: str):
        super().__init__(detail)
        self.status, self.detail = status, detail


api = FastAPI(title="osdface", summary="One-step diffusion face restoration", docs_url=None, redoc_url=None)


@api.exception_handler(Problem)
async def _problem(_: Request, problem: Problem) -> JSONResponse:
    body = {"type": "about:blank", "title": TITLES.get(problem.status, "Error"), "status": problem.status}
    return JSONResponse(body | {"detail": problem.detail}, problem.status, media_type="application/problem+json")


@api.exception_handler(HTTPException)
async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    return await _problem(request, Problem(error.status_code, str(error.detail)))


@api.exception_handler(RequestValidationError)
async def _bad_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    return await _problem(request, Problem(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}"))


@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.1})
@serve.ingress(api)
class Endpoint:
    """Takes a picture by HTTP, checks its header, hands it to the replicas."""

    def __init__(self, replica: DeploymentHandle, model: dict[str, str], limits: dict[str, int]):
        self.replica, self.model, self.limits = replica, Model(**model), Limits(**limits)

    @api.post("/v1/restore", response_class=Response)
    async def restore(
        self,
        request: Request,
        faces: Literal["auto", "whole", "aligned"] = "auto",
        format: Literal["png", "jpeg"] = "png",
    ) -> Response:
        """Restore a picture: the body is an image, or a multipart form with one in `image` (or `file`)."""
        data = await self._picture(request)
        try:
            open_header(data, "the picture", self.limits.pixels)
        except ImageError as error:
            raise Problem(STATUS[error.fault], str(error)) from None
        answer = await self.replica.restore.remote(data, faces, format)
        if answer.fault:
            raise Problem(422, answer.fault)
        return Response(answer.picture, media_type=f"image/{format}", headers=self._headers(answer.faces))

    @api.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/v1/model")
    async def served(self) -> Model:
        return self.model

    def _headers(self, faces: int) -> dict[str, str]:
        return {
            "X-Model-Version": self.model.version,
            "X-Run-Id": self.model.run_id,
            "X-Dataset-Digest": self.model.dataset_digest,
            "X-Faces": str(faces),
        }

    async def _picture(self, request: Request) -> bytes:
        """The picture's bytes. The body is counted as it arrives, so that a long one is never held."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.limits.bytes:
                raise Problem(413, f"the body has more than {self.limits.bytes} bytes")
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
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


def describe(ref: str) -> tuple[str, Model]:
    """The local bundle folder of a reference, and what is told about it. Raises UserError where it isn't found."""
    folder = resolve(ref)
    config, digest = bundle.verify(folder), bundle.digest(folder)
    version = registry.find(ref)
    provenance = config.provenance
    return str(folder.absolute()), Model(
        model=f"models:/{version.name}/{version.version}" if version else str(folder.absolute()),
        version=version.version if version else digest,
        run_id=provenance.runs.get("osd", "unknown"),
        dataset_digest=provenance.dataset_digest or "unknown",
        bundle_digest=digest,
        preset=config.preset,
    )


def build(ref: str, limits: Limits | None = None, threads: int = 1) -> tuple[serve.Application, Model]:
    """The Serve application for a model reference."""
    folder, model = describe(ref)
    limits = limits or Limits()
    replica = Replica.bind(folder, limits.pixels, threads)
    return Endpoint.bind(replica, model.model_dump(), limits.model_dump()), model
