"""An endpoint and the registry: following the champion, and getting on without the registry."""

import shutil
from contextlib import contextmanager

import pytest

from osdface import bundle
from osdface.errors import UserError
from pipelines import registry, tracking
from pipelines.serve import application, follow
from pipelines.serve.follow import Follower

CHAMPION = "models:/osdface@champion"


class Endpoint:
    """What a follower sees of a running endpoint."""

    def __init__(self, version):
        self.version, self.notices, self.staged, self.busy, self.bad = version, [], None, False, set()

    def serving(self):
        return self.version

    def at_stake(self):
        return self.busy

    def expire(self):
        pass

    def note(self, notice):
        self.notices.append(notice)

    def stage_loaded(self, loaded, share, shadow, seconds):
        assert share == 0
        if loaded.model.version in self.bad:
            raise UserError("it makes nothing")
        self.staged = loaded

    def settle(self):
        self.version = self.staged.model.version


def crown(version: str) -> None:
    """Make a version the champion, without more ado."""
    tracking.client(tracking.uri()).set_registered_model_alias("osdface", "champion", version)


@pytest.fixture
def versions(mlflow_home, with_provenance):
    """Two registered versions, the first of them champion."""
    made = [registry.register(with_provenance(name, runs={"osd": name[0] * 32})) for name in ("aa", "bb")]
    crown(made[0].version)
    return made


@contextmanager
def unreachable(monkeypatch):
    """MLflow's server is gone, also for clients that were made before."""
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


def look(endpoint, ref=CHAMPION, following=True):
    Follower(endpoint, ref, following).look()
    return endpoint.notices[-1] if endpoint.notices else None


def test_a_changed_champion_is_served(versions):
    endpoint = Endpoint("1")
    assert look(endpoint) == ""
    crown("2")
    assert look(endpoint) == ""
    assert endpoint.version == "2"


def test_or_only_said(versions):
    crown("2")
    endpoint = Endpoint("1")
    assert look(endpoint, following=False) == f"{CHAMPION} is version 2; serving version 1, as --no-follow has it"
    assert endpoint.version == "1"


def test_not_while_somebody_promotes_there_and_not_where_no_alias_is_served(versions, with_provenance):
    crown("2")
    endpoint = Endpoint("1")
    endpoint.busy = True
    assert look(endpoint) is None
    endpoint.busy = False
    for ref in ("models:/osdface/1", str(with_provenance("folder"))):
        assert look(endpoint, ref) is None
    assert endpoint.version == "1"


def test_a_champion_that_does_not_load_is_not_served_and_tried_again_later(versions, monkeypatch):
    crown("2")
    endpoint = Endpoint("1")
    endpoint.bad.add("2")
    follower = Follower(endpoint, CHAMPION, True)
    follower.look()
    assert endpoint.notices[-1] == f"{CHAMPION} is version 2, which is not served (it makes nothing); serving version 1"
    endpoint.bad.clear()
    follower.look()
    assert "does not load" in endpoint.notices[-1]
    monkeypatch.setattr(follow, "AGAIN", 0)
    follower.look()
    assert (endpoint.notices[-1], endpoint.version) == ("", "2")


def test_with_mlflow_out_of_reach_in_the_middle_it_serves_on_and_says_so(versions, monkeypatch):
    endpoint = Endpoint("1")
    with unreachable(monkeypatch):
        assert "MLflow at http://127.0.0.1:9: does not answer" in look(endpoint)
    assert endpoint.notices[-1].endswith("serving version 1 as before")
    assert look(endpoint) == ""


def test_with_mlflow_out_of_reach_at_the_start_it_starts_with_what_it_had(versions, monkeypatch):
    for version in ("1", "2"):
        crown(version)
        loaded, notice = follow.first(CHAMPION)
        assert (loaded.model.version, notice) == (version, "")
    with unreachable(monkeypatch):
        again, notice = follow.first(CHAMPION)
        assert again == loaded
        assert notice.startswith("MLflow at http://127.0.0.1:9: does not answer")
        assert notice.endswith(f"version 2 was {CHAMPION} when it last did")
        with pytest.raises(UserError, match="does not answer"):
            follow.first("models:/osdface@challenger")  # never served from here
        shutil.rmtree(again.folder)
        with pytest.raises(UserError, match="not a model bundle"):
            follow.first(CHAMPION)


def test_a_reference_that_names_nothing_is_no_server_that_is_gone(versions):
    follow.first(CHAMPION)
    client = tracking.client(tracking.uri())
    client.delete_registered_model_alias("osdface", "champion")
    with pytest.raises(UserError, match="no version of 'osdface' has the alias 'champion'"):
        follow.first(CHAMPION)


def test_what_is_told_of_a_registered_version(mlflow_home, with_provenance):
    folder = with_provenance(runs={"osd": "a" * 32, "vre": "b" * 32}, dataset_digest="d" * 64)
    crown(registry.register(folder).version)
    loaded = application.describe("champion")
    assert loaded.folder == str(mlflow_home / "cache" / "models" / bundle.digest(folder))
    assert (loaded.model.model, loaded.model.version, loaded.ref) == ("models:/osdface/1", "1", "models:/osdface/1")
    assert (loaded.model.run_id, loaded.model.dataset_digest) == ("a" * 32, "d" * 64)


def test_what_cannot_be_served_is_said_before_anything_starts(mlflow_home, with_provenance, tmp_path):
    for ref, words in (
        (CHAMPION, "no version of 'osdface' has the alias 'champion'"),
        (str(tmp_path), "not a model bundle"),
        (str(tmp_path / "nowhere"), "not found: give a bundle folder, tiny, models:/NAME/VERSION"),
    ):
        with pytest.raises(UserError, match=words):
            follow.first(ref)
    folder = with_provenance()
    config = bundle.read_config(folder)
    outside = config.model_copy(update={"base": config.base.model_copy(update={"path": str(tmp_path / "gone")})})
    (folder / "config.json").write_text(outside.model_dump_json())
    with pytest.raises(UserError, match="its base model .* is not at .*gone; put it back there"):
        follow.first(str(folder))
