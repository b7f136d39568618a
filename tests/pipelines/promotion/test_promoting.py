"""The way to the champion: its order, what stops it, what is left then, the way back, what is recorded."""

import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mlflow import MlflowException

from osdface import faces
from osdface.errors import UsageError, UserError
from osdface.imagefile import read_image
from pipelines import registry, tracking
from pipelines.promotion import history, promoting, selftest, turn
from pipelines.promotion.checks import Refused
from pipelines.promotion.gates import Bound, Trial
from pipelines.promotion.promoting import Wishes
from pipelines.serve import records
from tests.promotion import FREE, not_a_number

PLAIN = Wishes(FREE)
CANARY = Wishes(FREE, share=0.1, seconds=0.05)
HARD = FREE.model_copy(update={"metrics": {"psnr": Bound(min=22)}})


def promote(number: str, wishes: Wishes = PLAIN) -> dict:
    return promoting.promote(number, wishes, tell=lambda text: None)


def rollback(why: str = "") -> dict:
    return promoting.rollback(Wishes(FREE, why=why), tell=lambda text: None)


@pytest.fixture
def champion(versions) -> list[registry.Version]:
    """The versions, of which the first is the champion."""
    registry.promote("1")
    return versions


def unmoved(endpoint=None) -> None:
    """Version 1 is the champion, and has the traffic; nothing of another is left."""
    assert registry.aliases() == {"champion": "1"}
    if endpoint:
        assert endpoint.version == "1"
        assert endpoint.staged is None


def test_without_an_endpoint_the_alias_moves(versions, no_endpoint):
    assert promote("1")["endpoints"] == []
    assert promote("2")["former"] == "1"
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    assert promote("2")["outcome"] == "is the champion already"
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    with pytest.raises(UserError, match="no endpoint runs here that serves the champion of 'osdface'"):
        promote("3", CANARY)
    assert registry.aliases() == {"champion": "2", "previous": "1"}


def test_an_endpoint_goes_over_in_order(champion, endpoint):
    moments = []
    endpoint.answers = lambda pictures: moments.append(dict(registry.aliases())) or list(pictures)
    endpoint.on_look = lambda looks: moments.append(dict(registry.aliases()))
    result = promote("2", CANARY)
    assert endpoint.log == [
        ("stage", "2", 0.0, False), ("stage", "2", 0.1, False), ("stage", "2", 0.1, False), ("settle",),
    ]  # fmt: skip
    assert endpoint.version == "2"
    assert all(moment == {"champion": "1", "challenger": "2"} for moment in moments)
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    assert (result["outcome"], result["endpoints"]) == ("promoted", ["http://1"])
    assert [check["gate"] for check in result["checks"]][-4:] == [
        "live requests", "live errors", "live latency, p50", "live latency, p95",
    ]  # fmt: skip


def test_a_shadow_gets_copies(champion, endpoint):
    promote("2", Wishes(FREE, share=1.0, seconds=0.05, shadow=True))
    assert ("stage", "2", 1.0, True) in endpoint.log


@pytest.mark.parametrize("ref", ["models:/osdface/1", "/a/bundle", "models:/other@champion", "challenger"])
def test_an_endpoint_that_was_not_started_for_the_champion_is_left_alone(champion, endpoint, ref):
    records.write(1, url=endpoint.url, ref=ref)
    assert promote("2")["endpoints"] == []
    assert endpoint.log == []
    assert promote("3", Wishes(FREE, url=endpoint.url))["endpoints"] == [endpoint.url]  # unless it is named


@pytest.mark.parametrize("ref", ["champion", "models:/osdface@champion"])
def test_an_endpoint_that_was_started_for_the_champion_goes_over(champion, endpoint, ref):
    records.write(1, url=endpoint.url, ref=ref)
    assert promote("2")["endpoints"] == [endpoint.url]


def black(pictures) -> list[bytes]:
    return [selftest._coded(np.zeros((256, 256, 3), np.uint8)) for _ in pictures]


def words(pictures) -> list[bytes]:
    return [b"no picture" for _ in pictures]


