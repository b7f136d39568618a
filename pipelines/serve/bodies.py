"""Pictures out of a request's body, which is counted and timed as it arrives, so that a long one is never held."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from pipelines.serve.problems import Problem
from pipelines.serve.settings import Limits

NAMES = ("image", "file")  # of a form's parts that are pictures
FIELDS = 16  # of a form, beside pictures


class Guest:
    """What one request, or job, holds of the room that all have together."""

    def __init__(self, room: "Room"):
        self.room, self.bytes = room, 0

    def hold(self, more: int) -> None:
        """Raises Problem (503) where there is no room for so many bytes more."""
        if self.room.left < more:
            raise Problem(503, "too much is being sent here; try again later", {"Retry-After": "5"})
        self.room.left -= more
        self.bytes += more

    def leave(self) -> None:
        """Give back all that is held."""
        self.room.left += self.bytes
        self.bytes = 0


class Room:
    """So many bytes may be held at a time, of bodies and of what jobs made."""

    def __init__(self, bytes: int):
        self.left = bytes

    @contextlib.contextmanager
    def guest(self) -> Iterator[Guest]:
        """Room for a request until it has been answered."""
        guest = Guest(self)
        try:
            yield guest
        finally:
            guest.leave()


async def one(request: Request, limits: Limits, guest: Guest) -> bytes:
    """The picture of a request: its body, or the part `image` (or `file`) of a multipart form. Raises Problem."""
    body = await _body(request, limits, guest)
    if not _is_form(request):
        return body
    first, *others = await _pictures(request, body, 4)
    if others:
        raise Problem(400, "the multipart form has several pictures; send one, or use /v1/restore:batch")
    return first


async def several(request: Request, limits: Limits, guest: Guest) -> list[bytes]:
    """All pictures of a multipart form. Raises Problem, for other bodies too."""
    body = await _body(request, limits, guest)
    if not _is_form(request):
        raise Problem(415, "send a multipart form with one part `image` for each picture")
    return await _pictures(request, body, limits.pictures)


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def _body(request: Request, limits: Limits, guest: Guest) -> bytes:
    if encoding := request.headers.get("content-encoding"):
        raise Problem(415, f"a body in the encoding '{encoding[:20]}' is not read; send it as it is")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.bytes:
        raise Problem(413, f"the body has more than {limits.bytes} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                guest.hold(len(chunk))
                body += chunk
                if len(body) > limits.bytes:
                    raise Problem(413, f"the body has more than {limits.bytes} bytes")
    except TimeoutError:
        raise Problem(408, f"the body did not arrive within {limits.body_seconds:g} s") from None
    except ClientDisconnect:
        raise Problem(400, "the body ends before it should") from None
    return bytes(body)


async def _pictures(request: Request, body: bytes, most: int) -> list[bytes]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        form = await Request(request.scope, receive).form(max_files=most, max_fields=FIELDS)
        parts = [part for name in NAMES for part in form.getlist(name) if isinstance(part, UploadFile)]
        pictures = [await part.read() for part in parts]
    except Exception as error:  # the parsers raise many kinds for a malformed form
        raise Problem(400, f"the multipart form cannot be read ({getattr(error, 'detail', error)})") from None
    if not pictures:
        raise Problem(400, "the multipart form has no file named 'image'")
    return pictures
