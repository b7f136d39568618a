"""Bodies and jobs without Serve: what is held, and given back."""

import asyncio
import time

import pytest
from starlette.requests import Request
from starlette.responses import Response

from pipelines.serve import bodies
from pipelines.serve.jobs import Jobs
from pipelines.serve.problems import Problem
from pipelines.serve.settings import Limits

LIMITS = Limits(bytes=1000, body_seconds=0.2, jobs=2, job_seconds=60)


def sent(*chunks: bytes, pause: float = 0, **headers: str) -> Request:
    """A request whose body comes in these pieces."""
    waiting = list(chunks)

    async def receive():
        if pause:
            await asyncio.sleep(pause)
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": named}, receive)


def read(request: Request, room: bodies.Room) -> bytes:
    with room.guest() as guest:
        return asyncio.run(bodies.one(request, LIMITS, guest))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (sent(b"x" * 600, b"x" * 600), 413),
        (sent(b"", content_length="1001"), 413),
        (sent(b"x", content_encoding="gzip"), 415),
        (sent(b"x", b"x", pause=0.15), 408),
        (sent(b"abc", content_type="multipart/form-data"), 400),
    ],
)
def test_what_is_refused_holds_nothing_afterwards(request_, status):
    room = bodies.Room(5000)
    with pytest.raises(Problem) as caught:
        read(request_, room)
    assert caught.value.status == status
    assert room.left == 5000


def test_where_others_hold_all_the_room_it_is_said_at_once():
    room = bodies.Room(1000)
    with room.guest() as guest:
        guest.hold(900)
        with pytest.raises(Problem) as caught:
            read(sent(b"x" * 200), room)
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "5"})
    assert read(sent(b"x" * 200, b"y"), room) == b"x" * 200 + b"y"
    assert room.left == 1000


def test_one_picture_is_one_picture():
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="f"\r\n\r\n%s\r\n'
    kind = "multipart/form-data; boundary=x"
    room = bodies.Room(5000)
    assert read(sent(part % b"one" + b"--x--\r\n", content_type=kind), room) == b"one"
    with pytest.raises(Problem, match="use /v1/restore:batch"):
        read(sent(part % b"one" + part % b"two" + b"--x--\r\n", content_type=kind), room)


def test_a_job_holds_its_picture_and_then_what_was_made_of_it():
    async def life():
        room, jobs, go = bodies.Room(1000), Jobs(LIMITS), asyncio.Event()
        guest = bodies.Guest(room)
        guest.hold(300)

        async def work():
            await go.wait()
            return Response(b"made")

        status = jobs.add(work, guest)
        await asyncio.sleep(0.01)
        assert (jobs.status(status.id).status, room.left) == ("running", 700)
        with pytest.raises(Problem) as early:
            jobs.result(status.id)
        assert early.value.status == 409
        go.set()
        await asyncio.sleep(0.01)
        assert (jobs.status(status.id).status, room.left) == ("done", 996)
        assert jobs.result(status.id).body == b"made"
        jobs.remove(status.id)
        assert room.left == 1000

    asyncio.run(life())


def test_a_job_waits_where_all_are_busy_and_is_forgotten_after_a_while(monkeypatch):
    monkeypatch.setattr("pipelines.serve.jobs.BUSY", 0.01)

    async def life():
        room, jobs, tries = bodies.Room(1000), Jobs(LIMITS), []

        async def busy_at_first():
            tries.append(1)
            if len(tries) < 3:
                raise Problem(503, "busy")
            return Response(b"made")

        async def damaged():
            raise Problem(422, "the picture: is damaged")

        good, bad = jobs.add(busy_at_first, bodies.Guest(room)), jobs.add(damaged, bodies.Guest(room))
        with pytest.raises(Problem, match="2 jobs are kept already") as full:
            jobs.add(damaged, bodies.Guest(room))
        assert full.value.headers == {"Retry-After": "30"}
        await asyncio.wait_for(asyncio.gather(*jobs.tasks.values()), 60)
        assert (jobs.status(good.id).status, len(tries)) == ("done", 3)
        assert jobs.status(bad.id).problem["status"] == 422
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 61)
        for id in (good.id, bad.id):
            with pytest.raises(Problem) as gone:
                jobs.status(id)
            assert gone.value.status == 404
        assert room.left == 1000

    asyncio.run(life())
