"""Keys, formats and routing, without an endpoint."""

import asyncio
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from pipelines.serve import keys, negotiation, router
from pipelines.serve.keys import Doorkeeper
from pipelines.serve.problems import Problem
from pipelines.serve.replica import Answer, Task
from pipelines.serve.router import Router
from pipelines.serve.settings import Limits, Model, Routing

TASK = Task(b"")


def asking(header):
    return SimpleNamespace(headers={"authorization": header} if header else {})


def test_those_with_a_key_come_in_and_no_others():
    secret, known = keys.new("alice", 10)
    other, also = keys.new("bob", 10)
    door = Doorkeeper([known, also])
    assert secret not in known.model_dump_json()
    for good in (f"Bearer {secret}", f"bearer {other}"):
        door.admit(asking(good))
    for bad in ("", "Bearer ", "Bearer nonsense", f"Basic {secret}", secret, f"Bearer {known.sha256}", "Bearer \udcff"):
        with pytest.raises(Problem) as caught:
            door.admit(asking(bad))
        assert (caught.value.status, caught.value.headers) == (401, {"WWW-Authenticate": "Bearer"})
    Doorkeeper([]).admit(asking(""))


def test_a_key_may_ask_so_often_and_again_a_while_later(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    secret, known = keys.new("alice", 3)
    door = Doorkeeper([known])
    for _ in range(3):
        door.admit(asking(f"Bearer {secret}"))
    with pytest.raises(Problem, match="more than 3 requests a minute") as caught:
        door.admit(asking(f"Bearer {secret}"))
    assert caught.value.status == 429
    now[0] += int(caught.value.headers["Retry-After"])
    door.admit(asking(f"Bearer {secret}"))
    with pytest.raises(Problem):
        door.admit(asking(f"Bearer {secret}"))


@pytest.mark.parametrize(
    ("format", "accept", "chosen"),
    [
        (None, "", "png"),
        (None, "image/webp;q=0.5, image/jpeg;q=0.5", "jpeg"),
        (None, "image/png;q=0, */*", "jpeg"),
        (None, "image/webp;q=nonsense, image/jpeg", "jpeg"),
        ("webp", "image/png", "webp"),
        (None, "application/json", 406),
        (None, "image/png;q=0", 406),
        (None, ";;;,,=q", 406),
    ],
)
def test_formats(format, accept, chosen):
    if chosen == 406:
        with pytest.raises(Problem) as caught:
            negotiation.chosen(format, accept)
        assert caught.value.status == 406
    else:
        assert negotiation.chosen(format, accept) == chosen


class Handle:
    """A slot that answers, or fails, or is slow, as it is told by its `fate`."""

    def __init__(self, version):
        self.version, self.fate, self.asked = version, None, 0
        self.restore = SimpleNamespace(remote=self._remote)

    async def _remote(self, task):
        self.asked += 1
        if isinstance(self.fate, Exception):
            raise self.fate
        if self.fate:
            await asyncio.sleep(self.fate)
        return Answer(self.version)


@pytest.fixture
def slots(monkeypatch):
    monkeypatch.setattr(router.metrics, "count", lambda *_, **__: None)
    return {"a": Handle("1"), "b": Handle("2")}


def model(version):
    rest = dict.fromkeys(("model", "run_id", "dataset_digest", "bundle_digest", "preset"), "x")
    return Model(version=version, **rest)


def routing(**changes):
    staged = {"staged": "b", "until": time.time() + 60}
    return Routing(champion="a", models={"a": model("1"), "b": model("2")}, **(staged | changes))


def ask(slots, told, times=1, seconds=30.0):
    async def all_of_them():
        made = Router(slots, Limits(seconds=seconds))
        made.take(told)
        answers = [(await made.ask(TASK))[0].version for _ in range(times)]
        await asyncio.gather(*made.shadows)
        return answers, made

    return asyncio.run(all_of_them())


def test_a_staged_version_gets_its_share(slots):
    answers, made = ask(slots, routing(share=0.25), 400)
    assert 60 < Counter(answers)["2"] < 140
    seen = made.observed()
    assert seen["1"][0] + seen["2"][0] == 400
    assert seen["1"][1] == seen["2"][1] == 0


@pytest.mark.parametrize("told", [{"share": 0}, {"share": 1, "until": 0}, {"share": 1, "staged": None}])
def test_none_without_a_share_after_its_lease_or_withdrawn(slots, told):
    assert set(ask(slots, routing(**told), 50)[0]) == {"1"}
    assert slots["b"].asked == 0


def test_a_shadow_gets_copies_and_its_answers_go_nowhere(slots):
    slots["b"].fate = RuntimeError("bad")
    slots["b"].fate = RayActorError()
    answers, made = ask(slots, routing(share=1, shadow=True), 5)
    assert set(answers) == {"1"}
    assert made.observed()["2"][:2] == (slots["b"].asked, slots["b"].asked) != (0, 0)


def test_where_a_staged_version_fails_the_champion_answers(slots):
    slots["b"].fate = RayActorError()
    answers, made = ask(slots, routing(share=1), 5)
    assert set(answers) == {"1"}
    assert made.observed()["2"][:2] == (5, 5)


def test_a_replica_that_dies_is_asked_once_more_and_then_it_is_said(slots):
    slots["a"].fate = RayActorError()
    with pytest.raises(Problem, match="could not answer; try again") as caught:
        ask(slots, routing(staged=None))
    assert (caught.value.status, slots["a"].asked) == (503, 2)
    assert "actor" not in caught.value.detail


def test_where_all_are_busy_it_is_said_at_once(slots):
    slots["a"].fate = BackPressureError(num_queued_requests=1, max_queued_requests=1)
    with pytest.raises(Problem, match="busy") as caught:
        ask(slots, routing(staged=None))
    assert (caught.value.status, caught.value.headers, slots["a"].asked) == (503, {"Retry-After": "2"}, 1)


def test_what_takes_too_long_is_let_go(slots):
    slots["a"].fate = 5
    with pytest.raises(Problem, match=r"more than 0\.05 s") as caught:
        ask(slots, routing(staged=None), seconds=0.05)
    assert (caught.value.status, slots["a"].asked) == (504, 1)


def test_what_was_seen_begins_anew_with_each_staged_version(slots):
    _, made = ask(slots, routing(share=1), 3)
    made.take(routing(share=0.5))
    assert made.observed()["2"][0] == 3
    made.take(routing(since=5.0))
    assert made.observed()["2"][0] == 0