def small(pictures) -> list[bytes]:
    return [selftest._coded(np.eye(32, dtype=np.uint8)[..., None].repeat(3, -1) * 255) for _ in pictures]


def constant(pictures) -> list[bytes]:
    return [pictures[0]] * len(pictures)


def fewer(pictures) -> list[bytes]:
    return list(pictures[1:])


def test_the_self_test_is_fixed_and_its_faces_are_found_as_they_are():
    given = selftest.pictures(8)
    assert given[:2] == selftest.pictures.__wrapped__(2)
    assert all(faces.is_aligned(read_image(picture)) for picture in given)
    assert selftest.faults(given, given, 1.0) == []


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        (black, "answer 1 is of one colour"), (words, "answer 1 is no picture"), (small, "answer 1 has 32x32 pixels"),
        (constant, "all answers are the same picture"), (fewer, "3 answers to 4 pictures"),
    ],
)  # fmt: skip
def test_bad_answers_to_the_self_test_stop_it(champion, endpoint, answers, sentence):
    endpoint.answers = answers
    with pytest.raises(Refused, match=f"models:/osdface/2 is refused: self-test at http://1: {sentence}"):
        promote("2", CANARY)
    unmoved(endpoint)
    assert endpoint.calls() == ["stage", "withdraw"]
    assert sentence in endpoint.log[-1][1]


@pytest.mark.parametrize("fault", [UserError("it does not load"), RuntimeError("bug"), KeyboardInterrupt()])
def test_a_version_that_does_not_load_stops_it(champion, endpoint, fault):
    endpoint.faults["stage"] = fault
    with pytest.raises(type(fault)):
        promote("2", CANARY)
    unmoved(endpoint)


def test_errors_of_live_requests_stop_it_at_once(champion, endpoint):
    endpoint.errors, endpoint.rate = 5, 3
    start = time.monotonic()
    with pytest.raises(Refused, match="live errors: 3 of 3, wanted at most 1.00%") as refused:
        promote("2", Wishes(FREE, share=0.1, seconds=60))
    assert time.monotonic() - start < 30
    unmoved(endpoint)
    assert endpoint.calls() == ["stage", "stage", "withdraw"]
    assert refused.value.details["checks"][-1]["gate"] == "live errors"


def test_a_slow_version_is_stopped(champion, endpoint):
    endpoint.slower = 2.5
    with pytest.raises(Refused, match="live latency, p50: 0.25 s, wanted at most 2 times 0.1 s"):
        promote("2", CANARY)
    unmoved(endpoint)


def test_too_few_live_requests_decide_nothing(champion, endpoint):
    endpoint.rate = 0
    with pytest.raises(Refused, match="live requests: 0, wanted at least 20"):
        promote("2", CANARY)
    unmoved(endpoint)


def test_a_failing_settlement_brings_the_alias_back(champion, endpoint):
    registry.repoint({"previous": "3"})
    endpoint.faults["settle"] = UserError("the endpoint is gone")
    with pytest.raises(UserError, match="gone"):
        promote("2")
    assert registry.aliases() == {"champion": "1", "previous": "3"}
    assert endpoint.version == "1"


def test_of_two_endpoints_both_go_back_if_one_fails(champion, endpoint, monkeypatch):
    other = type(endpoint)("1")
    other.faults["settle"] = UserError("gone")
    monkeypatch.setattr("pipelines.serve.live.endpoints", lambda url=None: [endpoint, other])
    with pytest.raises(UserError, match="gone"):
        promote("2")
    unmoved(endpoint)
    assert other.version == "1"


def test_a_champion_that_changed_meanwhile_is_not_run_over(champion, endpoint):
    endpoint.on_look = lambda looks: looks == 1 and registry.repoint({"champion": "3"})
    with pytest.raises(UserError, match=r"got another champion meanwhile \(3\); promote again"):
        promote("2", CANARY)
    assert registry.aliases() == {"champion": "3"}
    assert endpoint.version == "1"
    assert endpoint.calls()[-1] == "withdraw"


