"""Answers other than what was asked for, as problem documents (RFC 9457)."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

MEDIA = "application/problem+json"


class Problem(Exception):
    """status: of HTTP; detail: one sentence for whoever asked."""

    def __init__(self, status: int, detail: str, headers: Any = None):
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers

    def body(self) -> dict[str, Any]:
        """The document; `about:blank` means that the status says what kind it is."""
        title = HTTPStatus(self.status).phrase
        return {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}

    def response(self) -> JSONResponse:
        """The document as an answer."""
        return JSONResponse(self.body(), self.status, self.headers, media_type=MEDIA)


def _methods(request: Request) -> set[str]:
    """What the path of a request may be asked with, by any of the application's routes."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    here = [route for route in routes if route.matches(request.scope)[0] != Match.NONE]
    return {method for route in here for method in route.methods or ()}


def install(api: FastAPI) -> None:
    """Have an application answer with problem documents whatever goes wrong in it."""

    @api.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> JSONResponse:
        return error.response()

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # Starlette names the methods of the path's first route
            headers["Allow"] = ", ".join(sorted(_methods(request)))
        return Problem(error.status_code, str(error.detail), headers).response()

    @api.exception_handler(RequestValidationError)
    async def bad_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return Problem(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}").response()

    @api.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return Problem(500, "something went wrong here; the endpoint's log has more").response()
