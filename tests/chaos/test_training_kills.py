"""SIGKILL of a rank, the controller or the driver, in the middle of a step, of writing a checkpoint, or of storing it.

Run again where it ended, a training comes to the weights of one that nothing disturbed.
"""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from osdface import bundle
from tests import exactness

pytestmark = pytest.mark.chaos
ROOT = Path(__file__).parents[2]
TAG = "OSDFACE_TEST_RUN"  # in the environment of every process that a test starts
# As pipelines.training.worker is imported: a process that comes to the moment HELD waits there, once.
HOLD = """
    import importlib.abc, importlib.util, os, sys, time
    from pathlib import Path

    def hold():
        folder = Path(os.environ["HOLDING"])
        try:
            (folder / "held").touch(exist_ok=False)
        except FileExistsError:
            return
        while not (folder / "released").exists():
            time.sleep(0.01)

    def nth(function, number, instead):
        calls = []
        def counted(*arguments, **options):
            calls.append(1)
            return (instead if len(calls) == number else function)(*arguments, **options)
        return counted

    def patch(worker):
        import ray.train.v2._internal.execution.storage as storage
        from pipelines.training import checkpoints
        backward, save, copy = worker.Engine.backward, checkpoints.save_file, storage._pyarrow_fs_copy_files

        def half_a_step(engine, loss):  # gradients are there, and no weight has moved
            backward(engine, loss)
            hold()

        def half_a_file(tensors, path):
            save(tensors, path)
            os.truncate(path, os.path.getsize(path) // 2)
            hold()

        def half_a_copy(source, destination, **options):
            files = sorted(Path(source).iterdir())
            (Path(destination) / files[0].name).write_bytes(files[0].read_bytes()[:100])
            hold()
            return copy(source, destination, **options)

        moment = os.environ["HELD"]
        if moment == "step":  # the generator's seventh, and so between the checkpoints at six steps and at eight
            worker.Engine.backward = nth(backward, 13, half_a_step)
        elif moment == "write":  # the third checkpoint's second file
            checkpoints.save_file = nth(save, 6, half_a_file)
        elif moment == "store":
            storage._pyarrow_fs_copy_files = nth(copy, 3, half_a_copy)

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "pipelines.training.worker":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (execute(module), patch(module))
            return spec

    if os.environ.get("HELD"):
        sys.meta_path.insert(0, Finder())
"""


class Drivers:
    """Starts trainings, and sees to it that nothing of them outlives the test."""

    def __init__(self, folder: Path):
        self.folder, self.mark, self.log = folder, uuid.uuid4().hex, folder / "log"
        (folder / "hold").mkdir()
        (folder / "hold" / "sitecustomize.py").write_text(textwrap.dedent(HOLD))
        path = os.pathsep.join([str(folder / "hold"), str(ROOT)])
        self.env = os.environ | {"OSDFACE_HOME": str(folder / "home"), TAG: self.mark, "PYTHONPATH": path}
        self.env |= {"HOLDING": str(folder / "hold")}
        self.env.pop("MLFLOW_TRACKING_URI", None)

    def start(self, words: list[str], held: str = "") -> subprocess.Popen:
        with self.log.open("a") as lines:
            command = [sys.executable, "-m", "jobs.cli", *words]
            return subprocess.Popen(command, env=self.env | {"HELD": held}, cwd=ROOT, stdout=lines, stderr=lines)

    def finish(self, driver: subprocess.Popen, code: int = 0) -> None:
        assert driver.wait(400) == code, self.log.read_text()[-3000:]

    def wait_until_held(self, driver: subprocess.Popen) -> None:
        while not (self.folder / "hold" / "held").exists():
            assert driver.poll() is None, f"ended too early ({driver.returncode}): {self.log.read_text()[-3000:]}"
            time.sleep(0.02)

    def processes(self, part: str = "") -> list[psutil.Process]:
        """Every living process that was started from here, however indirectly, with this in its command line."""
        return [p for p in psutil.process_iter() if self._ours(p) and part in title_of(p)]

    def _ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(TAG) == self.mark and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):  # gone meanwhile, or another user's
            return False

    def clear(self) -> None:
        while left := self.processes():
            for process in left:
                kill(process)
            psutil.wait_procs(left, timeout=10)


