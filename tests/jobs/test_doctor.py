"""osdface doctor, on a machine with nothing but what is installed."""

import json

import pytest
import torch

from jobs import console
from jobs.cli import app
from osdface.weights import WEIGHTS

INSTALLED = {
    "dlib_identity",
    "dlib_landmarks",
    "dlib_mmod",
    "lpips_vgg",
    "lpips_alex",
    "niqe",
}  # with packages of the lock file


@pytest.fixture
def bare(home, tmp_path, monkeypatch):
    """A home folder, caches and $OSDFACE_HOME with nothing in them."""
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return home


def doctor(capsys) -> dict:
    assert console.run(app, ["doctor", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_weight_file_is_told_with_all_there_is_to_know(bare, tmp_path, capsys):
    result = doctor(capsys)
    told = {entry["name"]: entry for entry in result["weights"]}
    assert set(told) == set(WEIGHTS)
    for name in INSTALLED:
        assert told[name]["present"]
        assert told[name]["digest"] == "ok"
        assert told[name]["path"].endswith(WEIGHTS[name].package)
    for name in set(WEIGHTS) - INSTALLED:
        entry, wanted = told[name], WEIGHTS[name]
        assert not entry["present"]
        assert entry["path"] is None
        assert entry["file"] == wanted.file
        assert entry["expected"] == wanted.sha256
        assert entry["switches_off"] == wanted.enables
        assert entry["otherwise"] == wanted.otherwise
        assert entry["looked_in"][0] == str(bare / "weights")
        assert str(tmp_path / "nobody/.insightface/models/buffalo_l") in entry["looked_in"]


def test_machine_and_packages_are_told_and_nothing_is_made(bare, tmp_path, capsys):
    result = doctor(capsys)
    assert result["cpus"] >= 1
    assert result["memory_gib"] > 0
    assert result["disk_free_gib"] > 0
    assert len(result["gpus"]) == torch.cuda.device_count()
    assert result["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert result["home"] == str(bare)
    assert not bare.exists()
    assert not (tmp_path / "nobody").exists()


def test_people_see_what_is_missing_where_to_put_it_and_what_to_do(bare, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    other = bare / "weights" / WEIGHTS["vgg19"].file
    other.parent.mkdir(parents=True)
    other.write_bytes(b"not VGG19")
    assert console.run(app, ["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = {name: next(line for line in lines if entry.file in line) for name, entry in WEIGHTS.items()}
    assert "another file" in line["vgg19"]
    assert str(other) in line["vgg19"]
    for part in ("f5e65c96", "EA-DISTS", "choose dlib's features"):
        assert part in line["dists"]
    assert "no digest published" in line["lmd"]
    assert f"  {bare / 'weights'}" in lines
    assert any("Without c++ and ninja DeepSpeed cannot compile its op" in line for line in lines)
    assert len(lines) < 60
