"""What `osdface gc` finds, leaves and removes, on a disk and in an object store."""

import json
import os
import time
from pathlib import Path

import pytest

from jobs import cli
from jobs.console import invoke
from osdface.errors import UsageError, UserError
from pipelines import garbage, lease, runs, tracking
from pipelines.latents import Key
from pipelines.pairs.manifest import read_manifest
from pipelines.pairs.verify import verify
from pipelines.store import STORAGE, Store, storage

DAY = 24 * 3600


@pytest.fixture(params=["local", "s3"])
def place(request, mlflow_home, monkeypatch) -> str:
    """Where the storage is."""
    place = str(mlflow_home) if request.param == "local" else request.getfixturevalue("s3")
    monkeypatch.setenv(STORAGE, place)
    return place


@pytest.fixture(autouse=True)
def _quick_beats(monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.2)


@pytest.fixture
def later(monkeypatch):
    """Two days pass."""
    now = time.time
    monkeypatch.setattr(garbage.time, "time", lambda: now() + 2 * DAY)


def train(pairs, name: str, status: str = "FINISHED", **params) -> str:
    """A run as a training notes it, with two whole checkpoints and one that was never written to its end."""
    config = {"latents": None, "base": None, "init": None} | params
    with tracking.run("osd", name, config, read_manifest(pairs), pairs, {}) as run:
        runs.remember(name, {"run_id": run.id, "stage": "osd", "digest": name, "identity": {}})
    if status != "FINISHED":
        tracking.client(tracking.uri()).set_terminated(run.id, status)
    store = Store(runs.place().label(name))
    for number in range(3):
        store.put(f"checkpoint_{number:06d}/state.safetensors", bytes(100))
        if number < 2:
            note = {"phase": 0, "step": number, "exported": None}
            store.put(f"checkpoint_{number:06d}/{runs.NOTE}", json.dumps(note).encode())
    return run.id


def found(*places: str, **options) -> dict[str, str]:
    """The orphans, by what they are and where, with the reason."""
    orphans = garbage.Search(places, **options).found().orphans
    return {f"{Path(orphan.place).name}/{orphan.name}": orphan.why for orphan in orphans}


def test_checkpoints_of_finished_and_deleted_runs_go_and_those_of_others_stay(place, pairs, later):
    train(pairs, "osd-done")
    train(pairs, "osd-stopped", "KILLED")
    tracking.client(tracking.uri()).delete_run(train(pairs, "osd-deleted"))
    runs.place().put("osd-nobody/checkpoint_000000/state.json", b"{}")
    orphans = garbage.Search([]).found().orphans
    assert {(Path(o.place).name, o.name): o.why for o in orphans} == {
        ("osd-done", "checkpoint_000000"): "its run is finished",
        ("osd-done", "checkpoint_000002"): "never written to its end",
        ("osd-stopped", "checkpoint_000002"): "never written to its end",
        ("osd-deleted", "checkpoint_000000"): "its run is deleted",
        ("osd-deleted", "checkpoint_000001"): "its run is deleted",
        ("osd-deleted", "checkpoint_000002"): "its run is deleted",
        ("runs", "osd-deleted.json"): "its run is deleted",
        ("osd-nobody", "checkpoint_000000"): "no run of this name is noted",
    }
    assert next(o.bytes for o in orphans if o.name == "checkpoint_000002") == 100
    assert "osd-done/checkpoint_000000" not in found(keep=2)
    assert len(list(garbage.remove(orphans))) == len(orphans)
    assert found() == {}
    assert [Path(p).name for p in runs.whole_checkpoints("osd-done")] == ["checkpoint_000001"]
    assert len(runs.whole_checkpoints("osd-stopped")) == 2
    assert runs.note_of("osd-deleted") == {}


def test_nothing_is_touched_that_is_young_or_held(place, pairs, monkeypatch):
    train(pairs, "osd-done")
    assert found() == {}
    left = garbage.Search([]).found().left
    assert [why for name, why in left.items() if "checkpoint_000000" in name] == ["written to of late"]
    now = time.time
    monkeypatch.setattr(garbage.time, "time", lambda: now() + 2 * DAY)
    run = Store(runs.place().label("osd-done"))
    orphans = garbage.Search([]).found().orphans
    assert len(orphans) == 2
    with lease.hold(run):
        assert garbage.Search([]).found() == ([], {run.uri: "a running job holds it"})
        with pytest.raises(UserError, match="another job writes to it .* run this again later"):
            list(garbage.remove(orphans))
    assert len(runs.whole_checkpoints("osd-done")) == 2


