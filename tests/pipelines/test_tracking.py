import contextlib
import json
import logging
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from osdface.errors import UserError
from pipelines import tracking
from pipelines.pairs.manifest import read_manifest
from pipelines.tracking import recording, revision, runs

CONFIG = {
    "preset": "tiny",
    "optimizer": {"lr": 1e-4, "betas": [0.9, 0.999]},
    "tag": "",
    "init": None,
    "note": "x" * 600,
}


@pytest.fixture
def begin(mlflow_home, pairs):
    """tracking.run with the small pair dataset filled in."""

    def run(stage="vre", name="vre-1", parents=None, resume=None):
        return tracking.run(stage, name, CONFIG, read_manifest(pairs), pairs, parents or {}, resume)

    return run


def client() -> MlflowClient:
    return tracking.client(tracking.uri())


def test_a_run_holds_config_dataset_revision_and_parents(begin, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "git_revision", lambda: "e" * 40 + "+")
    digest = read_manifest(pairs).digest
    with begin("osd", "osd-1", {"base": "b" * 32, "vre": "c" * 32}) as run:
        run.metrics({"g/l1": 0.5}, 3)
        run.image("sheets/end.png", np.zeros((4, 4, 3), np.uint8))
        (tmp_path / "note.json").write_text("{}")
        run.artifact(tmp_path / "note.json", "checkpoints")
        run.tag({"bundle_digest": "d" * 64})
    found = client().get_run(run.id)
    assert found.info.run_name == "osd-1"
    tags = found.data.tags
    assert tags["osdface.dataset_digest"] == digest
    assert tags["osdface.dataset"] == str(pairs)
    assert tags["osdface.git_revision"] == "e" * 40 + "+"
    assert (tags["osdface.run.base"], tags["osdface.run.vre"]) == ("b" * 32, "c" * 32)
    assert tags["osdface.bundle_digest"] == "d" * 64
    assert found.data.params["optimizer.lr"] == "0.0001"
    assert found.data.params["init"] == "null"
    assert found.data.params["note"] == "x" * tracking.VALUE_LENGTH
    assert found.data.metrics == {"g/l1": 0.5}
    (given,) = found.inputs.dataset_inputs
    assert digest.startswith(given.dataset.digest)
    assert len(given.dataset.digest) == tracking.DIGEST_LENGTH
    assert json.loads(given.dataset.source) == {"uri": str(pairs), "digest": digest}
    assert given.tags[0].value == "training"
    stored = client().download_artifacts(run.id, "config.json")
    assert json.loads(Path(stored).read_text()) == CONFIG
    assert [f.path for f in client().list_artifacts(run.id, "sheets")] == ["sheets/end.png"]
    assert [f.path for f in client().list_artifacts(run.id, "checkpoints")] == ["checkpoints/note.json"]


def test_one_experiment_a_stage_with_artifacts_under_home(begin, mlflow_home):
    for stage, name in (("vre", "a"), ("vre", "b"), ("osd", "c")):
        with begin(stage, name):
            pass
    found = {e.name: e for e in client().search_experiments()}
    assert set(found) == {"Default", "osdface/vre", "osdface/osd"}
    assert len(client().search_runs([found["osdface/vre"].experiment_id])) == 2
    assert found["osdface/osd"].artifact_location == (mlflow_home / "artifacts" / "osd").as_uri()
    assert len(list((mlflow_home / "artifacts").rglob("config.json"))) == 3


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (UserError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_a_run_ends_as_its_work_did(begin, error, status):
    def work():
        with begin() as run:
            ids.append(run.id)
            assert client().get_run(run.id).info.status == "RUNNING"
            raise error

    ids = []
    with pytest.raises(error):
        work()
    assert client().get_run(ids[0]).info.status == status


def test_resuming_continues_the_same_run(begin):
    with contextlib.suppress(InterruptedError), begin() as first:
        first.metrics({"loss": 2.0}, 0)
        raise InterruptedError
    with begin(resume=first.id) as second:
        assert client().get_run(second.id).info.status == "RUNNING"
        second.metrics({"loss": 1.0}, 1)
    assert second.id == first.id
    assert client().get_run(first.id).info.status == "FINISHED"
    assert [(m.step, m.value) for m in client().get_metric_history(first.id, "loss")] == [(0, 2.0), (1, 1.0)]


def test_a_run_that_the_server_has_lost_begins_anew(begin):
    with begin() as first:
        pass
    client().delete_run(first.id)
    with begin(resume=first.id) as second:
        pass
    assert second.id != first.id
    with begin(resume="f" * 32) as third:
        pass
    assert third.id not in (first.id, second.id)


def test_workers_log_to_a_run_that_was_begun_elsewhere(begin):
    with begin() as run:
        mine = tracking.attach(run.id, run.uri)
        mine.metrics({"loss": 1.5}, 7)
        mine.close()
    assert client().get_run(run.id).data.metrics == {"loss": 1.5}
    assert client().get_run(run.id).info.status == "FINISHED"


def test_a_server_that_is_down_is_one_sentence(begin, monkeypatch, free_port):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=f"MLflow at http://127.0.0.1:{free_port}: does not answer") as caught:
        begin().__enter__()
    assert "\n" not in str(caught.value)


