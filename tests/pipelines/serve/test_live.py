"""A running endpoint as promotion sees it: staging, shares, shadows, leases, settling, and versions that are bad."""

import time

import pytest
import ray

from osdface import bundle
from osdface.errors import UserError
from osdface.imagefile import read_image
from pipelines.serve import application, live
from tests.heads import wait
from tests.serving import Load, encoded, kill_replicas, picture


@pytest.fixture
def versions(bundle_folder, with_provenance):
    """The champion's bundle, and one that differs in its run's name alone."""
    challenger = with_provenance("challenger", runs={"osd": "c" * 32})
    return application.of_folder(bundle_folder), application.of_folder(challenger, "models:/osdface/2", "2")


@pytest.fixture
def restored(served, versions):
    """The endpoint; the champion has its traffic again afterwards."""
    yield served
    served.withdraw("the test is over")
    if served.serving() != versions[0].model.version:
        served.stage_loaded(versions[0], 0, False, 60)
        served.settle()


def test_a_version_is_staged_tried_and_takes_over_without_a_lost_request(restored, endpoint, versions):
    champion, challenger = versions
    assert restored.serving() == champion.model.version
    with Load(restored.url) as load:
        restored.stage_loaded(challenger, share=0.5, shadow=False, seconds=60)
        answers = restored.try_staged([encoded(picture(5)), encoded(picture(6))])
        assert [read_image(answer).shape for answer in answers] == [(48, 64, 3)] * 2
        time.sleep(3)
        seen = restored.observed()
        restored.settle()
        settled = time.time()
        time.sleep(1)
    assert load.failed() == []
    assert set(load.versions()) == {champion.model.version, "2"}
    assert all(version == "2" for sent, _, _, version in load.answers if sent > settled)
    assert restored.serving() == endpoint.get("/v1/model").json()["version"] == "2"
    assert endpoint.post("/v1/restore", content=encoded(picture())).headers["x-run-id"] == "c" * 32
    for version in ("2", champion.model.version):
        assert seen[version].requests > 0 == seen[version].errors
        assert 0 < seen[version].p50 <= seen[version].p95


def test_what_is_staged_may_change_its_share_and_be_withdrawn(restored, versions):
    champion, challenger = versions
    restored.stage_loaded(challenger, share=1, shadow=False, seconds=60)
    with Load(restored.url, 1) as all_of_it:
        time.sleep(1)
    assert set(all_of_it.versions()) == {"2"}
    restored.stage_loaded(challenger, share=0, shadow=False, seconds=60)
    with pytest.raises(UserError, match="version 2 is being tried there"):
        restored.stage_loaded(champion, share=1, shadow=False, seconds=60)
    with Load(restored.url, 1) as none:
        time.sleep(1)
    assert set(none.versions()) == {champion.model.version}
    restored.withdraw("it was slow")
    for step in (restored.settle, lambda: restored.try_staged([b""])):
        with pytest.raises(UserError, match="no version is staged"):
            step()


def test_a_shadow_is_seen_and_answers_nobody(restored, versions):
    restored.stage_loaded(versions[1], share=1, shadow=True, seconds=60)
    with Load(restored.url, 1) as load:
        time.sleep(2)
    assert set(load.versions()) == {versions[0].model.version}
    assert restored.observed()["2"].requests > 0


def test_the_traffic_comes_back_by_itself_when_a_lease_is_over(restored, versions):
    restored.stage_loaded(versions[1], share=1, shadow=False, seconds=3)
    ends = time.time() + 3.5
    with Load(restored.url, 1) as load:
        wait(lambda: any(sent > ends for sent, *_ in load.answers), 60)
    late = {version for sent, _, _, version in load.answers if sent > ends}
    assert late == {versions[0].model.version}
    assert "2" in load.versions()
    assert load.failed() == []
    restored.expire()
    with restored._joined() as serve:
        assert serve.routing().staged is None


def test_a_version_that_does_not_load_is_said_and_the_champion_serves_on(restored, versions, with_provenance):
    champion = versions[0]
    broken = with_provenance("broken")
    loaded = application.of_folder(broken, "models:/osdface/3", "3")
    (broken / bundle.LORA).write_bytes(b"rubbish")
    with Load(restored.url, 1) as load:
        with pytest.raises(UserError, match=r"version 3 does not load: .*differs from what the bundle") as caught:
            restored.stage_loaded(loaded, share=1, shadow=False, seconds=60)
        assert "\n" not in str(caught.value)
    assert load.failed() == []
    assert set(load.versions()) == {champion.model.version}
    restored.stage_loaded(versions[1], share=1, shadow=False, seconds=60)  # the slot is as good as before


def test_replicas_that_are_killed_cost_no_answer(restored, versions):
    restored.stage_loaded(versions[1], share=0.5, shadow=False, seconds=60)
    with Load(restored.url) as load:
        time.sleep(1)
        killed = kill_replicas("a")
        restarted = time.time()
        while not [answer for answer in load.answers if answer[0] > restarted + 1]:
            time.sleep(0.2)
    assert killed
    assert load.failed() == []


def test_endpoints_are_found_by_their_records(home, served, monkeypatch):
    assert live.endpoints() == []
    with pytest.raises(UserError, match="http://127.0.0.1:1: no endpoint of this .OSDFACE_HOME is there"):
        live.endpoints("http://127.0.0.1:1")


def test_a_process_on_another_cluster_says_so(served):
    elsewhere = live.Running({"url": served.url, "ray": "192.0.2.1:1", "tokens": False, "port": 1})
    assert ray.is_initialized()
    with pytest.raises(UserError, match="works on another Ray cluster"):
        elsewhere.serving()
