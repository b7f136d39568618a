"""Nothing half-written is ever seen under its name."""

import hashlib
import json
from pathlib import Path

import pytest

from osdface.files import aside, replace_folder, sha256, write, write_json


def test_write_makes_the_folder_and_leaves_the_file_alone_in_it(tmp_path):
    for data, stored in (("words é", "words é".encode()), (b"\x00bytes", b"\x00bytes")):
        write(tmp_path / "new" / "file", data)
        assert (tmp_path / "new" / "file").read_bytes() == stored
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write(tmp_path / "file", "old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_name_aside_is_hidden_and_beside():
    assert aside(Path("/a/b.json")).parent == Path("/a")
    assert aside(Path("/a/b.json")).name.startswith(".b.json.")


def test_write_json_reads_back(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, None], "path": Path("/x")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"é": [1, None], "path": "/x"}


@pytest.mark.parametrize("old", [True, False])
def test_replace_folder_puts_the_new_one_whole_in_place(tmp_path, old):
    if old:
        write(tmp_path / "at" / "folder" / "old", "old")
    write(tmp_path / "temporary" / "new", "new")
    replace_folder(tmp_path / "temporary", tmp_path / "at" / "folder")
    assert [path.name for path in (tmp_path / "at" / "folder").iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "at").iterdir()] == ["folder"]
    assert not (tmp_path / "temporary").exists()


def test_sha256_is_of_the_bytes(tmp_path):
    write(tmp_path / "a", b"x" * 1_000_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"x" * 1_000_000).hexdigest()