def test_a_checkpoint_that_goes_is_taken_out_of_rays_list(place, pairs, later):
    train(pairs, "osd-done")
    run = Store(runs.place().label("osd-done"))
    listed = [{"checkpoint_dir_name": f"checkpoint_00000{n}", "metrics": {}} for n in range(2)]
    snapshot = {
        "checkpoint_results": listed,
        "checkpoint_report_indices": [0, 1],
        "latest_checkpoint_result": listed[1],
    }
    run.put(runs.SNAPSHOT, json.dumps(snapshot).encode())
    list(garbage.remove(garbage.Search([]).found().orphans))
    after = json.loads(run.read(runs.SNAPSHOT))
    assert (after["checkpoint_results"], after["checkpoint_report_indices"]) == ([listed[1]], [1])
    assert after["latest_checkpoint_result"] == listed[1]


def test_latents_go_with_their_dataset_their_base_or_their_last_run(place, pairs, tmp_path, later):
    digest = read_manifest(pairs).digest
    (tmp_path / "base").mkdir()
    cache = storage("latents")
    made = {"kept": digest, "other": "0" * 64, "baseless": digest, "unused": digest}
    for name, dataset in made.items():
        key = Key(dataset=dataset, vae="v", prompt="p", size=64)
        cache.put(f"{name}/latents.json", key.model_dump_json().encode())
        cache.put(f"{name}/shards/a.parquet", bytes(50))
        if name != "unused":
            base = tmp_path / ("gone" if name == "baseless" else "base")
            train(pairs, f"osd-{name}", "KILLED", latents=cache.label(name), base=str(base))
    reasons = {name: why for name, why in found().items() if name.startswith("latents/")}
    assert reasons == {
        "latents/other": "its dataset is gone", "latents/baseless": "its base is gone",
        "latents/unused": "no run refers to it",
    }  # fmt: skip


@pytest.fixture
def dataset(place, pairs) -> Store:
    """A copy of the small dataset in the storage, with what a killed run may leave."""
    store = Store(f"{place}/pairs")
    for name in Store(pairs).tree():
        store.put(name, Store(pairs).read(name))
    store.put("shards/part-00009-abcdefabcdef.parquet", bytes(10))
    store.put(".receipts/part-00009.json", b"{}")
    store.put("shards/.part-00000.parquet.4194304.0a1b2c3d", bytes(20))
    return store


def test_a_dataset_keeps_what_its_manifest_names(dataset, pairs, later):
    assert found(dataset.uri) == {
        "pairs/shards/part-00009-abcdefabcdef.parquet": "its dataset does not name it",
        "pairs/.receipts/part-00009.json": "its dataset does not name it",
        "pairs/shards/.part-00000.parquet.4194304.0a1b2c3d": "left by a job that was killed",
    }
    with lease.hold(dataset):
        assert found(dataset.uri) == {}
    list(garbage.remove(garbage.Search([dataset.uri]).found().orphans))
    assert verify(dataset.uri).digest == read_manifest(pairs).digest
    assert found(dataset.uri) == {}


def test_an_unfinished_dataset_keeps_what_its_receipts_name(dataset, later):
    dataset.remove("manifest.json")
    dataset.remove(".receipts/part-00009.json")
    assert set(found(dataset.uri)) == {
        "pairs/shards/part-00009-abcdefabcdef.parquet", "pairs/shards/.part-00000.parquet.4194304.0a1b2c3d",
    }  # fmt: skip


def test_cached_bundles_of_no_version_go(mlflow_home, later):
    Store(mlflow_home).put(f"cache/models/{'0' * 64}/config.json", b"{}")
    assert found() == {f"models/{'0' * 64}": "no version refers to it"}


class TestCommand:
    def test_lists_and_removes_on_request(self, mlflow_home, pairs, capsys):
        train(pairs, "osd-done")
        old = time.time() - 3 * DAY
        for path in (mlflow_home / "runs").rglob("*"):
            os.utime(path, (old, old))
        listed = invoke(cli.app, ["gc", "--older-than", "2d"])
        assert (len(listed["orphans"]), listed["deleted"]) == (2, False)
        assert "2 could go (--delete removes them)" in capsys.readouterr().out
        assert len(runs.whole_checkpoints("osd-done")) == 2
        assert invoke(cli.app, ["gc", "--older-than", "4d"])["orphans"] == []
        assert invoke(cli.app, ["gc", "--delete"])["deleted"]
        assert len(runs.whole_checkpoints("osd-done")) == 1
        assert invoke(cli.app, ["gc"])["orphans"] == []

    def test_an_age_that_is_none(self, mlflow_home):
        with pytest.raises(UsageError, match="--older-than soon: write hours or days"):
            invoke(cli.app, ["gc", "--older-than", "soon"])

    def test_a_place_that_is_no_dataset_is_said(self, mlflow_home, tmp_path):
        assert invoke(cli.app, ["gc", str(tmp_path)])["left"] == {str(tmp_path): "no dataset is there"}

    def test_without_its_tracking_server_nothing_is_known_and_nothing_goes(self, home, monkeypatch, free_port):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(UserError, match="does not answer"):
            invoke(cli.app, ["gc", "--delete"])
