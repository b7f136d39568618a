"""osdface run: a chain through the command line itself."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import configs, console
from jobs.chain import Chain
from jobs.cli import app
from osdface.config import load

CHAIN = """
work: w
steps:
  - name: faces
    run: ["faces make {work}/faces --count 2 --size 32 --workers 1"]
    makes: ["{work}/faces/metadata.jsonl"]
  - name: broken
    needs: [faces]
    run: ["faces make {work}/faces --count 3 --size 32 --workers 1"]
    after: ["faces photographs {work}/photographs"]
summary: ["{faces[count]} faces in {work}/faces"]
"""


def run(file: Path, capfd) -> tuple[int, dict, str]:
    code = console.run(app, ["run", str(file), "--json"])
    out, err = capfd.readouterr()
    return code, json.loads(out), err


def test_a_chain_of_real_commands(tmp_path, mlflow_home, capfd):
    file = tmp_path / "chain.yaml"
    file.write_text(CHAIN)
    code, result, err = run(file, capfd)
    assert code == 1
    assert result["error"].startswith("step 'broken': ")
    assert "holds other procedural faces" in result["error"]
    assert (mlflow_home / "w" / "photographs" / "t1.png").exists(), "`after` ran"
    assert f"$ osdface faces make {mlflow_home}/w/faces --count 2" in err

    file.write_text(CHAIN.replace("--count 3", "--count 2"))
    code, result, err = run(file, capfd)
    assert code == 0
    assert "faces: done before" in err
    assert f"2 faces in {mlflow_home}/w/faces" in err
    assert result["steps"]["faces"]["count"] == 2
    assert set(result["seconds"]) == {"faces", "broken"}


def test_a_wrong_command_in_a_chain_is_wrong_use_and_names_the_step(tmp_path, mlflow_home, capfd):
    file = tmp_path / "chain.yaml"
    file.write_text("{work: w, steps: [{name: draw, run: ['faces mak x']}]}")
    code, result, _ = run(file, capfd)
    assert code == 2
    assert result["error"].startswith("step 'draw': No such command 'mak'")
    code, result, _ = run(tmp_path / "gone.yaml", capfd)
    assert code == 2
    assert "gone.yaml: cannot read" in result["error"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_chain_ends_what_it_began(sent, tmp_path, mlflow_home):
    file = tmp_path / "chain.yaml"
    words = [Path(sys.executable).parent / "osdface", "run", file, "--json"]
    file.write_text(
        "{work: w, steps: [{name: faces, run: ['faces make {work}/faces --count 4000 --size 32 --workers 1'],"
        " after: ['faces make {work}/after --count 1 --size 32 --workers 1']}]}"
    )
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((mlflow_home / "w").glob("faces/*.png")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(sent)
    out, err = process.communicate()
    assert process.returncode == 130
    assert json.loads(out) == {"error": "stopped; the same command again continues"}
    assert "Traceback" not in err
    assert (mlflow_home / "w" / "after" / "metadata.jsonl").exists()
    assert not (mlflow_home / "w" / "faces" / "metadata.jsonl").exists()
    assert json.loads((mlflow_home / "w" / "steps" / "faces.json").read_text())["done"] is False


def test_the_shipped_demo_is_a_sound_chain():
    chain = load(Chain, configs.FOLDER / "tiny" / "demo.yaml")
    first = chain.steps[0]
    assert [line.split()[0] for line in first.run] == ["faces", "restore"]
    assert "--model tiny" in first.run[1]  # a picture by the bundle that ships, before anything is trained
    words = [line.split()[:2] for step in chain.steps for line in (*step.run, *step.after)]
    for expected in ("faces make", "data synth", "data verify", "data preview", "train base", "train vre", "train osd",
                     "models register", "models promote", "serve up", "serve down"):  # fmt: skip
        assert expected.split() in words
