"""What the stages share: two DeepSpeed engines against plain PyTorch, resume, order of data, refusals."""

import contextlib
import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from osdface import presets
from osdface.base import new_base, save_base
from osdface.config import parse
from osdface.errors import UsageError, UserError
from pipelines.train_osd import OSDConfig, OSDStage
from pipelines.train_vre import VREConfig, VREStage
from pipelines.training import Duration, Optimizer, Step, alone, checkpoints, engines, frozen
from pipelines.training.engines import Engine
from pipelines.training.worker import Worker

CPU = torch.device("cpu")
ADAM = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01}
# Pictures alone: a perceptual or identity network adds nothing to what is compared here.
OSD_LOSSES = {"mse": 1.0, "perceptual": 0, "identity": 0, "adversarial": 0.1}


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """torch.distributed with this process alone; DeepSpeed's engines find it and use it."""
    with alone.process_group(CPU):
        yield


@pytest.fixture(scope="module")
def stage1(tmp_path_factory) -> tuple[Path, Path]:
    """A base and a stage-1 output, untrained."""
    folder = tmp_path_factory.mktemp("stage1")
    torch.manual_seed(0)
    save_base(new_base(presets.preset("tiny")), folder / "base")
    config = vre_config(folder, folder / "vre")
    VREStage(config, CPU, {}).save(folder / "vre")
    return folder / "base", folder / "vre"


def vre_config(data: Path, out: Path, **changes) -> VREConfig:
    settings = {
        "preset": "tiny", "data": data, "out": out, "batch_size": 4, "workers": 1, "log_every": 1,
        "hq": {"steps": 2}, "lq": {"steps": 2}, "association": {"steps": 3}, "optimizer": {"lr": 1e-3},
        "losses": {"perceptual": 0, "adversarial_start": 1}, "checkpoint_every": 2,
    }  # fmt: skip
    return VREConfig.model_validate(settings | changes)


def osd_config(stage1: tuple[Path, Path], data: Path, out: Path = Path("out"), **changes) -> OSDConfig:
    settings = {
        "preset": "tiny", "data": data, "out": out, "base": stage1[0], "vre": stage1[1], "batch_size": 4, "workers": 1,
        "duration": {"steps": 3}, "generator": ADAM | {"lora_ratio": 4}, "discriminator": ADAM,
        "losses": OSD_LOSSES, "log_every": 1,
    }  # fmt: skip
    return OSDConfig.model_validate(settings | changes)


def test_a_duration_is_steps_or_epochs():
    assert Duration(steps=7).resolve(100) == 7
    assert Duration(epochs=1.5).resolve(100) == 150
    for wrong in ({}, {"steps": 1, "epochs": 1}, {"steps": -1}):
        with pytest.raises(UsageError, match=r"exactly one|greater than or equal to 0"):
            parse(Duration, wrong, "duration")


def test_learning_rates_rise_and_fall():
    constant, cosine = Optimizer(lr=1.0), Optimizer(lr=1.0, schedule="cosine", warmup=4)
    assert [constant.factor(step, 10) for step in (0, 5, 9)] == [1, 1, 1]
    factors = [cosine.factor(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.25)
    assert factors[50] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-9)
    assert max(factors) == factors[3]


def test_frozen_gives_the_gradients_setting_back():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    module[0].requires_grad_(False)
    x = torch.ones(1, 2, requires_grad=True)
    with frozen(module) as judge:
        judge(x).sum().backward()
    assert x.grad is not None
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]
    assert all(p.grad is None for p in module.parameters())


# Two engines


def steps(count: int, size: int = 4) -> list[Step]:
    made = []
    for index in range(count):
        noise = torch.Generator().manual_seed(index)
        pictures = {name: torch.rand(size, 3, 64, 64, generator=noise) * 2 - 1 for name in ("lq", "hq")}
        made.append(Step(index, pictures, {}, noise))
    return made


