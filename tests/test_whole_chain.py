"""The shipped chain from end to end in its smallest setting, by the command line; then from an answer to its source."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pyarrow.dataset as ds
import pytest
import yaml
from PIL import Image

from jobs import configs
from osdface import faces

# What is appended to each of the demo's commands: the smallest that still goes through every line of code.
SMALLEST = {
    "faces make": "--count 40",
    "data synth": "--set shard_rows=16 --set split.test=0.25",
    "train base": "--set batch_size=4 --set vae.steps=2 --set unet.steps=2",
    "train vre": "--set batch_size=4 --set hq.steps=2 --set lq.steps=1 --set association.steps=1",
    "train osd": "--set batch_size=4 --set duration.steps=2",
}


def smallest_chain(port: int) -> dict:
    """The shipped demo with short trainings, its endpoint left running, and no demand on the result."""
    chain = yaml.safe_load((configs.FOLDER / "tiny" / "demo.yaml").read_text())
    for step in chain["steps"]:
        step["run"] = [_shortened(line).replace("8765", str(port)) for line in step["run"]]
    chain["steps"][-1]["after"] = []
    return chain


def _shortened(line: str) -> str:
    command = " ".join(line.split()[:2])
    return f"{line} {SMALLEST.get(command, '')}".removesuffix(" --require psnr ").strip()


def osdface(*words: str, env: dict[str, str]) -> dict:
    done = subprocess.run([sys.executable, "-m", "jobs.cli", *words, "--json"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The chain run once: its folder, its environment, its results, the endpoint's port."""
    folder = tmp_path_factory.mktemp("chain")
    env = os.environ | {"OSDFACE_HOME": str(folder / "home")}
    env.pop("MLFLOW_TRACKING_URI", None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "smallest.yaml").write_text(yaml.safe_dump(smallest_chain(port)))
    try:
        yield folder, env, osdface("run", str(folder / "smallest.yaml"), env=env), port
    finally:
        osdface("serve", "down", env=env)


def test_every_step_left_what_it_says(chain):
    folder, env, result, _ = chain
    work = Path(result["work"])
    assert work == folder / "home" / "demo"
    steps = result["steps"]
    assert osdface("data", "verify", str(work / "pairs"), env=env)["digest"] == steps["pairs"]["digest"]
    metrics = json.loads((work / "evaluation" / "metrics.json").read_text())
    assert metrics["dataset_digest"] == steps["pairs"]["digest"]
    assert set(metrics["metrics"]["psnr"]) == {"lq", "restored", "against"}
    (version,) = osdface("models", "list", env=env)["versions"]
    assert version["aliases"] == ["champion"]
    assert version["runs"] == {stage: steps[stage]["run_id"] for stage in ("base", "vre", "osd")}
    assert version["metrics"]["psnr"] == pytest.approx(metrics["metrics"]["psnr"]["restored"], rel=1e-4)
    for name, photograph in faces.photographs().items():
        height, width = photograph.shape[:2]
        with Image.open(work / f"before_after_{name}.png") as compared:
            assert compared.width > 2 * width
            assert compared.height > height


def test_an_answers_headers_lead_back_to_a_source_picture(chain):
    _, env, result, port = chain
    picture = Path(result["work"]) / "photographs" / "t1.png"
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/restore", content=picture.read_bytes(), timeout=120)
    assert answer.status_code == 200
    assert answer.headers["x-faces"] == "6"
    assert answer.headers["x-model-version"] == "1"

    tree = osdface("models", "lineage", answer.headers["x-run-id"], env=env)["run"]
    assert tree["base"]["run_id"] == result["steps"]["base"]["run_id"]
    assert tree["vre"]["run_id"] == result["steps"]["vre"]["run_id"]
    dataset = tree["dataset"]
    assert dataset["digest"] == answer.headers["x-dataset-digest"] == result["steps"]["pairs"]["digest"]
    row = ds.dataset(Path(dataset["folder"]) / "shards").head(1, columns=["source_uri", "source_sha256"]).to_pylist()[0]
    source = Path(dataset["sources"][0]) / row["source_uri"]
    assert hashlib.sha256(source.read_bytes()).hexdigest() == row["source_sha256"]


def test_a_second_run_skips_everything(chain):
    folder, env, result, _ = chain
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "run", str(folder / "smallest.yaml")],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for step in result["steps"]:
        assert f"-- {step}: done before" in done.stdout
    assert "$ osdface" not in done.stdout
