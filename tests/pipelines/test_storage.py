"""Trainings whose state is in an object store: begun on one machine, gone on with on another, nothing half taken."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from jobs import cli
from jobs.console import invoke
from osdface import bundle
from osdface.base import load_base
from osdface.errors import UserError
from pipelines import lease, outputs, runs, tracking
from pipelines.launch import launch
from pipelines.outputs import RECEIPT
from pipelines.store import STORAGE, Store, storage
from pipelines.train_base import BaseConfig
from tests import exactness

SGD = {"name": "sgd", "lr": 0.05}


def config(pairs, out, **changes) -> BaseConfig:
    settings = {
        "preset": "tiny", "data": str(pairs), "out": str(out), "batch_size": 4, "workers": 0, "log_every": 1,
        "vae": {"steps": 4}, "unet": {"steps": 2}, "vae_optimizer": SGD, "unet_optimizer": SGD, "checkpoint_every": 2,
    }  # fmt: skip
    return BaseConfig.model_validate(settings | changes)


class TestFolders:
    def test_go_into_place_whole_and_are_read_again(self, store, tmp_path):
        with store.folder("made", receipt="last.json") as folder:
            (folder / "deep").mkdir()
            for name in ("last.json", "a", "deep/b"):
                (folder / name).write_text(name)
            assert not store.exists("made")
        assert store.tree("made") == {"a": 1, "deep/b": 6, "last.json": 9}
        fetched = store.fetch("made", tmp_path / "copy")
        assert (fetched / "deep" / "b").read_text() == "deep/b"
        with store.on_disk("made") as here:
            assert (here / "a").read_text() == "a"
        assert store.names() == ["made"]

    def test_that_fail_leave_nothing(self, store):
        def fail() -> None:
            with store.folder("made", receipt="last.json") as folder:
                (folder / "a").write_text("a")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert store.names() == []

    def test_cut_off_in_an_object_store_have_no_receipt(self, s3, monkeypatch):
        store, commit = Store(s3), Store.commit

        def fail_at_the_third(self, path, name):
            if len(self.tree()) == 2:
                raise OSError(5, "gone")
            commit(self, path, name)

        monkeypatch.setattr(Store, "commit", fail_at_the_third)
        with contextlib.suppress(OSError), store.folder("made", receipt="a") as folder:
            for name in "abc":
                (folder / name).write_text(name)
        assert store.tree("made") == {"b": 1, "c": 1}

    def test_a_file_cut_short_on_its_way_is_an_error(self, s3, tmp_path, monkeypatch):
        store = Store(s3)
        store.put("made/a", b"0123456789")
        monkeypatch.setattr(store.fs, "get_file", lambda path, to: Path(to).write_bytes(b"01234"))
        with pytest.raises(OSError, match="a: 5 of 10 bytes came"):
            store.fetch("made", tmp_path)


class TestPlace:
    def test_is_the_home_unless_the_environment_names_another(self, home, monkeypatch, tmp_path):
        monkeypatch.delenv(STORAGE, raising=False)
        assert storage("runs").local == home / "runs"
        monkeypatch.setenv(STORAGE, str(tmp_path / "shared"))
        assert storage("runs").local == tmp_path / "shared" / "runs"
        monkeypatch.setenv(STORAGE, "memory://bucket/x/")
        assert storage("runs").uri == "memory://bucket/x/runs"

    def test_that_nobody_knows_is_one_sentence(self, home, monkeypatch):
        monkeypatch.setenv(STORAGE, "nope://x")
        with pytest.raises(UserError, match=f"{STORAGE} nope://x: cannot be used .*; give a folder or URL"):
            storage("runs")

    @pytest.mark.parametrize("what", ["credentials", "server"])
    def test_that_refuses_or_does_not_answer_is_one_sentence(
        self, s3, home, monkeypatch, what, free_port, pairs, tmp_path
    ):
        import s3fs

        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        if what == "credentials":
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "expired")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        else:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port}")
        monkeypatch.setenv(STORAGE, s3)
        with pytest.raises(UserError, match=rf"{s3}/runs: cannot be read \(.+\); see {STORAGE}") as caught:
            launch("base", config(pairs, tmp_path / "out"), {})
        assert "\n" not in str(caught.value)
        s3fs.S3FileSystem.clear_instance_cache()


def stop_at(step: tuple[str, int]):
    def progress(phase: str, done: int, total: int, values: dict) -> None:
        if (phase, done) == step:
            raise KeyboardInterrupt

    return progress


def machine(monkeypatch, database: Path, folder: Path) -> None:
    """A machine that nothing was ever done on, but for the tracking server that all share."""
    folder.mkdir()
    monkeypatch.setenv("OSDFACE_HOME", str(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")


def weights(folder: Path) -> dict:
    base = load_base(folder)
    return {f"{part}.{n}": t for part in ("vae", "unet") for n, t in getattr(base, part).state_dict().items()}


@pytest.fixture
def machines(mlflow_home, monkeypatch, tmp_path):
    """A function that makes this process another machine."""
    return lambda name: machine(monkeypatch, mlflow_home / "mlflow.db", tmp_path / name)


@pytest.fixture
def undisturbed(pairs, machines, tmp_path, monkeypatch) -> dict:
    """The weights of a training on a machine's own disk."""
    machines("peace")
    monkeypatch.delenv(STORAGE, raising=False)
    return weights(launch("base", config(pairs, tmp_path / "base"), {}).out)