def plain_osd_steps(stage: OSDStage, count: int) -> None:
    """Eq. 12 and 16 in alternate steps, written out in plain PyTorch."""
    generator, judge = stage.generator, stage.discriminator
    trained = [[p for p in module.parameters() if p.requires_grad] for module in (generator, judge)]
    optimizers = [torch.optim.SGD(p, 0.1) for p in trained]

    def noised(step: Step, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        t = step.draw(lambda shape, generator: torch.randint(0, 1000, shape, generator=generator), z.shape[:1])
        noise, a = step.draw(torch.randn, z.shape), stage.alpha_bar[t].reshape(-1, 1, 1, 1)
        return a.sqrt() * z + (1 - a).sqrt() * noise, t

    for step in steps(count):
        restored = generator(step.batch["lq"], step.draw(torch.randn, (4, 8, 32, 32)))
        fake = judge(*noised(step, restored.latent), restored.prompt.detach())
        loss = F.mse_loss(restored.image, step.batch["hq"]) - 0.1 * F.logsigmoid(fake).mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        optimizers[0].step()

        real = stage.generator.encode(step.batch["hq"]).detach()
        prompt = restored.prompt.detach()
        on_real, on_fake = judge(*noised(step, real), prompt), judge(*noised(step, restored.latent.detach()), prompt)
        loss = -F.logsigmoid(-on_fake).mean() - F.logsigmoid(on_real).mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        optimizers[1].step()


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_three_alternate_steps_equal_plain_pytorch(stage1, pairs, zero_stage):
    plain = OSDStage(osd_config(stage1, pairs), CPU, {})
    plain_osd_steps(plain, 3)

    # Not Adam: it divides by gradients that are nearly nothing, rounding included.
    sgd = {"name": "sgd", "lr": 0.1}
    config = osd_config(stage1, pairs, zero_stage=zero_stage, generator=sgd, discriminator=sgd)
    stage = OSDStage(config, CPU, {})
    before = {name: tensor.clone() for name, tensor in stage.state().items()}
    (phase,) = stage.phases()
    made = {name: Engine(module, how, config, 3) for name, (module, how) in phase.engines.items()}
    for step in steps(3):
        step.engines = made
        phase.step(step)
    expected = plain.state()
    for name, tensor in stage.state().items():
        assert (tensor - expected[name]).abs().max() < 1e-6, name
    moved = {name: float((tensor - before[name]).detach().abs().max()) for name, tensor in stage.state().items()}
    for part in ("generator", "discriminator"):
        assert max(distance for name, distance in moved.items() if name.startswith(part)) > 1e-4


# The loop: checkpoints and resume


class Reports:
    """Stands where Ray Train takes reports; keeps copies of checkpoints, may stop the training after one."""

    def __init__(self, folder: Path, stop_after: int | None = None):
        self.folder, self.stop_after, self.kept, self.metrics = folder, stop_after, [], []

    def __call__(self, metrics, checkpoint: Path) -> None:
        self.kept.append(self.folder / str(len(self.kept)))
        self.metrics.append(metrics)
        shutil.copytree(checkpoint, self.kept[-1])
        if len(self.kept) == self.stop_after:
            raise KeyboardInterrupt


def output(reports: Reports) -> dict[str, torch.Tensor]:
    files = sorted((reports.kept[-1] / "output").rglob("*.safetensors"))
    assert files
    return {f"{path.name}:{name}": tensor for path in files for name, tensor in load_file(path).items()}


def worker(config, stage_class, reports) -> Worker:
    return Worker(config, lambda: stage_class(config, CPU, {"runs": {}, "dataset_digest": "d"}), CPU, 0, 1, reports)


def trained(
    config, stage_class, folder: Path, checkpoint: Path | None = None, stop_after: int | None = None
) -> Reports:
    reports = Reports(folder, stop_after)
    with pytest.raises(KeyboardInterrupt) if stop_after else contextlib.nullcontext():
        worker(config, stage_class, reports).train(checkpoint)
    return reports


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], limit: float = 0) -> None:
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert float((other[name].float() - tensor.float()).abs().max()) <= limit, name


