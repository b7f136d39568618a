"""The web page's files, with headers that let it ask nobody else; and pages elsewhere that may ask here (CORS)."""

from pathlib import Path
from typing import Any

from ray import serve
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

FOLDER = Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
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


class Cors:
    """Starlette's CORS for the origins of the replica's settings, which are not known where the API is declared."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self.inner: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the application starts, and there is no replica yet
            return await self.app(scope, receive, send)
        if self.inner is None:
            origins = serve.get_replica_context().servable_object.settings.origins
            options: dict[str, Any] = {"allow_methods": ["GET", "POST", "DELETE"], "allow_headers": ["authorization"]}
            allowed = CORSMiddleware(self.app, allow_origins=origins, expose_headers=TOLD, **options)
            self.inner = allowed if origins else self.app
        await self.inner(scope, receive, send)
