"""The endpoint's HTTP API without a model behind it: it answers as a test tells it, and remembers what it was asked."""

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from pipelines.serve.web import FOLDER, HEADERS

MODEL = {
    "model": "models:/osdface/7", "version": "7", "run_id": "a" * 32, "dataset_digest": "d" * 64,
    "bundle_digest": "b" * 64, "preset": "tiny",
}  # fmt: skip
LINEAGE = {"X-Model-Version": "7", "X-Run-Id": "a" * 32, "X-Dataset-Digest": "d" * 64}
FACES = [((20, 30, 80, 90), 0.97), ((110, 20, 170, 80), 0.84), ((200, 40, 250, 90), None)]


@dataclass
class Standin:
    """faces: what is found in every picture; problem: answered instead, once (status, headers, body); key: wanted of
    everybody; delay: seconds until an answer; asked: (path, query) of each POST."""

    url: str = ""
    faces: list = field(default_factory=lambda: list(FACES))
    problem: tuple[int, dict[str, str], bytes | dict] | None = None
    key: str = ""
    delay: float = 0
    limits: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    polls: int = 0
    job: Response | None = None

    def refusal(self, request: Request) -> Response | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return problem(401, "give an API key", {"WWW-Authenticate": "Bearer"})
        if not self.problem:
            return None
        (status, headers, body), self.problem = self.problem, None
        return problem(status, body, headers) if isinstance(body, str) else Response(body, status, headers)

    def restore(self, request: Request, body: bytes) -> Response:
        """A blue picture of the same size, so that a test sees which of the two it looks at."""
        query = dict(request.query_params)
        self.asked.append((request.url.path, query))
        time.sleep(self.delay)
        if refused := self.refusal(request):
            return refused
        image = Image.open(io.BytesIO(body))
        chosen = [int(i) for i in query.get("only", "").split(",") if i] if "only" in query else range(len(self.faces))
        faces = [self.faces[i] for i in chosen] if query["faces"] == "auto" else []
        data = io.BytesIO()
        Image.new("RGB", image.size, (0, 0, 250)).save(data, query["format"].upper())
        headers = LINEAGE | {
            "X-Faces": str(len(faces)),
            "X-Face-Boxes": json.dumps([box for box, _ in faces]),
            "X-Identity": json.dumps([identity for _, identity in faces]),
        }
        return Response(data.getvalue(), headers=headers, media_type=f"image/{query['format']}")


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    body = {"type": "about:blank", "title": "x", "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def application(standin: Standin) -> Starlette:
    async def index(_: Request) -> Response:
        return FileResponse(FOLDER / "index.html", headers=HEADERS)

    async def model(request: Request) -> Response:
        if standin.key and request.headers.get("authorization") != f"Bearer {standin.key}":
            return problem(401, "give an API key")
        return JSONResponse(MODEL | ({"limits": standin.limits} if standin.limits else {}))

    async def restore(request: Request) -> Response:
        body = await request.body()
        return await anyio.to_thread.run_sync(standin.restore, request, body)

    async def submit(request: Request) -> Response:
        answer = await restore(request)
        if answer.status_code in (401, 429):
            return answer
        standin.job, standin.polls = answer, 0
        return JSONResponse({"id": "1", "status": "queued"}, 202, {"Location": "/v1/jobs/1"})

    async def job(_: Request) -> Response:
        standin.polls += 1
        if standin.polls < 2:
            return JSONResponse({"id": "1", "status": "running"})
        if standin.job.status_code != 200:
            return JSONResponse({"id": "1", "status": "failed", "problem": json.loads(standin.job.body)})
        return JSONResponse({"id": "1", "status": "done"})

    async def result(_: Request) -> Response:
        return standin.job

    return Starlette(
        routes=[
            Route("/", index),
            Route("/v1/model", model),
            Route("/v1/restore", restore, methods=["POST"]),
            Route("/v1/jobs", submit, methods=["POST"]),
            Route("/v1/jobs/1", job),
            Route("/v1/jobs/1/result", result),
            Mount("/page", StaticFiles(directory=FOLDER)),
        ]
    )


@contextmanager
def running(standin: Standin) -> Iterator[Standin]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        standin.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(application(standin), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield standin
        finally:
            server.should_exit = True
            thread.join(5)
