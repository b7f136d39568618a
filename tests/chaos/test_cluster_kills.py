"""A chain that runs as a job of a real cluster, whose nodes and driver are killed in each of its steps.

Nodes are `ray start` processes, each in a network namespace of its own where this machine allows them: a head without
CPUs and two workers of one, so that no training goes on before a lost node's successor is there.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from jobs.submission import contexts
from jobs.submission.cluster import Cluster
from osdface import bundle
from tests.heads import ROOT, wait
from tests.nodes import TOKEN, Network, Node, Nodes, cluster, mlflow_server, network

pytestmark = pytest.mark.chaos
EVERY = 4  # steps between checkpoints
TRAIN = "--config tiny --data {work}/pairs --set batch_size=4 --set cpus_per_worker=1 --set log_every=1"
RESUMABLE = f"--set checkpoint_every={EVERY} --set max_failures=1"
OSD = f"train osd {TRAIN} --set duration.steps=60 --base {bundle.SHIPPED}/tiny/base --vre {{work}}/vre"
CHAIN = {
    "work": "chain",
    "steps": [
        {"name": "faces", "run": ["faces make {work}/faces --count 24 --size 64 --seed 0"], "makes": ["{work}/faces"]},
        {
            "name": "pairs",
            "needs": ["faces"],
            "run": [
                "data synth {work}/faces --out {work}/pairs --config tiny --set variants=24 --set shard_rows=8 "
                "--set split.val=0.1 --set split.test=0.1",
                "data verify {work}/pairs --replay 4",
            ],
            "makes": ["{work}/pairs"],
        },
        {
            "name": "vre",
            "needs": ["pairs"],
            "run": [
                f"train vre {TRAIN} {RESUMABLE} --set hq.steps=16 --set lq.steps=8 --set association.steps=8 "
                "--out {work}/vre"
            ],
            "makes": ["{work}/vre"],
        },
        {
            "name": "osd",
            "needs": ["vre"],
            "run": [f"{OSD} {RESUMABLE} --out {{work}}/model"],
            "makes": ["{work}/model"],
        },
        {
            "name": "evaluate",
            "needs": ["osd"],
            "run": ["evaluate --model {work}/model --data {work}/pairs --out {work}/evaluation"],
            "makes": ["{work}/evaluation"],
        },
        {
            "name": "register",
            "needs": ["evaluate"],
            "run": ["models register {work}/model --metrics {work}/evaluation/metrics.json"],
        },
        {"name": "promote", "needs": ["register"], "run": ["models promote {register[version]} --gates sound"]},
    ],
}
STEPS = [step["name"] for step in CHAIN["steps"]]
NOTHING = (False, 0, 0)  # of a training
MADE = {"pairs": "{1} shards", "vre": "phase {1}, step {2}", "osd": "phase {1}, step {2}"}


class Chain:
    """A run of the chain: where it works, and what it has come to."""

    def __init__(self, home: Path):
        self.home, self.work = home, home / CHAIN["work"]

    def done(self, step: str) -> bool:
        path = self.work / "steps" / f"{step}.json"
        return path.exists() and json.loads(path.read_text())["done"]

    def progress(self, step: str) -> tuple:
        """How far a step is, as something that grows: shards with their receipts, or a whole checkpoint's place."""
        if step == "pairs":
            return self.done(step), len(list(self.work.glob("pairs/.receipts/part-*.json")))
        notes = [json.loads(path.read_text()) for path in self.home.glob(f"runs/{step}-*/checkpoint_*/state.json")]
        return self.done(step), *max(((note["phase"], note["step"]) for note in notes), default=(0, 0))

    def finished(self) -> dict[Path, int]:
        """What has been finished, and when: receipts of steps, shards with theirs, outputs of trainings."""
        files = [self.work / "steps" / f"{step}.json" for step in STEPS if self.done(step)]
        for receipt in self.work.glob("pairs/.receipts/part-*.json"):
            files += [receipt, self.work / "pairs" / "shards" / f"{receipt.stem}.parquet"]
        files += [*self.work.glob("vre/*"), *self.work.glob("model/*")]
        return {file: file.stat().st_mtime_ns for file in files if file.is_file()}

    def weights(self) -> dict[str, Any]:
        parts = [self.work / "model" / name for name in (bundle.LORA, bundle.ADAPTER, bundle.VRE)]
        return {f"{part.name}/{name}": tensor for part in parts for name, tensor in load_file(part).items()}

    def digest(self) -> str:
        return json.loads((self.work / "pairs" / "manifest.json").read_text())["digest"]


class Row(NamedTuple):
    """A line of the record. kept: what was whole at the loss. seconds: from there until more was."""

    lost: str
    step: str
    kept: str
    seconds: float


