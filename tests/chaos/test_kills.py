"""Chains and endpoints that are killed: run again, they come to the same end."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from safetensors.torch import load_file

from jobs import configs
from osdface import bundle

pytestmark = pytest.mark.chaos
OSDFACE = [sys.executable, "-m", "jobs.cli"]
SHORT = {
    "faces make": "--count 40",
    "data synth": "--set shard_rows=16 --set split.test=0.25",
    "train base": "--set batch_size=4 --set vae.steps=6 --set unet.steps=6 --set checkpoint_every=2",
    "train vre": "--set batch_size=4 --set hq.steps=6 --set lq.steps=4 --set association.steps=4",
    "train osd": "--set batch_size=4 --set duration.steps=12 --set checkpoint_every=2",
}


def home(folder: Path) -> dict[str, str]:
    env = os.environ | {"OSDFACE_HOME": str(folder)}
    env.pop("MLFLOW_TRACKING_URI", None)
    return env


def run(words: list[str], env: dict[str, str]) -> dict:
    done = subprocess.run([*OSDFACE, *words, "--json"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def kill_when(words: list[str], env: dict[str, str], due: Callable[[], bool]) -> None:
    """Start a command; once `due`, SIGKILL it and all below it."""
    log = Path(env["OSDFACE_HOME"]) / "killed.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as lines:
        process = subprocess.Popen([*OSDFACE, *words], env=env, stdout=lines, stderr=lines, start_new_session=True)
        while not due():
            assert process.poll() is None, f"ended before it could be killed: {log.read_text()[-3000:]}"
            time.sleep(0.02)
        for victim in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            victim.kill()
        process.wait(600)


@pytest.fixture(scope="module")
def in_peace(tmp_path_factory) -> Path:
    """The chain without its endpoint, run undisturbed."""
    folder = tmp_path_factory.mktemp("peace")
    run(["run", str(chain(folder))], home(folder))
    return folder / "demo"


def chain(folder: Path) -> Path:
    """The shipped chain, short, without the endpoint."""
    shipped = yaml.safe_load((configs.FOLDER / "tiny" / "demo.yaml").read_text())
    shipped["steps"] = [step for step in shipped["steps"] if step["name"] != "serve"]
    for step in shipped["steps"]:
        step["run"] = [
            f"{line} {SHORT.get(' '.join(line.split()[:2]), '')}".replace(" --require psnr", "") for line in step["run"]
        ]
    path = folder / "chain.yaml"
    path.write_text(yaml.safe_dump(shipped))
    return path


def weights(model: Path) -> dict:
    return load_file(model / bundle.LORA) | load_file(model / bundle.ADAPTER) | load_file(model / bundle.VRE)


def assert_same_weights(one: Path, other: Path) -> None:
    expected = weights(other)
    for name, tensor in weights(one).items():
        assert (tensor - expected[name]).abs().max() < 1e-6, name


def test_a_chain_killed_at_any_moment_comes_to_the_same_end(in_peace, tmp_path):
    """Killed once in every step, a random moment into it; each try keeps what the ones before it finished."""
    env, path = home(tmp_path / "home"), chain(tmp_path)
    steps = tmp_path / "home" / "demo" / "steps"
    moments = random.Random(0)
    for step in ("faces", "pairs", "base", "vre", "osd"):
        started = []

        def due(step: str = step, started: list[float] = started, wait: float = moments.uniform(0.1, 12)) -> bool:
            receipt = steps / f"{step}.json"
            if receipt.exists() and not started:
                started.append(time.monotonic())
            return bool(started) and time.monotonic() - started[0] > wait

        if not done(steps / f"{step}.json"):
            kill_when(["run", str(path)], env, due)
    run(["run", str(path)], env)
    ours = tmp_path / "home" / "demo"
    digests = [json.loads((folder / "pairs" / "manifest.json").read_text())["digest"] for folder in (ours, in_peace)]
    assert digests[0] == digests[1]
    bundle.verify(ours / "model")
    assert_same_weights(ours / "model", in_peace / "model")
    assert len(run(["models", "list"], env)["versions"]) == 1


def done(receipt: Path) -> bool:
    return receipt.exists() and json.loads(receipt.read_text())["done"]


def test_an_endpoint_replaces_a_killed_replica(in_peace, tmp_path):
    env = home(tmp_path / "home")
    picture = next((in_peace / "faces").glob("*.png")).read_bytes()
    endpoint = run(["serve", "up", "--model", str(in_peace / "model"), "--port", "18765", "--detach"], env)
    try:

        def ask() -> int:
            return httpx.post(f"{endpoint['url']}/v1/restore?faces=aligned", content=picture, timeout=60).status_code

        assert ask() == 200
        below = psutil.Process(endpoint["pid"]).children(recursive=True)
        next(child for child in below if "ServeReplica:osdface:Replica" in " ".join(child.cmdline())).kill()
        seen, deadline = set(), time.monotonic() + 120
        while (status := ask()) != 200 and time.monotonic() < deadline:
            seen.add(status)
            time.sleep(0.5)
        assert status == 200
        assert seen <= {503}
    finally:
        run(["serve", "down"], env)
