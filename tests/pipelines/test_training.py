"""What the stages share: two DeepSpeed engines against plain PyTorch, resume, order of data, refusals."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from osdface import presets
from osdface.base import new_base, save_base
from osdface.config import parse
from osdface.errors import UsageError, UserError
from pipelines.train_osd import OSDConfig, OSDStage
from pipelines.train_vre import VREConfig, VREStage
from pipelines.training import Duration, Optimizer, Step, frozen
from pipelines.training.worker import Worker, engine

CPU = torch.device("cpu")
ADAM = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01}
# Pictures alone: a perceptual or identity network adds nothing to what is compared here.
OSD_LOSSES = {"mse": 1.0, "ea_dists": 0, "identity": 0, "adversarial": 0.1}


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """torch.distributed with this process alone; DeepSpeed's engines find it and use it."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("LOCAL_RANK", "0")
        yield
    dist.destroy_process_group()


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
        "duration": {"steps": 3}, "generator": ADAM, "discriminator": ADAM, "losses": OSD_LOSSES, "log_every": 1,
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
        restored = generator(step.batch["lq"], step.draw(torch.randn, (4, 4, 16, 16)))
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
    engines = {name: engine(module, how, config, 3) for name, (module, how) in phase.engines.items()}
    for step in steps(3):
        step.engines = engines
        phase.step(step)
    expected = plain.state()
    for name, tensor in stage.state().items():
        assert (tensor - expected[name]).abs().max() < 1e-6, name
    moved = {name: float((tensor - before[name]).detach().abs().max()) for name, tensor in stage.state().items()}
    for part in ("generator", "discriminator"):
        assert max(distance for name, distance in moved.items() if name.startswith(part)) > 1e-4


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_association_steps_equal_plain_engines(pairs, zero_stage):
    """The adaptive weight takes gradients of its own inside a step: DeepSpeed must not count them."""

    class Plain:
        def __init__(self, module, how):
            self.module, self.optimizer = module, how.build(list(module.parameters()))

        def __call__(self, *inputs):
            return self.module(*inputs)

        def backward(self, loss):
            self.optimizer.zero_grad()
            loss.backward()

        def step(self):
            self.optimizer.step()

    config, results = vre_config(pairs, Path("out"), zero_stage=zero_stage), []
    for make in (Plain, lambda module, how: engine(module, how, config, 3)):
        stage = VREStage(config, CPU, {})
        association = list(stage.phases())[2]
        engines = {name: make(module, how) for name, (module, how) in association.engines.items()}
        for step in steps(3):
            step.engines = engines
            metrics = association.step(step)
        assert {"association", "hq_adversarial", "lq_adversarial", "discriminator"} <= set(metrics)
        results.append({name: tensor.detach().clone() for name, tensor in stage.state().items()})
    for name, tensor in results[0].items():
        assert (tensor - results[1][name]).abs().max() < 1e-6, name


# The loop: checkpoints and resume


class Reports:
    """Stands where Ray Train takes reports; keeps copies of checkpoints, may stop the training after one."""

    def __init__(self, folder: Path, stop_after: int | None = None):
        self.folder, self.stop_after, self.kept = folder, stop_after, []

    def __call__(self, metrics, checkpoint: Path) -> None:
        self.kept.append(self.folder / str(len(self.kept)))
        shutil.copytree(checkpoint, self.kept[-1])
        if len(self.kept) == self.stop_after:
            raise KeyboardInterrupt


def output(reports: Reports) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = sorted((reports.kept[-1] / "output").rglob("*.safetensors"))
    assert files
    return {f"{path.name}:{name}": tensor for path in files for name, tensor in load_file(path).items()}


def trained(
    config, stage_class, folder: Path, checkpoint: Path | None = None, stop_after: int | None = None
) -> Reports:
    reports = Reports(folder, stop_after)
    stage = stage_class(config, CPU, {"runs": {}, "dataset_digest": "d"})
    worker = Worker(config, stage, CPU, 0, 1, reports)
    if stop_after:
        with pytest.raises(KeyboardInterrupt):
            worker.train(checkpoint)
    else:
        worker.train(checkpoint)
    return reports


