"""A synthesis whose processes are killed at any moment: the same command again gives the digest of a run in peace."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from osdface.errors import UserError
from pipelines import lease
from pipelines.pairs.manifest import read_manifest
from pipelines.pairs.verify import verify
from pipelines.store import Store
from pipelines.synthesize import shards
from pipelines.synthesize.build import synthesize
from pipelines.synthesize.config import Split, SynthConfig, Work

ROOT = Path(__file__).parents[2]
TAG = "OSDFACE_TEST_RUN"  # in the environment of every process that a test starts
# os.link gives a receipt its name, os.replace a shard or a manifest: a process that comes to HELD waits there.
HOLD = """
    import os, time
    from pathlib import Path

    def holding(function):
        def held(source, target, **options):
            if os.fspath(target).endswith(os.environ.get("HELD") or "/nothing"):
                Path(os.environ["HOLDING"]).touch()
                while os.path.exists(os.environ["HOLDING"]):
                    time.sleep(0.01)
            return function(source, target, **options)
        return held

    os.link, os.replace = holding(os.link), holding(os.replace)
"""


def draw(folder: Path, count: int, side: int) -> Path:
    """Smooth colour pictures, each of its own."""
    folder.mkdir()
    for seed in range(count):
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
        cv2.imwrite(str(folder / f"{seed:03d}.png"), cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))
    return folder


def config(sources: Path, out: Path, **changes) -> SynthConfig:
    return SynthConfig(sources=[sources], out=out, split=Split(val=0.1, test=0.2), **changes)


def words(sources: Path, out: Path, *more: str, **settings) -> list[str]:
    """The command that makes what `config` describes."""
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    place = ["data", "synth", str(sources), "--out", str(out), "--split", "0.1,0.2", "--no-track"]
    place += ["--recipe", "dual_sequential"]  # the default of `config`
    return [sys.executable, "-m", "jobs.cli", *place, *options, *more]


class Drivers:
    """Starts commands, and sees to it that nothing of them outlives the test."""

    def __init__(self, folder: Path):
        self.log, self.holding, self.mark = folder / "log", folder / "holding", uuid.uuid4().hex
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(textwrap.dedent(HOLD))
        path = f"{folder / 'site'}{os.pathsep}{ROOT}"
        home = {"OSDFACE_HOME": str(folder / "home"), "HOLDING": str(self.holding)}
        self.env = os.environ | home | {"PYTHONPATH": path, TAG: self.mark}
        self.env["RAY_TMPDIR"] = "/tmp"

    def start(self, command: list[str], held: str = "") -> subprocess.Popen:
        with self.log.open("a") as lines:
            return subprocess.Popen(command, env=self.env | {"HELD": held}, cwd=ROOT, stdout=lines, stderr=lines)

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Every living process that was started from here, however indirectly, whose command line begins so."""
        return [p for p in psutil.process_iter() if title_of(p).startswith(title) and tagged(p, self.mark)]

    def wait_for(self, due: Callable[[], bool], driver: subprocess.Popen) -> None:
        while not due():
            assert driver.poll() is None, f"ended too early ({driver.returncode}): {self.log.read_text()[-3000:]}"
            time.sleep(0.02)

    @contextlib.contextmanager
    def held(self, command: list[str], place: str, first: Callable | None = None) -> Iterator[subprocess.Popen]:
        """A driver that waits where `place` gets its name, or one of its workers; `first` is done as it works."""
        driver = self.start(command, place)
        if first:
            self.wait_for(lambda: bool(self.processes("ray::Map")), driver)
            first()
        self.wait_for(self.holding.exists, driver)
        yield driver
        self.holding.unlink()

    def finish(self, driver: subprocess.Popen) -> None:
        assert driver.wait(300) == 0, self.log.read_text()[-3000:]

    def clear(self) -> None:
        while left := self.processes():
            for process in left:
                kill(process)
            psutil.wait_procs(left, timeout=10)


def tagged(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(TAG) == mark and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):  # gone meanwhile, or another user's
        return False


def title_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill(process: psutil.Process | subprocess.Popen) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
    if isinstance(process, subprocess.Popen):
        process.wait()


@pytest.fixture
def drivers(tmp_path) -> Iterator[Drivers]:
    started = Drivers(tmp_path)
    yield started
    started.clear()


def receipts(out: Path) -> int:
    return len(list(out.glob(".receipts/part-*.json")))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_as_in_peace(out: Path, peace: Path, rows: int) -> None:
    """Same bytes, every row once, and not a file more: no half-written one, no lease."""
    expected = read_manifest(peace)
    verified = verify(out)
    assert (verified.digest, verified.rows) == (expected.digest, rows)
    assert read_manifest(out).shards == expected.shards
    assert len(set(pq.read_table(out / "shards", columns=["key"])["key"].to_pylist())) == rows
    assert names(out) == names(peace)


@pytest.mark.usefixtures("ray_session")
def test_a_killed_driver_or_worker_costs_nothing(drivers, tmp_path):
    """The driver: amid shards, between a shard and its receipt, between the last receipt and the manifest."""
    sources, out = draw(tmp_path / "in", 24, 64), tmp_path / "out"
    settings = {"size": 64, "variants": 4, "shard_rows": 4, "workers": 2}
    synthesize(config(sources, tmp_path / "peace", **settings))
    command, moments = words(sources, out, **settings), random.Random(4)

    driver, some = drivers.start(command), moments.randint(1, 5)
    drivers.wait_for(lambda: receipts(out) >= some, driver)
    kill(driver)
    with drivers.held(command, "part-00017.json") as driver:
        kill(driver)
    assert (out / "shards" / "part-00017.parquet").exists()
    assert not (out / ".receipts" / "part-00017.json").exists()
    with drivers.held(command, "manifest.json", first=lambda: kill(drivers.processes("ray::Map")[0])) as driver:
        kill(driver)
    assert receipts(out) == 24
    assert not (out / "manifest.json").exists()
    synthesize(config(sources, out, **settings))
    assert_as_in_peace(out, tmp_path / "peace", 96)


