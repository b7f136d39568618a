"""The table of third-party weight files: finding them, saying what is missing, comparing digests."""

import sys
from pathlib import Path

import pytest
import torch

from osdface import weights
from osdface.errors import MissingWeights


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine with no weights but those of installed packages."""
    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path


def test_dlibs_files_come_with_the_package_which_is_not_imported(bare):
    for name in ("dlib_identity", "dlib_landmarks", "dlib_mmod"):
        assert weights.find(name).parent.parent.name == "face_recognition_models"
    assert "face_recognition_models" not in sys.modules


def test_every_place_is_looked_in_and_ours_comes_first(bare):
    file = weights.WEIGHTS["vgg19"].file
    expected = ["home/weights", "hub/checkpoints", "hub/pyiqa", ".insightface/models/buffalo_l"]
    for place in reversed(expected):
        path = bare / place / file
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        assert weights.find("vgg19") == path


def test_a_missing_file_is_named_with_places_and_remedy(bare):
    with pytest.raises(MissingWeights) as caught:
        weights.find("dists")
    message = str(caught.value)
    for part in ("DISTS_weights-f5e65c96.pth", str(bare / "home/weights"), str(bare / "hub/pyiqa"), "dlib's features"):
        assert part in message
    assert "\n" not in message


def test_a_package_that_is_not_installed_is_a_missing_file(bare, monkeypatch):
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingWeights, match="install face-recognition-models"):
        weights.find("dlib_landmarks")


def test_status_hashes_only_when_asked(bare, monkeypatch):
    ours = bare / "home/weights"
    ours.mkdir(parents=True)
    for name in ("dlib_mmod", "vgg19", "lmd"):
        Path(ours, weights.WEIGHTS[name].file).write_bytes(b"something else")
    digests = {status.name: status.digest for status in weights.status(check=True)}
    assert digests["dlib_identity"] == digests["dlib_landmarks"] == "ok"
    assert digests["dlib_mmod"] == digests["vgg19"] == "mismatch"
    assert digests["lmd"] == "unknown"
    assert digests["dists"] == "not checked"
    absent = next(status for status in weights.status() if status.name == "dists")
    assert not absent.present
    assert absent.path is None
    assert "eq. 14" in absent.switches_off
    monkeypatch.delattr(weights, "sha256")
    assert {status.digest for status in weights.status()} == {"not checked"}


def test_the_table_is_sound():
    for name, entry in weights.WEIGHTS.items():
        assert "68_face_landmarks" not in entry.file, "trained on iBUG 300-W: not for commercial use"
        assert entry.licence, name
        assert entry.sha256 is None or (len(entry.sha256) in (8, 64) and int(entry.sha256, 16)), name
