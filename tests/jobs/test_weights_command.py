"""osdface weights list | check | add."""

import json

import pytest
import torch

from jobs import console
from jobs.cli import app
from osdface import weights


@pytest.fixture
def bare(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return home / "weights"


def run(capsys, *words: str) -> tuple[int, dict]:
    code = console.run(app, ["weights", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_list_tells_all_there_is_to_know_and_hashes_nothing(bare, capsys):
    code, result = run(capsys, "list")
    assert code == 0
    told = {entry["name"]: entry for entry in result["weights"]}
    assert set(told) == set(weights.WEIGHTS)
    assert {entry["digest"] for entry in told.values()} == {"not checked"}
    assert told["arcface_r50"]["switches_off"] == "the identity loss (eq. 13) by insightface's ArcFace"
    assert told["arcface_r50"]["commercial"] is False
    assert told["dlib_identity"]["present"]
    assert not bare.exists()


def test_people_see_name_file_licence_and_what_an_absence_switches_off(bare, capsys):
    assert console.run(app, ["weights", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if "DISTS_weights" in line)
    assert "choose dlib's features for that loss" in line
    assert any("CC0" in line and "dlib_identity" in line for line in lines)
    assert any("osdface weights add FILE" in line for line in lines)


def test_add_puts_a_file_where_check_finds_and_reads_it(bare, tmp_path, capsys):
    given = tmp_path / "renamed.dat"
    given.write_bytes(weights.find("dlib_landmarks").read_bytes())
    code, added = run(capsys, "add", str(given))
    assert code == 0
    assert (added["name"], added["known"]) == ("dlib_landmarks", True)
    assert added["path"] == str(bare / weights.WEIGHTS["dlib_landmarks"].file)
    code, result = run(capsys, "check")
    assert code == 0
    told = {entry["name"]: entry for entry in result["weights"]}
    assert told["dlib_landmarks"]["path"] == added["path"]
    assert {entry["digest"] for entry in told.values() if entry["present"]} == {"ok"}


def test_a_wrong_file_is_one_sentence_and_exit_1(bare, tmp_path, capsys):
    given = tmp_path / "backbone.pth"
    torch.save({"fc.weight": torch.zeros(2, 2)}, given)
    code, result = run(capsys, "add", str(given))
    assert code == 1
    assert "not arcface_r50's weights" in result["error"]
    code, result = run(capsys, "add", str(given), "--as", "face")
    assert code == 2
    bare.mkdir(parents=True)
    given.rename(bare / "arcface_r50.pth")
    code, result = run(capsys, "check")
    assert code == 1
    assert f"{bare / 'arcface_r50.pth'}: not arcface_r50's weights" in result["error"]
