"""Trainings as Ray Train runs them: two workers, outputs put in place once, errors in one sentence."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs import cli
from jobs.console import invoke
from osdface import bundle, presets
from osdface.base import load_base
from osdface.errors import MissingWeights, UsageError, UserError
from pipelines import runs, tracking
from pipelines.launch import anchored, launch
from pipelines.outputs import RECEIPT, receipt
from pipelines.train_base import BaseConfig
from pipelines.train_osd import OSDConfig
from pipelines.train_vre import VREConfig, load_vre

pytestmark = pytest.mark.usefixtures("ray_session")
SHARED = {"preset": "tiny", "batch_size": 4, "workers": 2, "cpus_per_worker": 0.5, "log_every": 1}
ADAM = {"lr": 1e-3}


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSDFACE_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


def base_config(pairs, out, **changes) -> BaseConfig:
    phases = {"vae": {"steps": 2}, "unet": {"steps": 2}, "vae_optimizer": ADAM, "unet_optimizer": ADAM}
    return BaseConfig.model_validate(SHARED | phases | {"data": pairs, "out": out} | changes)


def vre_config(pairs, out, **changes) -> VREConfig:
    one = {"steps": 1}
    phases = {"hq": one, "lq": one, "association": one, "optimizer": ADAM, "losses": {"perceptual": 0}}
    return VREConfig.model_validate(SHARED | phases | {"data": pairs, "out": out} | changes)


def osd_config(pairs, base, vre, out, **changes) -> OSDConfig:
    stage = {
        "base": base, "vre": vre, "duration": {"steps": 2}, "generator": ADAM, "discriminator": ADAM,
        "losses": {"perceptual": 0, "identity": 0.1},
    }  # fmt: skip
    return OSDConfig.model_validate(SHARED | stage | {"data": pairs, "out": out} | changes)


@pytest.fixture(scope="module")
def trained(pairs, shared_home):
    """Base, VRE and model of two steps each, with their results."""
    work = shared_home / "work"
    seen = []
    base = launch("base", base_config(pairs, work / "base"), {}, progress=lambda *event: seen.append(event))
    vre = launch("vre", vre_config(pairs, work / "vre"), {})
    inputs = {"base": (base.out, "b"), "vre": (vre.out, "v")}
    osd = launch("osd", osd_config(pairs, base.out, vre.out, work / "model"), inputs)
    return {"base": base, "vre": vre, "osd": osd, "progress": seen}


def test_outputs_are_whole_and_say_where_they_come_from(trained, pairs):
    assert load_base(trained["base"].out).vae.config.scaling_factor != presets.preset("tiny").vae["scaling_factor"]
    load_vre(trained["vre"].out, presets.preset("tiny"))
    config = bundle.verify(trained["osd"].out)
    manifest = json.loads((pairs / "manifest.json").read_text())
    assert config.provenance.dataset_digest == manifest["digest"]
    assert config.provenance.runs == {stage: trained[stage].run_id for stage in ("base", "vre", "osd")}
    note = receipt(trained["osd"].out)
    assert note["digest"] == trained["osd"].digest
    assert note["dataset_digest"] == manifest["digest"]
    assert note["seconds"] > 0
    assert not [path for path in trained["osd"].out.parent.iterdir() if path.name.startswith(".")]


def test_training_moved_what_it_trains(trained):
    _, after = bundle.load(trained["osd"].out)
    _, before = bundle.load(trained["osd"].out, trained=False)
    moved = {name for name, p in after.named_parameters() if not torch.equal(p, before.get_parameter(name))}
    assert any("lora_B" in name for name in moved)
    assert any(name.startswith("adapter") for name in moved)
    assert all("lora_" in name or name.startswith("adapter") for name in moved)


def test_progress_reaches_the_caller(trained):
    assert [event[:3] for event in trained["progress"]] == [
        ("vae", 1, 2), ("vae", 2, 2), ("unet", 1, 2), ("unet", 2, 2),
    ]  # fmt: skip


def test_runs_hold_metrics_sheets_and_parents(trained):
    client = tracking.client(tracking.uri())
    run = client.get_run(trained["osd"].run_id)
    assert run.info.status == "FINISHED"
    assert {"osd/mse", "osd/identity.dlib", "osd/adversarial", "osd/discriminator"} <= set(run.data.metrics)
    assert run.data.tags["osdface.run.vre"] == trained["vre"].run_id
    assert {"osd/gradient_norm/generator", "osd/lr/discriminator", "osd/memory_gib"} <= set(run.data.metrics)
    assert 0 <= run.data.metrics["osd/data_wait"] < 1
    assert 0 < run.data.metrics["osd/checkpoint_mib"] < 16
    assert {path.path for path in client.list_artifacts(run.info.run_id, "sheet")} == {
        "sheet/start.png", "sheet/osd-0000002.png", "sheet/end.png",
    }  # fmt: skip


def test_the_same_command_again_trains_nothing(trained, pairs):
    before = (trained["base"].out / RECEIPT).stat().st_mtime_ns
    again = launch("base", base_config(pairs, trained["base"].out), {})
    assert (again.fresh, again.run_id) == (False, trained["base"].run_id)
    assert (trained["base"].out / RECEIPT).stat().st_mtime_ns == before


def test_a_lost_output_comes_from_the_last_checkpoint(trained, pairs, shared_home):
    config = vre_config(pairs, shared_home / "work" / "vre-again")
    again = launch("vre", config, {})
    assert again.run_id == trained["vre"].run_id
    name = "lq.safetensors"
    one, two = (load_file(folder / name) for folder in (trained["vre"].out, again.out))
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


def test_another_configuration_does_not_touch_an_output(trained, pairs):
    before = (trained["base"].out / RECEIPT).read_bytes()
    with pytest.raises(UserError, match=r"base: exists and is not this run's output; remove it"):
        launch("base", base_config(pairs, trained["base"].out, seed=1), {})
    assert (trained["base"].out / RECEIPT).read_bytes() == before


def test_a_finished_run_gives_its_average_without_training(pairs, shared_home):
    """Also without Ray, where it was made with it: neither is in what a run is called by."""
    config = base_config(pairs, shared_home / "work" / "averaged", ema=0.5)
    first = launch("base", config, {})
    seen = []
    changes = {"out": shared_home / "work" / "average", "export": "ema", "workers": 0}
    again = launch("base", config.model_copy(update=changes), {}, progress=lambda *event: seen.append(event))
    assert (again.run_id, again.digest, seen) == (first.run_id, first.digest, [])
    one, two = (load_base(made.out).unet.state_dict() for made in (first, again))
    assert any(not torch.equal(tensor, two[name]) for name, tensor in one.items())
    with pytest.raises(UserError, match="has the weights 'last' of this run; give another --out"):
        launch("base", config.model_copy(update={"export": "ema"}), {})


def test_one_process_without_ray_trains_the_same(pairs, shared_home, tmp_path, monkeypatch):
    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path / "home"))  # where the run with workers is not known
    sgd = {"vae_optimizer": {"name": "sgd", "lr": 0.05}, "unet_optimizer": {"name": "sgd", "lr": 0.05}}
    outs = [launch("base", base_config(pairs, tmp_path / "0", workers=0, checkpoint_every=1, **sgd), {})]
    assert len(list((tmp_path / "home" / "runs").glob("*/checkpoint_*"))) == 2
    monkeypatch.setenv("OSDFACE_HOME", str(shared_home))
    outs.append(launch("base", base_config(pairs, tmp_path / "2", **sgd), {}))
    assert outs[0].digest == outs[1].digest
    for part in ("vae", "unet"):
        one, two = (getattr(load_base(made.out), part).state_dict() for made in outs)
        assert max(float((tensor - two[name]).abs().max()) for name, tensor in one.items()) < 1e-6


def run_of(path):
    return json.loads(path.read_text())["run_id"]


def test_a_run_is_gone_on_with_by_name_and_left_alone_on_request(trained, pairs, shared_home, tmp_path):
    base = trained["base"]
    (name,) = [path.stem for path in (shared_home / "runs").glob("base-*.json") if run_of(path) == base.run_id]
    config = base_config(pairs, tmp_path / "again", workers=0)
    with pytest.raises(UserError, match="--resume base-none: no such run in .*/runs; see osdface runs list"):
        launch("base", config, {}, resume="base-none")
    with pytest.raises(UserError, match=rf"--resume {name}: it was begun otherwise \(seed was 0\)"):
        launch("base", config.model_copy(update={"seed": 3}), {}, resume=name)
    assert launch("base", config, {}, resume=name).run_id == base.run_id
    anew = launch("base", config.model_copy(update={"out": tmp_path / "anew"}), {}, resume="never")
    assert anew.digest == base.digest
    assert anew.run_id != base.run_id
    assert (shared_home / "runs" / f"{name}-2.json").exists()


def test_runs_are_listed_and_shown(trained, shared_home):
    newest = runs.training(trained["osd"].run_id)
    assert (newest.stage, newest.status, newest.output) == ("osd", "FINISHED", str(trained["osd"].out))
    assert {"osd/mse", "osd/adversarial"} <= set(newest.losses)
    assert not any("norm" in name or "wait" in name for name in newest.losses)
    assert {run.stage for run in runs.trainings()} == {"base", "vre", "osd"}
    shown = invoke(cli.app, ["runs", "show", newest.name])
    assert shown["measured"]["osd/mse"] == newest.losses["osd/mse"]
    assert [checkpoint["at"] for checkpoint in shown["checkpoints"]] == ["phase 1, step 0", "end"]
    assert newest.id in {run["id"] for run in invoke(cli.app, ["runs", "list", "--stage", "osd"])["runs"]}
    with pytest.raises(UserError, match="nothing: no such run"):
        runs.training("nothing")


def test_a_dry_run_starts_nothing(trained, pairs, shared_home, tmp_path):
    before = len(runs.trainings())
    words = ["train", "base", "--data", str(pairs), "--out", str(tmp_path / "out"), "--dry-run"]
    shown = invoke(cli.app, [*words, "--set", "vae.steps=3", "--workers", "1"])
    assert (shown["steps"]["vae"], shown["config"]["workers"], shown["resumes"]) == (3, 1, False)
    assert len(runs.trainings()) == before
    assert not (tmp_path / "out").exists()


CUDA = {"gpus_per_worker": 1}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"batch_size": 5}, UsageError, r"batch_size 5 cannot be shared by 2 workers.*multiple of 2"),
        ({"accumulation": 3}, UsageError, r"batch_size 4 cannot be shared .* 3 micro-batches.*multiple of 6"),
        ({"precision": "bf16"}, UsageError, "precision: bf16 needs GPUs"),
        ({"precision": "fp16"}, UsageError, "precision: fp16 needs GPUs"),
        ({"offload": "optimizer", "zero_stage": 2}, UsageError, "offload: optimizer needs GPUs"),
        ({"offload": "optimizer", **CUDA}, UsageError, "offload: optimizer needs zero_stage 1, 2 or 3"),
        ({"offload": "parameters", "zero_stage": 2, **CUDA}, UsageError, "offload: parameters needs zero_stage 3"),
        ({"workers": 0, **CUDA}, UsageError, "this machine has no GPU"),
        (CUDA, UserError, "ask for 2 GPUs but the cluster has 0"),
        ({"workers": 100, "batch_size": 100}, UserError, "pairs, fewer than workers 100"),
        ({"export": "ema"}, UsageError, "export: ema needs the average"),
        ({"validation": {"best": "l1"}}, UsageError, "validation.best: l1 is never measured"),
        ({"batch_size": 400}, UserError, "fewer than batch_size 400"),
        ({"preset": "sd21"}, UserError, "--size 512"),
        ({"preset": "tin"}, UsageError, "known: sd21, tiny"),
        ({"cpus_per_worker": 400}, UserError, "ask for 800 CPUs.*lower workers"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(pairs, shared_home, tmp_path, changes, kind, message):
    with pytest.raises(kind, match=message):
        launch("base", base_config(pairs, tmp_path / "out", **changes), {})
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_is_not_its_manifests_is_refused(pairs, shared_home, tmp_path):
    edited = shutil.copytree(pairs, tmp_path / "edited")
    manifest = json.loads((edited / "manifest.json").read_text())
    (edited / "manifest.json").write_text(json.dumps(manifest | {"digest": "0" * 64}))
    with pytest.raises(UserError, match=r"manifest\.json: its digest is not that of its spec and shards"):
        launch("base", base_config(edited, tmp_path / "out"), {})
    (edited / "manifest.json").write_text(json.dumps(manifest))
    shard = next((edited / "shards").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{shard.name}: not the \d+ bytes that manifest.json says"):
        launch("base", base_config(edited, tmp_path / "out"), {})


def test_relative_paths_are_those_of_whoever_starts_it(trained, pairs, monkeypatch, shared_home):
    monkeypatch.chdir(shared_home)
    out = trained["base"].out
    relative = Path(os.path.relpath(pairs)), Path(os.path.relpath(out))
    assert not launch("base", base_config(*relative), {}).fresh
    backbone = {"adversarial": {"backbone": "unet"}, "prompt": {"kind": "clip", "folder": "text"}}
    found = anchored(osd_config(*relative, Path("vre"), Path("out"), **backbone))
    assert (found.base, found.vre, found.out) == (out, shared_home / "vre", shared_home / "out")
    assert (found.adversarial.backbone, found.prompt.folder) == (shared_home / "unet", shared_home / "text")


def test_missing_weights_are_named(pairs, shared_home, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MissingWeights, match=r"vgg19-dcbb9e9d\.pth.*losses\.perceptual to 0"):
        launch("vre", vre_config(pairs, tmp_path / "out", losses={"perceptual": 1.0}), {})


def test_a_workers_own_sentence_reaches_the_user(pairs, shared_home, tmp_path):
    diverging = {"name": "sgd", "lr": 1e30}
    config = base_config(pairs, tmp_path / "out", vae={"steps": 4}, vae_optimizer=diverging)
    with pytest.raises(UserError, match=r"vae/\w+ is not a number at step"):
        launch("base", config, {})
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_one_worker_and_two_train_the_same(trained, pairs, shared_home, tmp_path):
    """Global batches and noise do not depend on the world size; SGD, since Adam divides by rounding."""
    sgd = {"name": "sgd", "lr": 0.05}
    tensors = []
    for workers in (1, 2):
        config = osd_config(
            pairs, trained["base"].out, trained["vre"].out, tmp_path / str(workers), workers=workers,
            generator=sgd, discriminator=sgd, duration={"steps": 3}, losses={"perceptual": 0, "identity": 0},
        )  # fmt: skip
        out = launch("osd", config, {"base": (trained["base"].out, "b"), "vre": (trained["vre"].out, "v")}).out
        tensors.append(load_file(out / bundle.LORA) | load_file(out / bundle.ADAPTER))
    for name, tensor in tensors[0].items():
        assert (tensor - tensors[1][name]).abs().max() < 1e-6, name