@pytest.mark.parametrize("workers", [0, 2])
def test_another_machine_goes_on_from_the_storage(pairs, s3, machines, undisturbed, monkeypatch, workers):
    monkeypatch.setenv(STORAGE, s3)
    out = f"{s3}/base"
    machines("first")
    with pytest.raises(KeyboardInterrupt):
        launch("base", config(pairs, out), {}, progress=stop_at(("vae", 4)))
    assert not Store(out).exists()
    machines("second")
    seen: list = []
    trained = launch("base", config(pairs, out, workers=workers), {}, progress=lambda *event: seen.append(event[:2]))
    assert seen == [("vae", 3), ("vae", 4), ("unet", 1), ("unet", 2)]
    assert (trained.out, trained.fresh) == (out, True)
    found = weights(outputs.here(out))
    largest = max(float((tensor - found[name]).abs().max()) for name, tensor in undisturbed.items())
    assert largest == 0 if workers == 0 else largest < 1e-6
    assert outputs.receipt(out)["run_id"] == trained.run_id
    machines("third")
    assert not launch("base", config(pairs, out), {}).fresh
    (name,) = [name.removesuffix(".json") for name in runs.place().names() if name.endswith(".json")]
    assert [kept.at for kept in runs.checkpoints(name)][-1] == "end"
    Store(out).remove("")
    assert launch("base", config(pairs, out), {}, progress=lambda *event: seen.append(event)).fresh  # put there again
    assert len(seen) == 4


def test_a_run_is_one_machines_at_a_time(pairs, s3, machines, monkeypatch):
    monkeypatch.setenv(STORAGE, s3)
    machines("first")
    short = config(pairs, f"{s3}/base", vae={"steps": 1}, unet={"steps": 0})
    launch("base", short, {})
    (name,) = [name.removesuffix(".json") for name in runs.place().names() if name.endswith(".json")]
    refusal = rf"{name}: another job writes to it \(process \d+ .*; wait for it, or give --resume never"
    with lease.hold(Store(runs.place().label(name))), pytest.raises(UserError, match=refusal):
        launch("base", short.model_copy(update={"out": f"{s3}/again"}), {})
    assert not Store(f"{s3}/again").tree()