def osdface(words: list[str], env: dict[str, str]) -> dict:
    at = words.index("--") if "--" in words else len(words)
    command = [sys.executable, "-m", "jobs.cli", *words[:at], "--json", *words[at:]]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working directory with the chain."""
    made = tmp_path_factory.mktemp("work")
    (made / "chain.yaml").write_text(yaml.safe_dump(CHAIN))
    return made


@pytest.fixture(scope="module")
def in_peace(folder, tmp_path_factory) -> Chain:
    """The chain without a cluster, undisturbed."""
    home = tmp_path_factory.mktemp("peace")
    env = os.environ | {"OSDFACE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    env.pop("MLFLOW_TRACKING_URI", None)
    osdface(["run", str(folder / "chain.yaml")], env)
    return Chain(home)


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as made:
        yield made


class Jobs:
    """The chain as a job, submitted from a home that knows the cluster."""

    def __init__(self, nodes: Nodes, chain: Chain, folder: Path, tmp_path: Path):
        self.nodes, self.folder, self.chain = nodes, folder, chain
        own = tmp_path / "own"
        own.mkdir(exist_ok=True)
        lab = {"address": nodes.dashboard, "token_env": "LAB", "env": {"OSDFACE_HOME": str(chain.home)}}
        (own / contexts.FILE).write_text(yaml.safe_dump({"clusters": {"lab": lab}, "default": "lab"}))
        self.env = os.environ | {"OSDFACE_HOME": str(own), "PYTHONPATH": str(ROOT)}
        self.cluster = Cluster(contexts.Context(address=nodes.dashboard, token_env="LAB"))

    def submit(self, command: str = "run", arguments: str = "chain.yaml") -> None:
        self.name = "chaos"
        more = ["--name", self.name, "--working-dir", str(self.folder), "--", *arguments.split()]
        osdface(["jobs", "submit", command, *more], self.env)

    def retry(self) -> None:
        """Once the job has ended."""
        assert self.cluster.ended(self.name).status != "SUCCEEDED"
        more = ["--working-dir", str(self.folder)]
        self.name = osdface(["jobs", "retry", self.name, *more], self.env)["name"]

    def until(self, due: Callable[[], object], seconds: float = 400) -> float:
        """Wait until it holds, while the job runs; returns how long it took."""
        begun = time.monotonic()

        def holds() -> object:
            if due():
                return True
            job = self.cluster.job(self.name)
            assert not job.status.is_terminal(), f"{job.status}: {self.cluster.logs(self.name)[-3000:]}"
            return False

        wait(holds, seconds)
        return time.monotonic() - begun

    def succeeds(self) -> None:
        job = self.cluster.ended(self.name)
        assert job.status == "SUCCEEDED", self.cluster.logs(self.name)[-3000:]


@pytest.fixture(autouse=True)
def _token(monkeypatch):
    monkeypatch.setenv("LAB", TOKEN)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # set by what is tested; undone here


@pytest.fixture
def chain(tmp_path) -> Chain:
    """One that is to be disturbed."""
    return Chain(tmp_path / "home")


@pytest.fixture
def server(net, tmp_path) -> Iterator[str]:
    """Where runs are recorded: not on a node."""
    with mlflow_server(net, tmp_path) as uri:
        yield uri


def test_a_chain_whose_nodes_and_driver_are_killed(folder, in_peace, net, chain, server, tmp_path, capsys):
    rows: list[Row] = []
    finished: dict[Path, int] = {}
    with cluster(net, {"MLFLOW_TRACKING_URI": server}) as nodes:
        jobs = Jobs(nodes, chain, folder, tmp_path)

        def lose(what: str, step: str, kill: Callable[[], None], then: Callable[[], None]) -> None:
            before = chain.progress(step)
            kill()
            begun = time.monotonic()
            finished.update(chain.finished())
            assert not chain.done(step), "it was lost too late"
            then()
            jobs.until(lambda: chain.progress(step) > before)
            rows.append(Row(what, step, MADE[step].format(*before), time.monotonic() - begun))

        jobs.submit()
        jobs.until(lambda: chain.progress("pairs") >= (False, 6))
        lose("worker node", "pairs", nodes.workers[0].kill, partial(nodes.replace, 0))
        jobs.until(lambda: chain.progress("vre") > NOTHING)
        lose("worker node", "vre", nodes.workers[1].kill, partial(nodes.replace, 1))
        jobs.until(lambda: chain.progress("osd") > NOTHING)
        lose("driver", "osd", partial(kill_driver, nodes.head), jobs.retry)
        lose("worker node", "osd", nodes.workers[0].kill, partial(nodes.replace, 0))
        jobs.succeeds()
    again = {stage: twice(server, stage) for stage in ("vre", "osd")}
    report(capsys, net, rows, again)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert_as_in_peace(chain, in_peace)
    # A loss costs the steps since the last checkpoint, and that of the next one which was not whole yet.
    assert again["vre"] <= 2 * EVERY
    assert again["osd"] <= 2 * 2 * EVERY


def test_a_lost_head_loses_its_jobs_and_nothing_that_was_finished(folder, in_peace, net, chain, server, tmp_path):
    with cluster(net, {"MLFLOW_TRACKING_URI": server}) as nodes:
        jobs = Jobs(nodes, chain, folder, tmp_path)
        jobs.submit()
        jobs.until(lambda: chain.progress("vre") > NOTHING)
        nodes.head.kill()
        finished = chain.finished()
        for worker in nodes.workers:  # by themselves, since nobody is there who could tell them what to do
            wait(lambda worker=worker: not worker.processes(), 300)
        reached = chain.progress("vre")
    with cluster(net, {"MLFLOW_TRACKING_URI": server}) as nodes:
        jobs = Jobs(nodes, chain, folder, tmp_path)
        assert jobs.cluster.jobs() == {}
        jobs.submit()
        jobs.succeeds()
    assert not reached[0]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert twice(server, "vre") <= 2 * EVERY
    assert_as_in_peace(chain, in_peace)


def test_notice_of_a_nodes_or_a_jobs_end_saves_the_steps_since_the_last_checkpoint(
    folder, in_peace, net, chain, server, tmp_path, capsys
):
    """There is none but what the notice is answered with."""
    with cluster(net, {"MLFLOW_TRACKING_URI": server}) as nodes:
        jobs = Jobs(nodes, chain, folder, tmp_path)
        words = OSD.removeprefix("train osd ").format(work=in_peace.work)
        jobs.submit("train-osd", f"{words} --set checkpoint_every=1000 --out {chain.work}/model")
        jobs.until(lambda: trained(server, "osd"))
        assert osdface(["jobs", "stop", jobs.name], jobs.env)["status"] == "STOPPED"
        stopped = chain.progress("osd")
        assert stopped > NOTHING
        assert max(trained(server, "osd")["osd"]) == stopped[2] - 1
        jobs.retry()
        jobs.until(lambda: max(trained(server, "osd")["osd"]) >= stopped[2])
        lost = nodes.workers[1]
        nodes.drain(lost, 600)
        nodes.replace(1)
        jobs.until(lambda: chain.progress("osd") > stopped)
        drained = chain.progress("osd")
        nodes.drain(lost, 1)  # sooner than it was said at first, since who knows how fast this machine trains
        time.sleep(2)
        lost.kill()
        jobs.succeeds()
    steps = trained(server, "osd")["osd"]
    again = sorted(step for step, times in steps.items() if times > 1)
    with capsys.disabled():
        print(f"\nstopped at step {stopped[2]}, drained at step {drained[2]}; trained twice: {again or 'nothing'}")
    assert sorted(steps) == list(range(60))
    assert min(again, default=drained[2]) >= drained[2]
    assert_same_weights(chain, in_peace)


def kill_driver(head: Node) -> None:
    for process in head.processes("-m jobs.cli run"):  # and the shell that Ray starts it with
        process.kill()


def trained(server: str, stage: str) -> dict[str, Counter]:
    """How often each step of a stage was trained, by phase: every step records itself."""
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(f"osdface/{stage}")
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    counts = {}
    for run in found:  # one, since what is killed goes on with its own
        for name in run.data.metrics:
            phase, _, rest = name.partition("/")
            if rest == "pictures_per_second":
                counts[phase] = Counter(one.step for one in client.get_metric_history(run.info.run_id, name))
    assert len(found) <= 1
    return counts


def twice(server: str, stage: str) -> int:
    """How many steps of a stage were trained again."""
    return sum(counts.total() - len(counts) for counts in trained(server, stage).values())


def assert_as_in_peace(chain: Chain, peace: Chain) -> None:
    assert chain.digest() == peace.digest()
    assert_same_weights(chain, peace)


def assert_same_weights(chain: Chain, peace: Chain) -> None:
    expected, weights = peace.weights(), chain.weights()
    assert weights.keys() == expected.keys()
    assert max(float((tensor - weights[name]).abs().max()) for name, tensor in expected.items()) < 1e-6


def report(capsys, net: Network, rows: list[Row], again: dict[str, int]) -> None:
    where = "loopback" if net.host == "127.0.0.1" else "network namespaces"
    with capsys.disabled():
        print(f"\n\nhead and 2 worker nodes, {where}\n\n| lost | in step | whole then | s until more was |")
        print("| --- | --- | --- | --- |")
        for row in rows:
            print(f"| {row.lost} | {row.step} | {row.kept} | {row.seconds:.0f} |")
        print(f"\nsteps trained twice: {again}")
