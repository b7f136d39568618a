"""Training on CUDA: every precision, ZeRO stage and offload; equal to plain PyTorch, and near to the CPU's weights."""

import time

import pytest
import torch

from pipelines.launch import launch
from pipelines.runs import whole_checkpoints
from pipelines.train_osd import OSDConfig
from pipelines.train_vre import VREConfig
from pipelines.training.checkpoints import note
from tests import exactness
from tests.exactness import CPU, PHASES, Cell

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
STEPS = 12
NEAR = 1e-2  # of losses: with TF32, and sums in any order, AdamW's steps drift apart
SHARED = {"preset": "tiny", "batch_size": 8, "workers": 0, "gpus_per_worker": 1, "log_every": 1}
ADAM = {"name": "adamw", "lr": 1e-3}


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSDFACE_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A base and a stage-1 output, untrained."""
    return exactness.inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def osd(shared_home, inputs, pairs):
    """A function that trains stage 2 with these settings, every loss on, and returns the losses that were told."""

    def train(**changes):
        out = shared_home / "-".join(f"{name}-{value}" for name, value in changes.items())
        settings = SHARED | {
            "data": pairs, "out": out, "base": inputs / "base", "vre": inputs / "vre", "generator": ADAM,
            "discriminator": ADAM, "duration": {"steps": STEPS},
        }  # fmt: skip
        told = []
        start = time.perf_counter()
        config = OSDConfig.model_validate(settings | changes)
        # "never": a run's name says nothing of ZeRO stage or offload, on which its weights do not depend.
        made = launch("osd", config, {}, progress=lambda *event: told.append(event), resume="never")
        seconds = time.perf_counter() - start
        values = [event[3] for event in told if "osd/mse" in event[3]]
        assert len(values) == STEPS
        print(f"\n{changes} {seconds:.1f} s {values[0]['osd/mse']:.5f} -> {values[-1]['osd/mse']:.5f}")
        assert made.out.is_dir()
        return [value["osd/mse"] for value in values]

    return train


@pytest.fixture(scope="module")
def reference(osd):
    """The losses of fp32 at ZeRO 0."""
    return osd(zero_stage=0)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_zero_stages_train_alike(osd, reference, zero):
    assert osd(zero_stage=zero) == pytest.approx(reference, rel=NEAR)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_half_precision_trains_near_to_it(osd, reference, precision, zero):
    losses = osd(precision=precision, zero_stage=zero)
    assert losses[0] == pytest.approx(reference[0], rel=0.03)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("offload", "zero"), [("optimizer", 2), ("optimizer", 3), ("parameters", 3)])
def test_offload_trains_alike(osd, reference, offload, zero):
    assert osd(offload=offload, zero_stage=zero) == pytest.approx(reference, rel=NEAR)


def test_activation_checkpointing_changes_nothing(osd, reference):
    assert osd(activation_checkpointing=True) == pytest.approx(reference, rel=NEAR)


def test_ray_train_on_the_gpu(osd, reference, ray_session):
    assert osd(workers=1, gpus_per_worker=1, zero_stage=1) == pytest.approx(reference, rel=NEAR)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stage_1(shared_home, pairs, precision):
    once = {"steps": 6}
    settings = SHARED | {
        "data": pairs, "out": shared_home / f"vre-{precision}", "hq": once, "lq": once, "association": once,
        "optimizer": ADAM, "losses": {"features": "dlib", "adversarial_start": 3}, "precision": precision,
    }  # fmt: skip
    assert launch("vre", VREConfig.model_validate(settings), {}).fresh


def test_a_checkpoint_in_half_precision_goes_on(osd, shared_home):
    osd(precision="bf16", zero_stage=1, checkpoint_every=6, seed=1)
    run = max((shared_home / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime).name
    assert note(whole_checkpoints(run)[-1])["phase"] == 1


@pytest.fixture
def exact_arithmetic(monkeypatch):
    """No TF32, and the same kernels twice; processes started here inherit it."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def test_equals_plain_pytorch(inputs, exact_arithmetic, capsys):
    cells = [Cell(phase, zero, count) for phase in PHASES for zero in range(4) for count in (1, 2)]
    found = exactness.differences(1, inputs, cells, CUDA)
    with capsys.disabled():
        print("\n" + exactness.table({1: found}))
    assert max(found.values()) < 1e-5


def test_is_near_to_the_cpu(inputs, exact_arithmetic):
    """Stage 2's weights after a few steps of SGD."""
    cell = Cell("osd", 0)
    here, there = (exactness.weights(cell, inputs, device) for device in (CPU, CUDA))
    assert max(float((here[name] - there[name]).abs().max()) for name in here) < 1e-4