def test_a_registry_that_goes_away_leaves_the_traffic(champion, endpoint, monkeypatch):
    client = tracking.client(tracking.uri())

    def gone(*_, **__):
        raise MlflowException("the server is gone")

    with monkeypatch.context() as patch:
        endpoint.on_look = lambda looks: patch.setattr(client, "set_registered_model_alias", gone)
        with pytest.raises(UserError, match="MLflow at sqlite.*the server is gone; models:/osdface/2 was not promoted"):
            promote("2", CANARY)
    assert (endpoint.version, endpoint.staged) == ("1", None)
    assert registry.aliases()["champion"] == "1"


def test_gates_refuse_unless_forced_with_a_reason(champion, endpoint):
    with pytest.raises(Refused, match="^models:/osdface/2 is refused: evaluation: none"):
        promote("2", Wishes(HARD))
    assert endpoint.log == []
    unmoved(endpoint)
    for why in ("", "  "):
        with pytest.raises(UsageError, match="--force goes with --why"):
            promote("2", Wishes(HARD, force=True, why=why))
    assert promote("2", Wishes(HARD, force=True, why="the dataset is lost"))["outcome"] == "promoted"
    latest = history.attempts("osdface")[0]
    assert (latest["outcome"], latest["why"]) == ("promoted", "the dataset is lost")


def test_a_reason_does_not_promote_what_restores_nothing(champion, spoilt, no_endpoint):
    bad = registry.register(spoilt(not_a_number))
    wishes = Wishes(FREE.model_copy(update={"trial": Trial()}), force=True, why="hurry")
    with pytest.raises(Refused, match="trial: .*of one colour"):
        promote(bad.version, wishes)
    unmoved()


@pytest.mark.parametrize("wishes", [Wishes(share=0.1), Wishes(share=2, seconds=1), Wishes(seconds=5)])
def test_wishes_that_do_not_go_together(wishes):
    with pytest.raises(UsageError):
        wishes.check()


def test_the_second_of_two_promotions_refuses(champion, endpoint):
    said = []

    def look(looks: int) -> None:
        if looks == 1:
            with ThreadPoolExecutor(1) as pool, pytest.raises(UserError) as refused:
                pool.submit(promote, "3").result()
            said.append(str(refused.value))

    endpoint.on_look = look
    promote("2", CANARY)
    assert said[0].startswith("'osdface' is being promoted already (version 2 by ")
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    endpoint.on_look = lambda looks: None
    assert promote("3")["outcome"] == "promoted"


def test_a_promotion_from_another_machine_is_heeded_until_its_lease_ends(champion, no_endpoint, monkeypatch):
    client = tracking.client(tracking.uri())
    held = {"token": "t", "by": "eve", "what": "version 3", "place": "elsewhere:/home", "until": time.time() + 60}
    client.set_registered_model_tag("osdface", turn.KEY, json.dumps(held))
    with pytest.raises(UserError, match=r"being promoted already \(version 3 by eve\)"):
        promote("2")
    unmoved()
    client.set_registered_model_tag("osdface", turn.KEY, json.dumps(held | {"until": time.time() - 1}))
    assert promote("2")["outcome"] == "promoted"
    assert turn.KEY not in client.get_registered_model("osdface").tags


def test_of_two_simultaneous_claims_one_holds(champion, no_endpoint, monkeypatch):
    other = {"token": "t", "by": "eve", "what": "version 3", "place": "elsewhere:/home", "until": time.time() + 60}
    client = tracking.client(tracking.uri())

    def meanwhile(_: float) -> None:
        client.set_registered_model_tag("osdface", turn.KEY, json.dumps(other))

    monkeypatch.setattr(turn.time, "sleep", meanwhile)
    with pytest.raises(UserError, match="being promoted already"):
        promote("2")
    assert json.loads(client.get_registered_model("osdface").tags[turn.KEY])["token"] == "t"


def promote_until_killed(ready) -> None:
    """In a child: a promotion that hangs in its canary."""
    from pipelines.serve import live
    from tests.promotion import Fake

    fake = Fake("1")
    fake.on_look = lambda looks: (ready.set(), time.sleep(600))
    live.endpoints = lambda url=None: [fake]
    promote("2", CANARY)


