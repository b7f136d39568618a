"""The requests that README and docs show are sent, by curl."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests import documents

NAMES = ("party.jpg", "one.jpg", "two.jpg", "large.tiff")  # what the lines send


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl on PATH: apt-get install curl")
def test_every_request_is_answered(endpoint, t1, tmp_path):
    for name in NAMES:
        Image.fromarray(t1[::4, ::4] if name == "party.jpg" else t1[:64, :64]).save(tmp_path / name)
    lines = documents.commands("curl")
    assert len(lines) > 8
    job = ""
    for command in lines:
        url = str(endpoint.base_url).rstrip("/")
        words = [word.replace("http://127.0.0.1:8000", url).replace("/ID", f"/{job}") for word in command.words]
        if words[1].endswith("/result"):
            wait(endpoint, job)
        done = subprocess.run([*words, "-sS", "--fail-with-body"], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, (command.line, done.stdout, done.stderr)
        if words[-1].endswith("/v1/jobs"):
            job = json.loads(done.stdout)["id"]
        if "-o" in words:
            check(tmp_path / words[words.index("-o") + 1])


def wait(endpoint: httpx.Client, job: str) -> None:
    """Until a job is done."""
    deadline = time.monotonic() + 60
    while endpoint.get(f"/v1/jobs/{job}").json()["status"] != "done":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def check(answer: Path) -> None:
    """What its name says it is."""
    if answer.suffix == ".json":
        assert [one["status"] for one in json.loads(answer.read_text())["pictures"]] == [200, 200]
        return
    with Image.open(answer) as picture:
        assert picture.format == {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[answer.suffix]
        assert np.ptp(np.asarray(picture)) > 0
    answer.unlink()
