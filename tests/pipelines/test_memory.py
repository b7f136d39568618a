"""The estimate of a worker's memory: beside a run of its own, by hand where that is possible, and at full size."""

import functools
import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from osdface import presets
from osdface.autoencoder import VQAutoencoder
from osdface.base import new_base, save_base
from osdface.profile import peak_memory
from pipelines import memory
from pipelines.train_base import BaseConfig
from pipelines.train_osd import OSDConfig
from pipelines.train_vre import VREConfig

GIB = 2**30
FACTOR = 2.0  # of a CPU's peak: its convolutions keep copies of weights and pictures, and its allocator freed memory
ADAM = {"name": "adamw", "lr": 1e-3}
VRE = {name: {"steps": 1} for name in ("hq", "lq", "association")} | {"optimizer": ADAM, "losses": {"perceptual": 0}}
OSD_LOSSES = {"mse": 1.0, "perceptual": 0, "identity": 0, "adversarial": 0.1}
OSD = {"duration": {"steps": 1}, "generator": ADAM, "discriminator": ADAM, "losses": OSD_LOSSES}

# A worker's process: the stage, then two steps of its last phase; prints the growth of its peak.
RUN = """
import sys, torch
from pipelines import memory
from pipelines.training import Step
from osdface.profile import peak_memory
from tests.pipelines.test_memory import configuration, Plain
torch.set_num_threads(1)
stage, config = sys.argv[1], configuration(*sys.argv[1:3], batch_size=int(sys.argv[3]))
made = memory.pkgutil.resolve_name(memory.STAGES[stage])
cpu = torch.device("cpu")
before = peak_memory(cpu)
phase = list((stage := made(config, cpu, {})).phases())[-1]
engines = {name: Plain(module, how) for name, (module, how) in phase.engines.items()}
for index in range(2):
    batch = {name: torch.rand(config.batch_size, 3, 64, 64) for name in ("hq", "lq")} | {"key": [""]}
    phase.step(Step(index, batch, engines, torch.Generator()))
print(peak_memory(cpu) - before)
"""


class Plain:
    def __init__(self, module, how):
        self.module = module
        self.optimizer = how.build(module)

    def __call__(self, *inputs):
        return self.module(*inputs)

    def backward(self, loss):
        loss.backward()

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)


def configuration(stage: str, folder: Path | str, **changes):
    shared = {"preset": "tiny", "data": "none", "out": "none", "batch_size": 4, "workers": 1}
    if stage == "vre":
        return VREConfig.model_validate(shared | VRE | changes)
    return OSDConfig.model_validate(
        shared | OSD | {"base": Path(folder) / "base", "vre": Path(folder) / "vre"} | changes
    )