def test_an_address_with_a_password_in_it_is_refused(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example")
    with pytest.raises(UserError, match="has a password in it; put it into MLFLOW_TRACKING_USERNAME") as caught:
        tracking.uri()
    assert "secret" not in str(caught.value)


def test_a_home_that_cannot_be_written_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"mlflow\.db: does not answer"):
        tracking.client(tracking.uri())


@pytest.fixture
def server(mlflow_home, monkeypatch, free_port):
    """MLflow's own HTTP server over this home's database, in a thread; stops when the test says so, or ends."""
    from werkzeug.serving import make_server

    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{mlflow_home / 'mlflow.db'}")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(mlflow_home / "served"))
    monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    from mlflow.server import app, handlers

    monkeypatch.setattr(handlers, "_tracking_store", None)
    running = make_server("127.0.0.1", free_port, app, threaded=True)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()

    def stop():
        running.shutdown()
        running.server_close()
        thread.join()

    yield stop
    if thread.is_alive():
        stop()


def test_a_server_that_dies_does_not_stop_the_training(server, begin, caplog, monkeypatch):
    monkeypatch.setattr(recording, "LAST_TRY", 0.5)
    with caplog.at_level(logging.WARNING, recording.log.name), begin() as run:
        run.metrics({"loss": 2.0}, 0)
        assert run.flush(10)
        assert client().get_run(run.id).data.metrics == {"loss": 2.0}
        server()
        start = time.monotonic()
        run.metrics({"loss": 1.0}, 1)
        run.metrics({"loss": 0.5}, 2)
        run.image("sheets/end.png", np.zeros((4, 4, 3), np.uint8))
        assert time.monotonic() - start < 0.5
    assert len([r for r in caplog.records if "does not take records" in r.message]) == 1
    assert f"4 records of run {run.id} are lost" in caplog.records[-1].message  # with the run's end


def test_a_server_that_comes_back_gets_all_that_was_logged_meanwhile(server, begin, monkeypatch, caplog):
    monkeypatch.setattr(recording, "PAUSE", 0.2)
    with caplog.at_level(logging.INFO, "werkzeug"), begin() as run:
        mine = tracking.attach(run.id, "http://127.0.0.1:1")
        mine.metrics({"loss": 3.0}, 0)
        mine.image("sheets/a.png", np.zeros((4, 4, 3), np.uint8))
        mine.metrics({"loss": 2.0}, 1)
        assert not mine.flush(0.5)
        mine.uri = run.uri
        mine.metrics({"loss": 1.0}, 2)
        mine.close()
        history = client().get_metric_history(run.id, "loss")
        assert [(m.step, m.value) for m in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    taken = [record.getMessage() for record in caplog.records if "sheets/a.png" in record.getMessage()]
    assert len(taken) == 1
    assert "PUT" in taken[0]
    assert "200" in taken[0]
    assert not [record for record in caplog.records if "lost" in record.message]


def test_what_waits_for_a_server_has_a_bound(begin, monkeypatch, caplog):
    monkeypatch.setattr(recording, "BUFFER", 1000)
    monkeypatch.setattr(recording, "LAST_TRY", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with begin() as run, caplog.at_level(logging.WARNING, recording.log.name):
        mine = tracking.attach(run.id, "http://127.0.0.1:1")
        for step in range(20):
            mine.metrics({"loss": 1.0}, step)
        assert sum(record.size for record in mine._waiting) <= 1200  # and the one that is being sent
        mine.close()
    assert "20 records" in caplog.records[-1].message


def test_what_the_server_refuses_does_not_hold_the_rest_up(begin, caplog):
    with begin() as run, caplog.at_level(logging.WARNING, recording.log.name):
        run.metrics({"loss": float("nan"), "no/good?name": 1.0}, 0)
        run.image("a.png", np.zeros((4, 4, 3), np.uint8))
        run.metrics({"loss": 0.5}, 1)
    assert client().get_run(run.id).data.metrics == {"loss": 0.5}
    assert "1 records" in caplog.records[-1].message


def test_the_machines_figures_are_logged(begin):
    with begin() as run, tracking.system_metrics(run, seconds=0.2):
        time.sleep(1)
    metrics = client().get_run(run.id).data.metrics
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    assert "system/cpu_utilization_percentage" in metrics


def test_nothing_is_pickled(begin, mlflow_home):
    with begin() as run:
        run.image("sheets/end.png", np.zeros((4, 4, 3), np.uint8))
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    files = [path for path in (mlflow_home / "artifacts").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".png"}


def test_git_revision_is_the_codes_own(monkeypatch, tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    file = tmp_path / "revision.py"
    file.write_text("")
    monkeypatch.setattr(revision, "__file__", str(file))
    assert tracking.git_revision() is None
    git("init", "-q")
    assert tracking.git_revision() is None  # installed into somebody else's repository
    git("add", "revision.py")
    git("commit", "-qm", "a")
    found = tracking.git_revision()
    assert re.fullmatch("[0-9a-f]{40}", found)
    file.write_text("changed")
    assert tracking.git_revision() == found + "+"