def test_a_killed_promoter_blocks_nobody(champion, no_endpoint):
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    child = spawn.Process(target=promote_until_killed, args=(ready,))
    child.start()
    assert ready.wait(180)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert registry.aliases() == {"champion": "1", "challenger": "2"}
    assert history.attempts("osdface")[0]["outcome"] == "under way, or killed"
    assert promote("3")["outcome"] == "promoted"
    assert registry.aliases() == {"champion": "3", "previous": "1"}


def test_rollback_goes_back_and_further_back_but_never_to_what_was_left(champion, endpoint):
    promote("2")
    promote("3")
    endpoint.log.clear()
    result = rollback("glasses vanish")
    assert (result["version"], result["former"], result["outcome"]) == ("2", "3", "rolled back")
    assert endpoint.calls() == ["stage", "stage", "settle"]
    assert endpoint.version == "2"
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    assert rollback()["version"] == "1"
    assert registry.aliases() == {"champion": "1"}
    with pytest.raises(UserError, match="'osdface' has no previous champion to go back to"):
        rollback()
    promote("3")
    assert rollback()["version"] == "1"
    assert registry.aliases() == {"champion": "1"}


def test_a_version_that_was_deleted_is_not_gone_back_to(champion, no_endpoint):
    promote("2")
    promote("3")
    tracking.client(tracking.uri()).delete_model_version("osdface", "1")
    assert rollback()["version"] == "2"
    assert registry.aliases() == {"champion": "2"}


def test_what_a_killed_promoter_left_staged_is_cleared_away(champion, endpoint):
    endpoint.staged = "3"
    promote("2")
    assert endpoint.calls() == ["withdraw", "stage", "stage", "settle"]


def test_an_endpoint_that_is_ahead_needs_nothing(champion, endpoint):
    endpoint.version = "2"  # it was started so, or followed somebody else
    assert promote("2", CANARY)["endpoints"] == [endpoint.url]
    assert endpoint.log == []
    assert registry.aliases() == {"champion": "2", "previous": "1"}


def test_a_rollback_that_fails_leaves_the_champion(champion, endpoint):
    promote("2")
    endpoint.faults["settle"] = UserError("gone")
    with pytest.raises(UserError, match="gone"):
        rollback()
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    assert endpoint.version == "2"


def test_every_attempt_is_kept(champion, endpoint, mlflow_home):
    promote("2", Wishes(FREE, share=0.5, seconds=0.05, why="sharper"))
    endpoint.answers = black
    with pytest.raises(Refused):
        promote("3")
    endpoint.answers = list
    rollback("glasses vanish")
    kept = history.attempts("osdface")
    told = [tuple(one[key] for key in ("action", "version", "former", "outcome", "why")) for one in kept]
    assert told == [
        ("rollback", "1", "2", "rolled back", "glasses vanish"),
        ("promote", "3", "2", "refused", ""),
        ("promote", "2", "1", "promoted", "sharper"),
    ]
    assert "one colour" in kept[1]["reason"]
    client = tracking.client(tracking.uri())
    run = client.get_run(kept[2]["run"])
    assert (run.info.status, client.get_run(kept[1]["run"]).info.status) == ("FINISHED", "FAILED")
    assert run.data.metrics["live/requests"] >= 30
    report = json.loads(next(mlflow_home.rglob(f"{run.info.run_id}/artifacts/promotion.json")).read_text())
    assert report["outcome"] == "promoted"
    assert {"self-test at http://1", "live errors"} <= {check["gate"] for check in report["checks"]}
    assert registry.version("2").promotion["replaced"] == "1"
    assert registry.version("3").promotion["outcome"] == "refused"
    assert history.attempts("other") == []


def test_an_examination_changes_nothing(champion, endpoint):
    checks = promoting.examine("2", HARD, tell=lambda text: None)
    assert [check.passed for check in checks] == [True, False]
    unmoved(endpoint)
    assert endpoint.log == []
    assert history.attempts("osdface") == []
