"""Rows that hold both pictures, LQ and a reference, or the key alone: a reader sees the same pairs."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from osdface.config import parse
from osdface.errors import UserError
from pipelines import launch, report
from pipelines.pairs.manifest import read_manifest
from pipelines.pairs.reading import PairDataset
from pipelines.pairs.verify import verify
from pipelines.synthesize.build import synthesize
from pipelines.synthesize.config import Split, SynthConfig, Virtual, Work
from pipelines.synthesize.derive import regenerate, remove
from pipelines.training import TrainConfig

pytestmark = pytest.mark.usefixtures("ray_session")
OPTIONS = {"size": 32, "shard_rows": 5, "variants": 2}


def config(source, out: Path, **changes) -> SynthConfig:
    return SynthConfig(sources=[source], out=out, split=Split(test=0.25), **(OPTIONS | changes))


@pytest.fixture
def faces(draw, tmp_path) -> Path:
    """Eight pictures, larger than the pairs."""
    return draw(tmp_path / "in", range(8), (44, 40))


def equal(first: Path, second: Path) -> bool:
    """Key for key and pixel for pixel."""
    for split in ("train", "test"):
        a, b = PairDataset(first, split), PairDataset(second, split)
        assert len(a) == len(b) > 0
        for x, y in ((a[k], b[k]) for k in range(len(a))):
            if x["key"] != y["key"] or not torch.equal(x["hq"], y["hq"]) or not torch.equal(x["lq"], y["lq"]):
                return False
    return True


@pytest.mark.parametrize("mode", ["reference", "virtual"])
def test_of_lossless_formats_gives_the_same_pairs(faces, tmp_path, mode):
    synthesize(config(faces, tmp_path / "hq"))
    synthesize(config(faces, tmp_path / mode, store=mode))
    assert equal(tmp_path / "hq", tmp_path / mode)
    table = pq.read_table(tmp_path / mode / "shards")
    assert table["hq"].null_count == table.num_rows == 16
    assert table["lq"].null_count == table["trace"].null_count == (16 if mode == "virtual" else 0)
    assert verify(tmp_path / mode, replay=16).replayed == 16


@pytest.mark.parametrize("formats", [("jpeg:80", "jpeg:70"), ("webp", "jpeg:90"), ("jpeg:95", "png")])
def test_virtual_pairs_are_those_that_jpeg_would_store(faces, tmp_path, formats):
    settings = {"hq_format": formats[0], "lq_format": formats[1]}
    synthesize(config(faces, tmp_path / "hq", **settings))
    synthesize(config(faces, tmp_path / "virtual", store="virtual", **settings))
    assert equal(tmp_path / "hq", tmp_path / "virtual")
    synthesize(config(faces, tmp_path / "plain"))
    assert not equal(tmp_path / "hq", tmp_path / "plain")


def test_jpeg_of_the_lq_picture_alone_is_the_same_by_reference(faces, tmp_path):
    for mode in ("hq", "reference"):
        synthesize(config(faces, tmp_path / mode, store=mode, lq_format="jpeg:70"))
    assert equal(tmp_path / "hq", tmp_path / "reference")


@pytest.mark.parametrize("mode", ["reference", "virtual"])
def test_targets_are_read_from_their_sources_too(faces, draw, tmp_path, mode):
    draw(tmp_path / "drawn", range(50, 58), (48, 48))
    (tmp_path / "twins").mkdir()
    for k in range(8):
        shutil.copy(tmp_path / "drawn" / f"{50 + k}.png", tmp_path / "twins" / f"{k}.png")
    source = {"uri": str(faces), "target": str(tmp_path / "twins")}
    synthesize(config(source, tmp_path / "hq"))
    synthesize(config(source, tmp_path / mode, store=mode))
    assert equal(tmp_path / "hq", tmp_path / mode)
    synthesize(config(faces, tmp_path / "plain"))
    assert not equal(tmp_path / "hq", tmp_path / "plain")


@pytest.mark.parametrize("mode", ["reference", "virtual"])
@pytest.mark.parametrize("change", ["changed", "gone"])
def test_a_source_picture_that_changed_or_is_gone_is_named(faces, draw, tmp_path, mode, change):
    synthesize(config(faces, tmp_path / "out", store=mode))
    (faces / "3.png").unlink()
    if change == "changed":
        draw(tmp_path / "other", range(99, 100))
        shutil.copy(tmp_path / "other" / "99.png", faces / "3.png")
    sentence = r"3\.png: gone from the sources, or changed; the dataset holds only references to them"
    with pytest.raises(UserError, match=sentence):
        verify(tmp_path / "out", replay=16)
    data = [PairDataset(tmp_path / "out", split) for split in ("train", "test")]
    with pytest.raises(UserError, match=sentence):
        [part[k] for part in data for k in range(len(part))]


def test_sources_that_are_gone_are_named(faces, tmp_path):
    synthesize(config(faces, tmp_path / "out", store="virtual"))
    faces.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"/in: nothing is there"):
        PairDataset(tmp_path / "out", "train")[0]


@pytest.mark.parametrize("mode", ["reference", "virtual"])
def test_changes_work_without_pictures_too(faces, tmp_path, mode):
    synthesize(config(faces, tmp_path / "out", store=mode))
    hashed = pq.read_table(tmp_path / "out" / "shards")["source_sha256"][0].as_py()
    smaller = remove(tmp_path / "out", [hashed])
    assert smaller.counts.rows == 14
    assert regenerate(tmp_path / "out", tmp_path / "again", {}, Work()).digest == smaller.digest
    assert report.pairs_sheet(tmp_path / "out", 4).shape[2] == 3


class TestInTraining:
    """`data: {mode: virtual, ...}`: an index, kept under the home, and pairs that stored ones would equal."""

    @staticmethod
    def data(source: object, **changes) -> Virtual:
        given = {"mode": "virtual", "sources": [source], "split": {"test": 0.25}} | OPTIONS | changes
        settings = {"preset": "tiny", "data": given, "out": "out", "batch_size": 2}
        config = parse(TrainConfig, settings, "train.yaml")
        assert isinstance(config.data, Virtual)
        return config.data

    def test_is_indexed_once_and_equal_to_stored_pairs(self, faces, tmp_path, home):
        index = launch._indexed(self.data(str(faces)), None, None)
        assert Path(index).parent == home / "virtual"
        made = read_manifest(index)
        assert launch._indexed(self.data(str(faces)), None, None) == index
        assert read_manifest(index) == made
        synthesize(config(faces, tmp_path / "hq"))
        assert equal(tmp_path / "hq", Path(index))
        size = sum(path.stat().st_size for path in (Path(index) / "shards").iterdir())
        assert size < 60_000  # nothing of a picture

    def test_another_seed_has_another_index(self, faces, home):
        places = {launch._indexed(self.data(str(faces), seed=seed), None, None) for seed in (0, 1)}
        assert len(places) == 2

    def test_a_relative_source_is_that_of_the_folder_one_is_in(self, draw, tmp_path, home, monkeypatch):
        places = []
        for k in range(2):
            draw(tmp_path / f"here{k}" / "faces", range(4 * k, 4 * k + 4))
            monkeypatch.chdir(tmp_path / f"here{k}")
            places.append(launch._indexed(self.data("faces"), None, None))
        found = [set(pq.read_table(f"{place}/shards")["source_sha256"].to_pylist()) for place in places]
        assert len(found[0]) == len(found[1]) == 4
        assert found[0].isdisjoint(found[1])

    def test_progress_is_told(self, faces, home):
        told = []
        launch._indexed(self.data(str(faces)), lambda *arguments: told.append(arguments), None)
        assert told[-1] == ("pairs", 16, 16, {"rejects": 0})

    def test_sources_that_changed_are_named_and_how_to_go_on(self, faces, draw, home):
        index = launch._indexed(self.data(str(faces)), None, None)
        draw(faces, range(20, 21))
        with pytest.raises(UserError, match=rf"{index}: was made from other pictures than.*remove it"):
            launch._indexed(self.data(str(faces)), None, None)
        shutil.rmtree(index)
        assert launch._indexed(self.data(str(faces)), None, None) == index
