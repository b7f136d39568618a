"""Serve's HTTP proxy, before a request comes to the ingress: headers of bounded size, and names that can be read.

Serve calls `middlewares` in its proxy, by $RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which `pipelines.cluster` sets.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from pipelines.serve.problems import Problem


def middlewares() -> list[Middleware]:
    """What the proxy puts around itself; and it parses with h11, which takes headers of 64 KiB, not of any size."""
    import uvicorn.protocols.http.auto as auto
    from uvicorn.protocols.http.h11_impl import H11Protocol

    auto.AutoHTTPProtocol = H11Protocol  # type: ignore[misc,assignment]
    return [Middleware(Readable)]


class Readable:
    """Refuses headers that are no UTF-8, which the proxy decodes."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            for _, value in scope.get("headers", ()):
                value.decode()
        except UnicodeDecodeError:
            return await Problem(400, "a header is no UTF-8").response()(scope, receive, send)
        await self.app(scope, receive, send)