@pytest.mark.full
@pytest.mark.usefixtures("ray_session")
def test_a_stopped_driver_is_taken_over_and_writes_nothing_when_it_goes_on(drivers, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE", 4.0)  # more than its beats are apart
    sources, out = draw(tmp_path / "in", 12, 64), tmp_path / "out"
    settings = {"size": 64, "variants": 5, "shard_rows": 5}
    with drivers.held(words(sources, out, **settings, workers=1), "part-00003.json") as driver:
        busy = rf"out: another job writes to it \(process {driver.pid} on .*\); wait for it"
        with pytest.raises(UserError, match=busy):
            synthesize(config(sources, out, **settings))
        driver.send_signal(signal.SIGSTOP)
        digest = synthesize(config(sources, out, **settings)).digest
        before = state(out)
    driver.send_signal(signal.SIGCONT)
    assert driver.wait(60) == 1
    assert (
        "out: another job has taken this output over; this one stops without writing to it" in drivers.log.read_text()
    )
    assert state(out) == before
    assert digest == verify(out).digest == synthesize(config(sources, tmp_path / "peace", **settings)).digest


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's time and bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_worker_whose_job_lost_the_lease_commits_nothing(tmp_path):
    sources, store = draw(tmp_path / "in", 1, 64), Store(tmp_path / "out")
    settings = config(sources, tmp_path / "out", size=64)
    from degradations.recipe import load
    from pipelines.synthesize.ingest import inspect, listed
    from pipelines.synthesize.plan import shards as planned

    spec = settings.spec(load(settings.recipe))
    (picture,) = [inspect(row, spec, Work()) for row in listed(settings.sources, store)]
    (rows,) = planned([picture], spec, settings.sources, None)
    with lease.hold(store) as token:
        job = shards.Job(store, spec, settings.sources, Work(), token)
        assert shards._write(job, 0, rows).shard.rows == 1
        made = state(tmp_path / "out")
    with lease.hold(store), pytest.raises(UserError, match="another job has taken this output over"):
        shards._write(job, 0, rows)
    with pytest.raises(UserError, match="another job has taken this output over"):
        shards._write(job, 1, rows)
    assert {name for name in state(tmp_path / "out") if "part" in name} == {name for name in made if "part" in name}


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_session")
def test_thirty_random_kills_on_two_nodes(drivers, tmp_path, capfd):
    """Workers, the driver, the second node's raylet, at moments spread over the whole run."""
    sources, out = draw(tmp_path / "in", 500, 96), tmp_path / "out"
    settings = {"size": 96, "variants": 8, "shard_rows": 20}
    start = time.monotonic()
    synthesize(config(sources, tmp_path / "peace", **settings))
    peace = time.monotonic() - start
    chance = random.Random(30)
    victims = ["worker"] * 15 + ["driver"] * 10 + ["raylet"] * 5
    chance.shuffle(victims)
    moments = sorted(chance.uniform(0, 195) for _ in victims)  # receipts, of 200
    start = time.monotonic()
    with Nodes(drivers) as nodes:
        command = words(sources, out, "--address", nodes.address, **settings, workers=4)
        driver = drivers.start(command)
        for victim, moment in zip(victims, moments, strict=True):
            drivers.wait_for(lambda moment=moment: receipts(out) >= moment, driver)
            time.sleep(chance.uniform(0, 0.3))
            assert driver.poll() is None, "ended before it could be killed"
            if victim == "worker":
                drivers.wait_for(lambda: bool(drivers.processes("ray::Map")), driver)
                kill(chance.choice(drivers.processes("ray::Map")))
            elif victim == "raylet":
                nodes.replace_second()
            else:
                kill(driver)
                driver = drivers.start(command)
                time.sleep(chance.choice([0, chance.uniform(0, 6)]))  # the next may come as it starts, or hashes
        drivers.wait_for(lambda: receipts(out) >= 196, driver)
        kill(driver)
        drivers.finish(drivers.start(command))
    seconds = time.monotonic() - start
    assert_as_in_peace(out, tmp_path / "peace", 4000)
    with capfd.disabled():
        print(
            f"\n{dict(Counter([*victims, 'driver']))} killed; 4000 rows as in peace; {seconds:.0f} s, not {peace:.0f} s"
        )


class Nodes:
    """A Ray cluster of two nodes on this machine, whose second one can be killed."""

    def __init__(self, drivers: Drivers):
        self.drivers = drivers

    def __enter__(self) -> "Nodes":
        from ray.cluster_utils import Cluster

        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.drivers.env.items():
                patch.setenv(name, value)
            self.size = {"num_cpus": 1, "object_store_memory": 200_000_000}
            self.cluster = Cluster(initialize_head=True, head_node_args=self.size | {"include_dashboard": False})
            self.address = self.cluster.address
            self.second = self.cluster.add_node(**self.size)
        return self

    def replace_second(self) -> None:
        """SIGKILL to the second node's raylet; then another node joins."""
        from ray._private.ray_constants import PROCESS_TYPE_RAYLET

        os.kill(self.second.all_processes[PROCESS_TYPE_RAYLET][0].process.pid, signal.SIGKILL)
        self.cluster.remove_node(self.second, allow_graceful=False)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.drivers.env.items():
                patch.setenv(name, value)
            self.second = self.cluster.add_node(**self.size)

    def __exit__(self, *_) -> None:
        self.cluster.shutdown()