@pytest.mark.parametrize("stop_after", [1, 2, 3])  # after a phase, after another, in the middle of the third
def test_stage_1_resumes_to_the_same_tensors(pairs, tmp_path, stop_after):
    config = vre_config(pairs, tmp_path / "out")
    whole = output(trained(config, VREStage, tmp_path / "whole"))
    first = trained(config, VREStage, tmp_path / "first", stop_after=stop_after)
    second = output(trained(config, VREStage, tmp_path / "second", checkpoint=first.kept[-1]))
    assert set(second) == set(whole)
    for name, tensor in whole.items():
        assert (second[name] - tensor).abs().max() < 1e-6, name


def test_stage_2_resumes_in_the_middle_to_the_same_tensors(stage1, pairs, tmp_path):
    config = osd_config(stage1, pairs, tmp_path / "out", duration={"steps": 4}, checkpoint_every=2)
    whole = output(trained(config, OSDStage, tmp_path / "whole"))
    first = trained(config, OSDStage, tmp_path / "first", stop_after=1)
    frozen_parts = [path for path in first.kept[0].rglob("*") if path.is_file() and path.stat().st_size > 8 * 2**20]
    assert not frozen_parts  # checkpoints hold what is trained, not the base
    second = output(trained(config, OSDStage, tmp_path / "second", checkpoint=first.kept[-1]))
    for name, tensor in whole.items():
        assert (second[name] - tensor).abs().max() < 1e-6, name


def test_a_finished_checkpoint_is_not_trained_again(pairs, tmp_path):
    config = vre_config(pairs, tmp_path / "out", hq={"steps": 1}, lq={"steps": 1}, association={"steps": 1})
    done = trained(config, VREStage, tmp_path / "done")
    assert not trained(config, VREStage, tmp_path / "again", checkpoint=done.kept[-1]).kept


def test_a_number_that_is_none_stops_with_the_pairs_named(pairs, tmp_path):
    config = vre_config(pairs, tmp_path / "out", optimizer={"name": "sgd", "lr": 1e30})
    with pytest.raises(UserError, match=r"hq/\w+ is not a number at step 1 \(pairs \w+-000"):
        Worker(config, VREStage(config, CPU, {}), CPU, 0, 1, Reports(tmp_path)).train(None)


# What stages train


def test_stage_2_trains_lora_adapter_and_head_and_nothing_else(stage1, pairs, tmp_path):
    config = osd_config(stage1, pairs, tmp_path / "out", duration={"steps": 1})
    stage = OSDStage(config, CPU, {"runs": {}, "dataset_digest": "d"})
    modules = torch.nn.ModuleDict({"generator": stage.generator, "discriminator": stage.discriminator})
    before = copy.deepcopy(modules.state_dict())
    Worker(config, stage, CPU, 0, 1, Reports(tmp_path)).train(None)
    changed = {name for name, tensor in modules.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("lora_" in name or "adapter." in name or "discriminator.head" in name for name in changed)
    assert {name.split(".")[0] for name in changed} == {"generator", "discriminator"}


def test_dictionary_phases_train_their_own_branch_alone(pairs, tmp_path):
    config = vre_config(pairs, tmp_path / "out", lq={"steps": 0}, association={"steps": 0})
    stage = VREStage(config, CPU, {})
    before = copy.deepcopy(stage.state())
    Worker(config, stage, CPU, 0, 1, Reports(tmp_path)).train(None)
    changed = {name.split(".")[1] for name, tensor in stage.state().items() if not torch.equal(tensor, before[name])}
    assert changed == {"hq"}


def test_an_lq_dictionary_may_start_from_the_hq_one(pairs, tmp_path):
    nothing = {"steps": 0}
    config = vre_config(pairs, tmp_path / "out", hq={"steps": 1}, lq=nothing, association=nothing, lq_from="hq")
    stage = VREStage(config, CPU, {})
    Worker(config, stage, CPU, 0, 1, Reports(tmp_path)).train(None)
    lq = stage.autoencoders["lq"].state_dict()
    assert all(torch.equal(tensor, lq[name]) for name, tensor in stage.autoencoders["hq"].state_dict().items())
