"""Notice of a machine's end: what is heard when, and a training that SIGTERM ends at a checkpoint of that moment."""

import os
import signal

import pytest
from ray.train import PreemptionInfo
from safetensors.torch import load_file

from pipelines import preemption, runs, tracking
from pipelines.launch import launch
from pipelines.preemption import EVERY, Notice, Stopped
from pipelines.train_base import BaseConfig

DRAINED = [None, None, PreemptionInfo(1, {"a": [0]}), PreemptionInfo(1, {"a": [0]}), PreemptionInfo(1, {"b": [1]})]


def test_nodes_that_are_drained_are_news_once():
    answers = iter(DRAINED)
    notice = Notice(reclaimed=lambda: next(answers))
    heard = [step for step in range(len(DRAINED) * EVERY) if notice.heard(step)]
    assert heard == [2 * EVERY, 4 * EVERY]
    notice.kept()  # and training goes on


def test_a_request_to_end_is_heeded_after_the_checkpoint():
    answers = iter([False, True])
    notice = Notice(asked=lambda: next(answers))
    assert not notice.heard(0)
    notice.kept()
    assert notice.heard(EVERY)
    with pytest.raises(Stopped):
        notice.kept()


def config(pairs, out, workers: int, **changes) -> BaseConfig:
    adam = {"lr": 1e-3}
    settings = {
        "preset": "tiny", "data": pairs, "out": out, "batch_size": 4, "workers": workers, "log_every": 1,
        "vae": {"steps": EVERY + 4}, "unet": {"steps": 1}, "vae_optimizer": adam, "unet_optimizer": adam,
    }  # fmt: skip
    return BaseConfig.model_validate(settings | changes)


@pytest.mark.full
@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_ends_a_training_at_a_checkpoint_and_nothing_is_trained_twice(
    workers, pairs, ray_session, home, tmp_path, monkeypatch
):
    before = signal.getsignal(signal.SIGTERM)
    peace = launch("base", config(pairs, tmp_path / "peace", workers), {})
    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path / "other"))  # where that run is not known
    steps = []

    def progress(phase: str, step: int, *_) -> None:
        steps.append((phase, step))
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    disturbed = config(pairs, tmp_path / "disturbed", workers)
    with pytest.raises(KeyboardInterrupt):
        launch("base", disturbed, {}, progress=progress)
    (run,) = runs.trainings()
    assert run.status == "KILLED"
    (kept,) = runs.whole_checkpoints(run.name)
    at = runs.checkpoint_note(kept)
    assert (at["phase"], at["step"]) == (0, EVERY + 1)
    assert signal.getsignal(signal.SIGTERM) == before

    again = launch("base", disturbed, {}, progress=progress)
    assert again.digest == peace.digest
    assert steps == [*(("vae", step + 1) for step in range(EVERY + 4)), ("unet", 1)]
    assert tracking.client(tracking.uri()).get_run(again.run_id).info.status == "FINISHED"
    for file in peace.out.rglob("*.safetensors"):
        other = load_file(again.out / file.relative_to(peace.out))
        assert all(bool((tensor == other[name]).all()) for name, tensor in load_file(file).items()), file


def test_a_queue_for_workers_lies_on_the_drivers_node(ray_session):
    with preemption.flag() as flag:
        assert flag.empty()
        os.kill(os.getpid(), signal.SIGTERM)
        assert not flag.empty()