def empty_vre(folder: Path, shape: presets.Preset) -> None:
    """A stage-1 output whose tensors are zeros that take no room on the disk."""
    folder.mkdir()
    with torch.device("meta"):
        tensors = VQAutoencoder(shape.vre).state_dict()
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + 4 * tensor.numel()]}
        end += 4 * tensor.numel()
    text = json.dumps(header).encode()
    with (folder / "lq.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps({"preset": shape.name, "input": "once", "format_version": 1}))


def empty_base(folder: Path, shape: presets.Preset) -> None:
    """A base folder's configurations."""
    with torch.device("meta"):
        base = new_base(shape)
    base.vae.save_config(folder / "vae")
    base.unet.save_config(folder / "unet")
    base.scheduler.save_pretrained(folder / "scheduler")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder, shape = tmp_path_factory.mktemp("tiny"), presets.preset("tiny")
    torch.manual_seed(0)
    save_base(new_base(shape), folder / "base")
    empty_vre(folder / "vre", shape)
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    folder, shape = tmp_path_factory.mktemp("full"), presets.preset("sd21")
    empty_base(folder / "base", shape)
    empty_vre(folder / "vre", shape)
    return folder


@pytest.mark.parametrize("stage", [pytest.param("vre", marks=pytest.mark.full), "osd"])
def test_a_process_needs_what_is_estimated(tiny, stage):
    needed = memory.estimate(stage, configuration(stage, tiny, batch_size=32)).total
    command = [sys.executable, "-c", RUN, stage, str(tiny), "32"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.split()[-1])
    assert needed > 300 * 2**20
    assert needed < measured < FACTOR * needed


def test_every_part_is_counted_on_the_modules(tiny):
    from pipelines.train_osd import OSDStage

    stage = OSDStage(configuration("osd", tiny), torch.device("cpu"), {})
    modules = torch.nn.ModuleList([stage.generator, stage.discriminator])
    trained = sum(p.numel() for p in modules.parameters() if p.requires_grad) * 4
    frozen = sum(p.numel() for p in modules.parameters() if not p.requires_grad) * 4
    found = memory.estimate("osd", configuration("osd", tiny))
    assert found.phase == "osd"
    assert found.device["trained parameters"] == found.device["gradients"] == trained
    assert found.device["optimizer states"] == 2 * trained
    assert frozen <= found.device["frozen parameters"] < frozen + 10_000  # noise schedules
    assert found.total == sum(found.device.values())


def test_activations_grow_with_the_micro_batch_alone(tiny):
    estimate = functools.partial(memory.estimate, "osd")
    two = estimate(configuration("osd", tiny, batch_size=2)).device["activations of 2 pictures"]
    four = estimate(configuration("osd", tiny)).device["activations of 4 pictures"]
    eight = estimate(configuration("osd", tiny, batch_size=8))
    # Beside pictures' there are weights with their adapters added, as many for any micro-batch.
    assert eight.device["activations of 8 pictures"] - four == pytest.approx(2 * (four - two), rel=0.01)
    assert 0 < 2 * two - four < 0.2 * four
    shared = estimate(configuration("osd", tiny, batch_size=8, workers=2))
    assert shared.device["activations of 4 pictures"] == four
    assert shared.total < eight.total


def test_activations_that_are_computed_again_are_not_kept(tiny, monkeypatch):
    from pipelines.train_osd import OSDStage

    whole = memory.estimate("osd", configuration("osd", tiny))
    begin = OSDStage.__init__
    monkeypatch.setattr(
        OSDStage, "__init__", lambda self, *of: (begin(self, *of), self.generator.enable_gradient_checkpointing())[0]
    )
    again = memory.estimate("osd", configuration("osd", tiny))
    kept = "activations of 4 pictures"
    assert again.device[kept] < whole.device[kept] / 2
    assert again.device[kept] + again.device["largest transient"] < whole.device[kept]


def test_what_zero_divides_and_what_it_does_not(tiny):
    parts = {
        zero: memory.estimate("vre", configuration("vre", tiny, zero_stage=zero, workers=4, ema=0.99)).device
        for zero in (0, 1, 2, 3)
    }
    trained = parts[0]["trained parameters"]
    for zero, gradients, kept in ((0, 1, 1), (1, 1, 4), (2, 4, 4), (3, 4, 4)):
        assert parts[zero]["gradients"] == trained // gradients
        assert parts[zero]["optimizer states"] == 2 * trained // kept
        assert parts[zero]["moving average"] == trained // kept
        assert parts[zero].get("fp32 copies of trained parameters", 0) == (trained // 4 if zero else 0)
        assert parts[zero]["trained parameters"] == (trained // 4 if zero == 3 else trained)
    assert parts[3]["parameters being gathered"] >= trained


def test_offload_moves_states_to_the_cpu(tiny):
    here = memory.estimate("vre", configuration("vre", tiny, zero_stage=3))
    states = memory.estimate("vre", configuration("vre", tiny, zero_stage=3, offload="optimizer"))
    both = memory.estimate("vre", configuration("vre", tiny, zero_stage=3, offload="parameters"))
    assert not here.host
    assert states.host["optimizer states"] == here.device["optimizer states"]
    assert states.total + sum(states.host.values()) == here.total
    assert both.total < states.total < here.total
    assert both.host["parameters"] >= here.device["trained parameters"]


def test_half_precision_halves_all_but_the_optimizers_states(tiny):
    full, half = (
        memory.estimate("osd", configuration("osd", tiny, precision=precision, zero_stage=1))
        for precision in ("fp32", "bf16")
    )
    for part in ("trained parameters", "gradients", "activations of 4 pictures"):
        assert half.device[part] == full.device[part] // 2
    for part in ("optimizer states", "fp32 copies of trained parameters"):
        assert half.device[part] == full.device[part]


def test_the_base_is_counted_too(pairs):
    shared = {"preset": "tiny", "data": pairs, "out": "none", "batch_size": 4, "workers": 1}
    phases = {"vae": {"steps": 1}, "unet": {"steps": 1}, "vae_optimizer": ADAM, "unet_optimizer": ADAM}
    found = memory.estimate("base", BaseConfig.model_validate(shared | phases))
    assert found.device["activations of 4 pictures"] > 4 * 2**20


def test_full_size_takes_seconds_and_no_memory(full):
    before, start = peak_memory(torch.device("cpu")), time.perf_counter()
    found = memory.estimate("osd", configuration("osd", full, preset="sd21", batch_size=1))
    assert found.device["frozen parameters"] / 4 == pytest.approx(978.7e6 + 340e6, rel=0.05)
    assert found.device["trained parameters"] / 4 == pytest.approx(16.2e6 + 0.39e6 + 6e6, rel=0.3)
    assert 5 * GIB < found.total < 60 * GIB
    assert time.perf_counter() - start < 120
    assert peak_memory(torch.device("cpu")) - before < GIB


def test_a_machine_with_less_is_said_so(tiny, monkeypatch):
    config = configuration("osd", tiny)
    needed = memory.estimate("osd", config)
    assert memory.warning(needed, config) is None
    monkeypatch.setattr(memory, "room", lambda config: needed.total // 2)
    said = memory.warning(needed, config)
    assert said is not None
    assert "activation_checkpointing or a larger accumulation" in said