@pytest.fixture(scope="module")
def whole_stage_1(pairs, tmp_path_factory) -> dict[str, torch.Tensor]:
    return output(trained(vre_config(pairs, Path("out")), VREStage, tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("stop_after", [1, 2, 3])  # after a phase, after another, in the middle of the third
def test_stage_1_resumes_to_the_same_tensors(pairs, tmp_path, whole_stage_1, stop_after):
    config = vre_config(pairs, tmp_path / "out")
    first = trained(config, VREStage, tmp_path / "first", stop_after=stop_after)
    second = trained(config, VREStage, tmp_path / "second", checkpoint=first.kept[-1])
    assert_same(output(second), whole_stage_1)


def test_what_happens_between_phases_is_not_done_again_to_what_came_after(pairs, tmp_path):
    config = vre_config(pairs, tmp_path / "out", lq_from="hq", association={"steps": 0})
    whole = output(trained(config, VREStage, tmp_path / "whole"))
    for stop_after in (1, 2):
        first = trained(config, VREStage, tmp_path / f"first{stop_after}", stop_after=stop_after)
        second = trained(config, VREStage, tmp_path / f"second{stop_after}", checkpoint=first.kept[-1])
        assert_same(output(second), whole)


@pytest.fixture(scope="module")
def whole_stage_2(stage1, pairs, tmp_path_factory) -> Reports:
    config = osd_config(stage1, pairs, duration={"steps": 4}, checkpoint_every=2, ema=0.5)
    return trained(config, OSDStage, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("zero_stage", [0, 2, pytest.param(3, marks=pytest.mark.full)])
def test_stage_2_resumes_in_the_middle_at_any_zero_stage(
    stage1, pairs, tmp_path, whole_stage_2, zero_stage, monkeypatch
):
    """The checkpoint is one of ZeRO 0."""
    monkeypatch.setattr(engines, "PERSISTENT", 0)
    changes = {"duration": {"steps": 4}, "checkpoint_every": 2, "ema": 0.5, "zero_stage": zero_stage}
    config = osd_config(stage1, pairs, tmp_path / "out", **changes)
    second = trained(config, OSDStage, tmp_path / "second", checkpoint=whole_stage_2.kept[0])
    assert len(second.kept) == len(whole_stage_2.kept) - 1
    assert_same(output(whole_stage_2), output(second), 1e-6)
    for name in ("state.safetensors", "moments.safetensors"):
        one, two = (load_file(reports.kept[-1] / name) for reports in (whole_stage_2, second))
        assert_same(one, two, 1e-6)


def test_checkpoints_hold_what_is_trained_and_its_moments_alone(stage1, pairs, whole_stage_2):
    stage = OSDStage(osd_config(stage1, pairs), CPU, {})
    trainable = {name: p.numel() for name, p in stage.state().items()}
    state, moments = (load_file(whole_stage_2.kept[0] / name) for name in ("state.safetensors", "moments.safetensors"))
    assert {name: t.numel() for name, t in state.items()} == trainable
    kinds = {"exp_avg", "exp_avg_sq", "ema"}
    assert set(moments) == {f"{kind}/{name}" for kind in kinds for name in trainable}
    assert sum(path.stat().st_size for path in whole_stage_2.kept[0].iterdir()) < 4.5 * 4 * sum(trainable.values())


def test_the_average_is_kept_and_may_be_chosen_after_the_end(stage1, pairs, tmp_path, whole_stage_2):
    states = [load_file(folder / "state.safetensors") for folder in whole_stage_2.kept]
    average = load_file(whole_stage_2.kept[-1] / "moments.safetensors")
    assert {name.partition("/")[0] for name in average} == {"ema"}
    name = next(name for name in states[0] if "lora_B" in name)
    assert 0 < float((average[f"ema/{name}"] - states[-1][name]).abs().max()) < float(states[-1][name].abs().max())
    changes = {"duration": {"steps": 4}, "checkpoint_every": 2, "ema": 0.5, "export": "ema"}
    again = trained(
        osd_config(stage1, pairs, tmp_path / "out", **changes), OSDStage, tmp_path, checkpoint=whole_stage_2.kept[-1]
    )
    assert len(again.kept) == 1  # nothing was trained
    assert_same(states[-1], load_file(again.kept[0] / "state.safetensors"))
    chosen, last = output(again), output(whole_stage_2)
    changed = {name for name in last if not torch.equal(chosen[name], last[name])}
    assert changed
    assert all("lora_" in name or "adapter" in name for name in changed)
    stage = OSDStage(osd_config(stage1, pairs, **changes), CPU, {})
    snapshot = checkpoints.read(again.kept[0])
    snapshot.export(stage, "ema")
    assert_same({f"ema/{name}": tensor.detach() for name, tensor in stage.state().items()}, average)


def test_the_average_is_what_its_formula_says(pairs):
    how, config = Optimizer(name="sgd", lr=0.1), vre_config(pairs, Path("out"), ema=0.75)
    for zero in (0, 1):
        module = torch.nn.Linear(3, 2, bias=False)
        made = Engine(module, how, config.model_copy(update={"zero_stage": zero}), 3)
        expected = module.weight.detach().clone()
        for _ in range(3):
            made.backward(made(torch.ones(1, 3)).square().sum())
            made.step()
            expected = 0.75 * expected + 0.25 * module.weight.detach()
        assert float((made.whole(module.weight, "ema") - expected).abs().max()) < 1e-6
        made.close()


def test_micro_batches_change_nothing(stage1, pairs, tmp_path):
    sgd = {"name": "sgd", "lr": 0.1}
    results = []
    for accumulation in (1, 2):
        config = osd_config(
            stage1,
            pairs,
            tmp_path / "out",
            generator=sgd,
            discriminator=sgd,
            accumulation=accumulation,
            latent="sample",
        )
        results.append(output(trained(config, OSDStage, tmp_path / str(accumulation))))
    assert_same(*results, 1e-6)


def test_a_checkpoint_tells_how_long_training_took_over_all_its_beginnings(stage1, pairs, tmp_path, whole_stage_2):
    config = osd_config(stage1, pairs, tmp_path / "out", duration={"steps": 4}, checkpoint_every=2, ema=0.5)
    whole = [checkpoints.seconds(folder) for folder in whole_stage_2.kept]
    assert 0 < whole[0] < whole[-1]
    earlier = shutil.copytree(whole_stage_2.kept[0], tmp_path / "earlier")
    note = json.loads((earlier / "state.json").read_text())
    (earlier / "state.json").write_text(json.dumps(note | {"seconds": 1e6}))
    later = trained(config, OSDStage, tmp_path / "second", checkpoint=earlier).kept
    assert 1e6 < checkpoints.seconds(later[0]) < checkpoints.seconds(later[-1]) < 1e6 + 600


def test_a_finished_checkpoint_is_not_trained_again(pairs, tmp_path, whole_stage_2, stage1):
    config = osd_config(stage1, pairs, duration={"steps": 4}, checkpoint_every=2, ema=0.5)
    assert not trained(config, OSDStage, tmp_path / "again", checkpoint=whole_stage_2.kept[-1]).kept


def test_a_checkpoint_of_another_format_is_refused_by_name(pairs, tmp_path):
    (tmp_path / "state.json").write_text('{"phase": 0, "step": 2}')
    with pytest.raises(UserError, match=r"a checkpoint of format 1, where this program reads 2; .*--resume never"):
        worker(vre_config(pairs, tmp_path / "out"), VREStage, Reports(tmp_path)).train(tmp_path)


def test_a_number_that_is_none_stops_with_the_pairs_named(pairs, tmp_path):
    config = vre_config(pairs, tmp_path / "out", optimizer={"name": "sgd", "lr": 1e30}, checkpoint_every=1)
    reports = Reports(tmp_path)
    with pytest.raises(
        UserError, match=rf"hq/\w+ is not a number at step 1 \(pairs \w+-000.*data show {pairs} \w+-000"
    ):
        worker(config, VREStage, reports).train(None)
    assert len(reports.kept) == 1  # what was good stays


def test_a_gradient_that_is_infinite_stops_the_training(pairs, tmp_path):
    class Steep(VREStage):
        def _step(self, phase, step):
            metrics = super()._step(phase, step)
            if step.index == 1:
                step.engines["autoencoder"].norm = float("inf")
            return metrics

    reports = Reports(tmp_path)
    with pytest.raises(UserError, match=r"hq: the gradient of autoencoder is not finite at step 1 \(pairs \w+-000"):
        worker(vre_config(pairs, tmp_path / "out", checkpoint_every=1), Steep, reports).train(None)
    assert len(reports.kept) == 1


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_norms_are_those_of_the_whole_gradient(pairs, zero_stage):
    module = torch.nn.Linear(3, 2)
    config = vre_config(pairs, Path("out"), zero_stage=zero_stage)
    made = Engine(module, Optimizer(name="sgd", lr=0.1, clip=0.01), config, 3)
    made.backward(made(torch.ones(4, 3)).sum())
    made.step()
    assert made.norm == pytest.approx((2 * 4 * 4 * 4) ** 0.5)  # 8 elements' gradient is 4 each
    made.close()


def test_validation_scores_checkpoints_and_the_best_is_known(pairs, tmp_path):
    nothing = {"steps": 0}
    config = vre_config(
        pairs, tmp_path / "out", hq={"steps": 4}, lq=nothing, association=nothing, checkpoint_every=100,
        validation={"every": 1, "pictures": 3, "best": "hq_l1", "direction": "min"},
    )  # fmt: skip
    reports = trained(config, VREStage, tmp_path)
    assert ["score" in metrics for metrics in reports.metrics] == [True, True, True, False, False, False, False]
    noted = [json.loads((folder / "state.json").read_text()).get("scores") for folder in reports.kept[:3]]
    assert [scores["validation/hq_l1"] for scores in noted] == [m["score"] for m in reports.metrics[:3]]
    wrong = config.model_copy(update={"validation": config.validation.model_copy(update={"best": "psnr"})})
    with pytest.raises(UserError, match=r"validation\.best: psnr is not measured here; there are .*hq_l1, hq_psnr"):
        worker(wrong, VREStage, Reports(tmp_path / "wrong")).train(None)


# What stages train


def test_stage_2_trains_lora_adapter_and_head_and_nothing_else(stage1, pairs, tmp_path):
    config = osd_config(stage1, pairs, tmp_path / "out", duration={"steps": 1})
    stage = OSDStage(config, CPU, {"runs": {}, "dataset_digest": "d"})
    modules = torch.nn.ModuleDict({"generator": stage.generator, "discriminator": stage.discriminator})
    before = copy.deepcopy(modules.state_dict())
    Worker(config, lambda: stage, CPU, 0, 1, Reports(tmp_path)).train(None)
    changed = {name for name, tensor in modules.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("lora_" in name or "adapter." in name or "discriminator.head" in name for name in changed)
    assert {name.split(".")[0] for name in changed} == {"generator", "discriminator"}


def test_dictionary_phases_train_their_own_branch_alone(pairs, tmp_path):
    config = vre_config(pairs, tmp_path / "out", lq={"steps": 0}, association={"steps": 0})
    stage = VREStage(config, CPU, {})
    before = {name: tensor.detach().clone() for name, tensor in stage.state().items()}
    Worker(config, lambda: stage, CPU, 0, 1, Reports(tmp_path)).train(None)
    changed = {name.split(".")[1] for name, tensor in stage.state().items() if not torch.equal(tensor, before[name])}
    assert changed == {"hq"}


def test_an_lq_dictionary_may_start_from_the_hq_one(pairs, tmp_path):
    nothing = {"steps": 0}
    config = vre_config(pairs, tmp_path / "out", hq={"steps": 1}, lq=nothing, association=nothing, lq_from="hq")
    stage = VREStage(config, CPU, {})
    Worker(config, lambda: stage, CPU, 0, 1, Reports(tmp_path)).train(None)
    lq = stage.autoencoders["lq"].state_dict()
    assert all(torch.equal(tensor, lq[name]) for name, tensor in stage.autoencoders["hq"].state_dict().items())
