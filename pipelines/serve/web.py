"""The web page's files, with headers that let it ask nobody else; and pages elsewhere that may ask here (CORS)."""

import re
from pathlib import Path
from typing import Any

from ray import serve
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from pipelines.serve.problems import Problem

FOLDER = Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
TOLD = ["X-Model-Version", "X-Run-Id", "X-Dataset-Digest", "X-Faces", "X-Face-Boxes", "X-Identity", "X-Request-Id"]


class Page(StaticFiles):
    """The page's folder."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER, check_dir=False)
        self.config_checked = True  # an endpoint without a page answers 404

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers.update(HEADERS)
        return response


class Outside:
    """What of other web pages reaches the API: CORS for the origins of the settings, and where no key is asked for, no
    page that has a name of its own lead here (DNS rebinding). The settings are not known where the API is declared."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self.inner: ASGIApp | None = None
        self.hosts: set[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the application starts, and there is no replica yet
            return await self.app(scope, receive, send)
        if self.inner is None:
            ingress: Any = serve.get_replica_context().servable_object
            settings = ingress.settings
            options: dict[str, Any] = {"allow_methods": ["GET", "POST", "DELETE"], "allow_headers": ["authorization"]}
            allowed = CORSMiddleware(self.app, allow_origins=settings.origins, expose_headers=TOLD, **options)
            self.inner = allowed if settings.origins else self.app
            self.hosts = None if settings.keys else LOOPBACK
        host = re.sub(r":\d+$", "", Headers(scope=scope).get("host", ""))
        if self.hosts is None or host in self.hosts:
            return await self.inner(scope, receive, send)
        problem = Problem(
            421, "this endpoint asks for no key and answers to the names of this machine's loopback alone"
        )
        await problem.response()(scope, receive, send)