def title_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


@pytest.fixture
def drivers(tmp_path) -> Iterator[Drivers]:
    started = Drivers(tmp_path)
    yield started
    started.clear()


@pytest.fixture(scope="module")
def words(pairs, tmp_path_factory) -> list[str]:
    """A training of stage 2 on a base and a stage-1 output that nobody trained, without its --out."""
    folder = exactness.inputs(tmp_path_factory.mktemp("inputs"))
    line = f"train osd --data {pairs} --base {folder}/base --vre {folder}/vre --set batch_size=4 --set ema=0.9 "
    # A large epsilon: Adam divides by gradients near nothing, and another number of workers rounds otherwise.
    line += "--set generator.eps=1.0e-3 --set discriminator.eps=1.0e-3 --set max_failures=1 --set threads=1 "
    more = "--set duration.steps=12 --set checkpoint_every=2 --set validation.every=4"
    return (line + more).split()


@pytest.fixture(scope="module")
def in_peace(words, tmp_path_factory) -> Path:
    """What nothing disturbed."""
    folder = tmp_path_factory.mktemp("peace")
    drivers = Drivers(folder)
    drivers.finish(drivers.start([*words, "--out", str(folder / "model")]))
    return folder


def tensors(folder: Path) -> dict:
    """The model's, and those of its last checkpoint: its weights and their average."""
    (last,) = [
        p.parent for p in (folder / "home" / "runs").glob("*/*/state.json") if json.loads(p.read_text())["exported"]
    ]
    model = load_file(folder / "model" / bundle.LORA) | load_file(folder / "model" / bundle.ADAPTER)
    return model | load_file(last / "state.safetensors") | load_file(last / "moments.safetensors")


@pytest.mark.parametrize("moment", ["step", "write", "store"])
@pytest.mark.parametrize("victim", ["rank", "controller", "driver"])
def test_a_killed_training_comes_to_the_same_weights(victim, moment, words, in_peace, drivers, tmp_path, capsys):
    command = [*words, "--out", str(tmp_path / "model")]
    driver = drivers.start(command, moment)
    drivers.wait_until_held(driver)
    if victim == "rank":  # the one that is held, or the other
        kill(drivers.processes("RayTrainWorker")[0])
    elif victim == "controller":
        kill(drivers.processes("TrainController")[0])
    else:
        drivers.clear()
    (tmp_path / "hold" / "released").touch()
    code = driver.wait(400)
    if victim != "rank" or code:
        assert not (tmp_path / "model").exists()
        drivers.clear()
        drivers.finish(drivers.start(command))
    assert victim != "rank" or code == 0
    expected, found = tensors(in_peace), tensors(tmp_path)
    assert found.keys() == expected.keys()
    largest = max(float((tensor - found[name]).abs().max()) for name, tensor in expected.items())
    with capsys.disabled():
        print(f"\n| {victim} | {moment} | {largest:.1e} |")
    assert largest < 1e-6
    checkpoints = list((tmp_path / "home" / "runs").glob("*/checkpoint_*"))
    assert len(checkpoints) >= 2


def test_a_training_killed_with_two_workers_goes_on_with_one(words, in_peace, drivers, tmp_path, capsys):
    command = [*words, "--out", str(tmp_path / "model")]
    driver = drivers.start(command, "step")
    drivers.wait_until_held(driver)
    drivers.clear()
    driver.wait()
    drivers.finish(drivers.start([*command, "--workers", "1", "--set", "zero_stage=1"]))
    assert len(list((tmp_path / "home" / "runs").glob("*.json"))) == 1
    expected, found = tensors(in_peace), tensors(tmp_path)
    largest = max(float((tensor - found[name]).abs().max()) for name, tensor in expected.items())
    with capsys.disabled():
        print(f"\n| two workers, then one | step | {largest:.1e} |")
    assert largest < 1e-6