class TestOutputs:
    @pytest.fixture
    def checkpoint(self, tmp_path) -> Path:
        folder = tmp_path / "checkpoint" / "output"
        folder.mkdir(parents=True)
        for name in ("config.json", "weights.safetensors"):
            (folder / name).write_text(name)
        return folder.parent

    def test_cut_off_are_nobodys_model_and_their_own_runs_to_repeat(self, checkpoint, s3, home, monkeypatch):
        out, commit = Store(f"{s3}/model"), Store.commit

        def fail(self, path, name):
            if name == RECEIPT:
                raise OSError(5, "the server is gone")
            commit(self, path, name)

        monkeypatch.setattr(Store, "commit", fail)
        with pytest.raises(OSError, match="is gone"):
            outputs.place(str(checkpoint), out.uri, {"digest": "d"})
        monkeypatch.setattr(Store, "commit", commit)
        assert out.names() == [".training.json", "config.json", "weights.safetensors"]
        with pytest.raises(UserError, match=rf"{out}: its upload was cut off; run the training that makes it again"):
            outputs.here(out.uri)
        assert outputs.begun(out) == "d"
        outputs.place(str(checkpoint), out.uri, {"digest": "d"})
        assert out.names() == ["config.json", RECEIPT, "weights.safetensors"]
        assert sorted(path.name for path in outputs.here(out.uri).iterdir()) == out.names()

    def test_are_copied_once_and_again_when_they_changed(self, s3, home):
        store = Store(f"{s3}/base")
        store.put("a", b"one")
        first = outputs.here(store.uri)
        assert first.is_relative_to(home)
        (first / "seen").touch()
        assert outputs.here(store.uri) == first
        store.put("a", b"other")
        assert (outputs.here(store.uri) / "a").read_bytes() == b"other"

    def test_a_folder_of_this_machine_is_itself(self, tmp_path):
        assert outputs.here(tmp_path) == tmp_path

    def test_where_nothing_is_that_is_said(self, s3, home):
        with pytest.raises(UserError, match="nowhere: nothing is there"):
            outputs.here(f"{s3}/nowhere")


def test_inputs_at_urls_are_fetched_by_whoever_reads_them(s3, home, pairs):
    store = Store(f"{s3}/base")
    store.put("model_index.json", json.dumps({}).encode())
    given = config(pairs, "out").model_copy(update={"fetch": {"base": store.uri}})
    with pytest.raises(UserError, match="fetch: base is nothing that this training starts from"):
        given.here()
    from pipelines.train_osd import OSDConfig

    settings = {"duration": {"steps": 1}, "generator": SGD, "discriminator": SGD, "fetch": {"base": store.uri}}
    osd = OSDConfig.model_validate(settings | {"preset": "tiny", "data": str(pairs), "out": "out", "batch_size": 4})
    assert osd.here().base == outputs.here(store.uri)
    assert (osd.here().base / "model_index.json").is_file()


@pytest.fixture
def stage_2(pairs, s3, monkeypatch, tmp_path) -> list[str]:
    """The words of a training whose base and VRE are at URLs, and whose bundle goes to one."""
    monkeypatch.setenv(STORAGE, s3)
    given = exactness.inputs(tmp_path)
    for name in ("base", "vre"):
        with Store(f"{s3}/{name}").folder("", receipt="none") as folder:
            shutil.copytree(given / name, folder, dirs_exist_ok=True)
    words = ["train", "osd", "--data", str(pairs), "--base", f"{s3}/base", "--vre", f"{s3}/vre", "--out", f"{s3}/model"]
    words += ["--set", "duration.steps=1", "--set", "batch_size=4", "--set", "threads=1"]
    return [*words, "--set", "losses={mse: 1.0, perceptual: 0, identity: 0, adversarial: 0}"]


@pytest.mark.full
@pytest.mark.usefixtures("ray_session")
def test_stage_2_from_urls_to_a_url_by_the_command_line(stage_2, s3, mlflow_home):
    made = invoke(cli.app, [*stage_2, "--workers", "1", "--set", "cache=latents"])
    assert made["out"] == f"{s3}/model"
    params = tracking.client(tracking.uri()).get_run(made["run_id"]).data.params
    assert (params["fetch.base"], params["fetch.vre"]) == (f"{s3}/base", f"{s3}/vre")
    found = bundle.resolve(f"{s3}/model")
    assert found.is_relative_to(mlflow_home / "fetched")
    assert bundle.verify(found).provenance.runs == {"osd": made["run_id"]}
    assert len(storage("latents").names()) == 1


def test_a_base_too_large_to_travel_is_found_by_its_url(stage_2, s3, mlflow_home, monkeypatch):
    monkeypatch.setattr(bundle, "EMBED_BASE_BELOW", 0)
    invoke(cli.app, [*stage_2, "--workers", "0"])
    monkeypatch.setenv("OSDFACE_HOME", str(mlflow_home / "another"))
    found = bundle.resolve(f"{s3}/model")
    assert bundle.read_config(found).base.path == f"{s3}/base"
    assert bundle.checked(found)[1].is_relative_to(mlflow_home / "another" / "fetched")
    Store(f"{s3}/base").remove("")
    with pytest.raises(UserError, match=f"{s3}/base: nothing is there"):
        bundle.checked(found)
