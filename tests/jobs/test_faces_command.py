"""osdface faces, and its bad input."""

import json

import pytest
from PIL import Image

from jobs import console
from jobs.cli import app


def faces(capsys, *words: str) -> tuple[int, dict]:
    code = console.run(app, ["faces", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_make_draws_what_it_tells(tmp_path, capsys):
    out = tmp_path / "faces"
    code, result = faces(capsys, "make", str(out), "--count", "2", "--size", "32", "--seed", "5", "--workers", "1")
    assert code == 0
    assert (result["count"], result["size"], result["seed"]) == (2, 32, 5)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [5, 6]
    assert {Image.open(out / line["file_name"]).size for line in lines} == {(32, 32)}


def test_photographs_are_the_two_of_installed_packages(tmp_path, capsys):
    code, result = faces(capsys, "photographs", str(tmp_path / "photographs"))
    assert code == 0
    assert {name: Image.open(path).size for name, path in result.items()} == {
        "t1": (1280, 886),
        "astronaut": (512, 512),
    }


@pytest.mark.parametrize("command", ["make", "photographs"])
def test_an_output_that_cannot_be_written_is_named(command, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, result = faces(capsys, command, str(tmp_path / "file" / "out"))
    assert code == 1
    assert str(tmp_path / "file" / "out") in result["error"]
