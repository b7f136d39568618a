"""Pairs from folders: the digest's independence, what is rejected, what is refused, what a kill leaves."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from degradations.degrade import degrade, replay
from jobs import cli, configs, console
from osdface.config import load, parse
from osdface.errors import UsageError, UserError
from osdface.imagefile import read_image
from pipelines.pairs.manifest import read_manifest
from pipelines.pairs.schema import encode
from pipelines.pairs.verify import verify
from pipelines.synthesize.build import synthesize
from pipelines.synthesize.config import Split, SynthConfig

pytestmark = pytest.mark.usefixtures("ray_session")


def draw(path: Path, seed: int, size: tuple[int, int] = (40, 36)) -> None:
    """A smooth colour picture of its own."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC))


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Ten pictures, some in a folder of their own."""
    folder = tmp_path_factory.mktemp("sources")
    for k in range(10):
        draw(folder / ("deep" if k % 3 == 0 else ".") / f"{k}.png", k)
    return folder


def config(sources: Path | list[Path], out: Path, **changes) -> SynthConfig:
    folders = sources if isinstance(sources, list) else [sources]
    settings = {"size": 32, "shard_rows": 4, "split": Split(val=0.2, test=0.3)} | changes
    return SynthConfig(sources=folders, out=out, **settings)


@pytest.fixture(scope="module")
def made(sources, ray_session, tmp_path_factory) -> Path:
    """The dataset of `sources` that others are compared with; not to be changed."""
    out = tmp_path_factory.mktemp("made") / "pairs"
    synthesize(config(sources, out))
    return out


@pytest.fixture
def copied(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copied"))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's time and bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(folder: Path) -> list[dict]:
    return pq.read_table(folder / "shards").to_pylist()


def rejects(folder: Path) -> dict[str, str]:
    return {row["source_uri"]: row["reason"] for row in pq.read_table(folder / "rejects.parquet").to_pylist()}


class TestDigest:
    def test_is_the_same_for_any_number_of_workers(self, made, sources, tmp_path):
        expected = read_manifest(made)
        for workers in (1, 3):
            manifest = synthesize(config(sources, tmp_path / str(workers), workers=workers))
            assert (manifest.digest, manifest.shards) == (expected.digest, expected.shards)

    def test_is_the_same_wherever_the_sources_lie_and_in_any_order(self, made, sources, tmp_path):
        first, second = tmp_path / "z", tmp_path / "a"
        for k, path in enumerate(sorted(sources.rglob("*.png"))):
            target = (first if k % 2 else second) / path.relative_to(sources)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        manifest = synthesize(config([first, second], tmp_path / "one"))
        assert manifest.digest == read_manifest(made).digest
        assert synthesize(config([second, first], tmp_path / "two")).digest == manifest.digest

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": 1},
            {"recipe": "gfpgan"},
            {"size": 24},
            {"lq_format": "jpeg:90"},
            {"split": Split(test=0.3)},
            {"fit": "pad"},
            {"store": "reference"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_differs_for_another_specification(self, made, sources, tmp_path, change):
        assert synthesize(config(sources, tmp_path / "out", **change)).digest != read_manifest(made).digest


class TestRows:
    @pytest.mark.parametrize("hq_format", ["png", "jpeg:90"])
    @pytest.mark.parametrize("lq_format", ["webp", "jpeg:95"])
    def test_replay_from_their_own_columns(self, sources, tmp_path, hq_format, lq_format):
        out = tmp_path / "out"
        manifest = synthesize(config(sources, out, hq_format=hq_format, lq_format=lq_format))
        for row in rows(out):
            hq, lq = read_image(row["hq"]), replay(read_image(row["hq"]), json.loads(row["trace"]))
            assert np.array_equal(read_image(encode(lq, lq_format)), read_image(row["lq"]))
            key = (manifest.spec.seed, row["source_sha256"], row["variant"])
            assert np.array_equal(degrade(hq, manifest.spec.recipe, key).lq, lq)
            formats = [Image.open(io.BytesIO(row[name])).format for name in ("hq", "lq")]
            assert formats == [name.partition(":")[0].upper() for name in (hq_format, lq_format)]
        assert verify(out, replay=100).replayed == 10

    def test_variants_of_a_picture_differ_in_lq_alone_also_across_shards(self, sources, tmp_path):
        manifest = synthesize(config(sources, tmp_path / "out", variants=3, shard_rows=5))
        found = rows(tmp_path / "out")
        assert (manifest.counts.sources, manifest.counts.rows, len({row["key"] for row in found})) == (10, 30, 30)
        for start in range(0, 30, 3):
            group = found[start : start + 3]
            assert [row["variant"] for row in group] == [0, 1, 2]
            assert len({(row["source_sha256"], row["hq"], row["split"]) for row in group}) == 1
            assert len({row["lq"] for row in group}) == 3

    def test_png_keeps_a_square_picture_of_the_right_size_as_it_is(self, tmp_path):
        draw(tmp_path / "in" / "a.png", 1, (32, 32))
        synthesize(config(tmp_path / "in", tmp_path / "out"))
        (row,) = rows(tmp_path / "out")
        assert np.array_equal(read_image(row["hq"]), read_image((tmp_path / "in" / "a.png").read_bytes()))


class TestSplit:
    def test_is_by_hash_and_about_the_asked_shares(self):
        names = [Split(val=0.2, test=0.3).of(str(k)) for k in range(2000)]
        assert [round(names.count(name) / 2000, 1) for name in ("train", "val", "test")] == [0.5, 0.2, 0.3]
        assert names == [Split(val=0.2, test=0.3).of(str(k)) for k in range(2000)]

    def test_a_picture_of_the_test_split_stays_there_when_val_changes(self):
        before, after = Split(test=0.3), Split(val=0.3, test=0.3)
        assert all(after.of(str(k)) == "test" for k in range(500) if before.of(str(k)) == "test")

    def test_keeps_groups_together(self, tmp_path):
        folder = tmp_path / "in"
        for k in range(16):
            draw(folder / f"{k}.png", k)
        lines = [json.dumps({"file_name": f"{k}.png", "group": k // 4}) for k in range(16)]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        synthesize(config(folder, tmp_path / "out", split=Split(val=0.3, test=0.3)))
        found: dict[int, set[str]] = {}
        for row in rows(tmp_path / "out"):
            found.setdefault(int(Path(row["source_uri"]).stem) // 4, set()).add(row["split"])
        assert sorted(found) == [0, 1, 2, 3]
        assert all(len(splits) == 1 for splits in found.values())
        assert len(set.union(*found.values())) > 1

    def test_more_than_everything_is_refused(self):
        with pytest.raises(UsageError, match=r"synth: split: val 0\.6 and test 0\.6 are more than everything"):
            parse(SynthConfig, {"sources": ["a"], "out": "b", "split": {"val": 0.6, "test": 0.6}}, "synth")


@pytest.fixture(scope="module")
def odd(ray_session, tmp_path_factory) -> Path:
    """A dataset of two good pictures, five unusual but readable ones, and everything that is none."""
    folder = tmp_path_factory.mktemp("odd") / "in"
    for k in range(2):
        draw(folder / f"good{k}.png", k)
    shutil.copy(folder / "good0.png", folder / "twin.png")
    picture = Image.open(folder / "good1.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("P").save(folder / "palette.gif")
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40).save(folder / "sixteen.png")
    alpha = picture.copy()
    alpha.putalpha(100)
    alpha.save(folder / "alpha.webp")
    picture.convert("L").save(folder / "grey.tiff")
    picture.save(folder / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    Image.new("RGB", (15, 200)).save(folder / "narrow.png")
    Image.new("1", (300, 300)).save(folder / "large.png")
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("not a picture")
    whole = (folder / "good1.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    (folder / "damaged.png").write_bytes(damaged)
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    (folder / ".hidden.png").write_bytes(b"no picture")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "thumbnail.png").write_bytes(b"no picture")
    (folder / "metadata.jsonl").write_text("")
    out = folder.parent / "out"
    synthesize(config(folder, out, max_pixels=80_000))
    return out


class TestRejects:
    def test_say_why_and_are_never_fatal(self, odd):
        found = rejects(odd)
        reasons = {
            ".cache/thumbnail.png": "is not a picture",
            ".hidden.png": "is not a picture",
            "caf\\xe9.png": "is empty",
            "damaged.png": "is damaged",
            "empty.png": "is empty",
            "large.png": "300x300 is more than 80000 pixels",
            "moving.gif": "is animated",
            "narrow.png": "15x200 pixels are too few (16 at least)",
            "notes.txt": "is not a picture",
            "truncated.png": "is damaged",
            "twin.png": "same bytes as good0.png",
        }
        assert found.keys() == reasons.keys()
        assert {name: reason for name, reason in reasons.items() if not found[name].startswith(reason)} == {}

    def test_are_counted_and_the_others_are_rows(self, odd):
        counts = read_manifest(odd).counts
        assert (counts.sources, counts.rows, counts.rejects) == (7, 7, 11)
        assert {row["source_uri"] for row in rows(odd)} == {
            "good0.png", "good1.png", "cmyk.jpg", "palette.gif", "sixteen.png", "alpha.webp", "grey.tiff",
        }  # fmt: skip
        assert verify(odd).rows == 7

    def test_a_file_whose_name_is_not_utf8_is_used(self, tmp_path):
        draw(tmp_path / "in" / "a.png", 1)
        (tmp_path / "in" / "a.png").rename(tmp_path / "in" / os.fsdecode(b"\xff.png"))
        synthesize(config(tmp_path / "in", tmp_path / "out"))
        assert [row["source_uri"] for row in rows(tmp_path / "out")] == ["\\xff.png"]

    def test_an_output_inside_its_source_is_no_source(self, tmp_path):
        draw(tmp_path / "a.png", 1)
        settings = config(tmp_path, tmp_path / "out")
        assert synthesize(settings).counts.rejects == 0
        (tmp_path / "out" / "manifest.json").unlink()
        assert synthesize(settings).counts.rejects == 0


class TestAgain:
    def test_a_finished_dataset_is_left_as_it_is(self, sources, copied):
        before = state(copied)
        assert synthesize(config(sources, copied, workers=1)) == read_manifest(copied)
        assert state(copied) == before

    def test_an_interrupted_run_keeps_whole_shards_and_gives_the_same_digest(self, made, sources, copied):
        """As a kill leaves it: no manifest, one shard half-written, one replaced but without its receipt."""
        (copied / "manifest.json").unlink()
        first, second, third = sorted((copied / "shards").iterdir())
        (copied / "shards" / f".{second.name}.99999").write_bytes(second.read_bytes()[:1000])
        second.unlink()
        (copied / ".receipts" / f"{third.stem}.json").unlink()
        kept = first.stat().st_mtime_ns, third.stat().st_mtime_ns
        manifest = synthesize(config(sources, copied))
        assert manifest.digest == read_manifest(made).digest
        assert first.stat().st_mtime_ns == kept[0]
        assert third.stat().st_mtime_ns != kept[1]
        assert sorted(path.name for path in (copied / "shards").iterdir()) == [first.name, second.name, third.name]

    def test_a_torn_shard_is_made_again(self, made, sources, copied):
        (copied / "manifest.json").unlink()
        shard = copied / "shards" / "part-00001.parquet"
        shard.write_bytes(shard.read_bytes()[:-100])
        assert synthesize(config(sources, copied)).digest == read_manifest(made).digest
        assert verify(copied).rows == 10

    @pytest.mark.parametrize("lost", ["shards/part-00001.parquet", "rejects.parquet"])
    def test_a_finished_dataset_that_lost_a_file_is_mended(self, sources, copied, lost):
        before = state(copied)
        (copied / lost).unlink()
        manifest = synthesize(config(sources, copied))
        assert (copied / lost).read_bytes() == before[lost][1]
        assert manifest.digest == verify(copied).digest
        assert (copied / "shards" / "part-00000.parquet").stat().st_mtime_ns == before["shards/part-00000.parquet"][0]

    def test_changed_sources_are_refused_for_a_finished_dataset(self, sources, copied, tmp_path):
        more = Path(shutil.copytree(sources, tmp_path / "more"))
        draw(more / "new.png", 77)
        before = state(copied)
        with pytest.raises(UserError, match="copied: was made from other pictures than the sources hold now"):
            synthesize(config(more, copied))
        assert state(copied) == before

    def test_an_unfinished_one_follows_its_sources_and_keeps_no_shard_of_before(self, sources, copied, tmp_path):
        fewer = Path(shutil.copytree(sources, tmp_path / "fewer"))
        for name in ("1.png", "2.png", "4.png"):
            (fewer / name).unlink()
        (copied / "manifest.json").unlink()
        expected = synthesize(config(fewer, tmp_path / "fresh"))
        assert synthesize(config(fewer, copied)).digest == expected.digest
        assert len(rows(copied)) == 7

    def test_sources_that_broke_do_not_cost_what_was_finished(self, made, sources, copied, tmp_path):
        (copied / "manifest.json").unlink()
        before = state(copied)
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.png").touch()
        with pytest.raises(UserError, match="none of its 1 files is a readable picture"):
            synthesize(config(tmp_path / "in", copied))
        assert state(copied) == before
        assert synthesize(config(sources, copied)).digest == read_manifest(made).digest

    def test_a_picture_that_changes_meanwhile_stops_the_run(self, sources, tmp_path):
        folder = Path(shutil.copytree(sources, tmp_path / "in"))

        def change(label: str, done: int, total: int, values: dict) -> None:
            if label == "inspected" and done == total:
                draw(folder / "1.png", 99)

        with pytest.raises(UserError, match=r"1\.png: changed while the dataset was being made; run the same command"):
            synthesize(config(folder, tmp_path / "out"), change)
        with pytest.raises(UserError, match="not a finished dataset"):
            read_manifest(tmp_path / "out")
        expected = synthesize(config(folder, tmp_path / "fresh")).digest
        assert synthesize(config(folder, tmp_path / "out")).digest == expected


class TestRefused:
    def test_an_output_that_holds_another_dataset(self, sources, copied):
        before = state(copied)
        with pytest.raises(UserError, match=r"copied: holds another dataset \(it differs in seed, size\)"):
            synthesize(config(sources, copied, seed=1, size=24))
        (copied / "manifest.json").unlink()  # also where it is unfinished
        with pytest.raises(UserError, match="holds another dataset"):
            synthesize(config(sources, copied, seed=1))
        assert state(copied).items() <= before.items()

    @pytest.mark.parametrize("name", ["thesis.txt", "shards/part-00000.parquet", "manifest.json"])
    def test_an_output_that_holds_foreign_files(self, sources, tmp_path, name):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        before = state(tmp_path)
        with pytest.raises(UserError, match=f"{tmp_path}/out"):
            synthesize(config(sources, tmp_path / "out"))
        assert state(tmp_path) == before

    @pytest.mark.parametrize("name", ["file/out", "file"])
    def test_an_output_that_cannot_be_written(self, sources, tmp_path, name):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(UserError, match=rf"{name}: cannot be (written|read) \(Not a directory\); give another"):
            synthesize(config(sources, tmp_path / name))

    def test_a_shard_that_cannot_be_written(self, sources, tmp_path):
        def block(label: str, done: int, total: int, values: dict) -> None:
            (tmp_path / "out" / "shards" / "part-00000.parquet").mkdir(parents=True, exist_ok=True)

        with pytest.raises(UserError, match=r"part-00000\.parquet: cannot be written \(Is a directory\); make room"):
            synthesize(config(sources, tmp_path / "out"), block)
        assert not list((tmp_path / "out" / "shards").glob(".part-00000*"))

    def test_a_source_that_is_missing(self, tmp_path):
        with pytest.raises(UserError, match="nowhere: nothing is there; give a folder, archive, list or URL"):
            synthesize(config(tmp_path / "nowhere", tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_a_source_that_is_empty(self, sources, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / ".DS_Store").touch()
        with pytest.raises(UserError, match="in: is empty; put pictures in it, or make some with `osdface faces make`"):
            synthesize(config([sources, tmp_path / "in"], tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("data", [b"not a picture", "truncated"])
    def test_sources_without_a_readable_picture(self, sources, tmp_path, data):
        if data == "truncated":  # has a good header, so that only decoding shows it
            data = (sources / "1.png").read_bytes()[:200]
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.png").write_bytes(data)
        with pytest.raises(UserError, match=r"in: none of its 1 files is a readable picture \(a\.png: is "):
            synthesize(config(tmp_path / "in", tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_a_sidecar_that_cannot_be_read(self, tmp_path):
        draw(tmp_path / "in" / "a.png", 1)
        (tmp_path / "in" / "metadata.jsonl").write_text('{"group": 3}')
        with pytest.raises(UserError, match=r"metadata\.jsonl: not lines of JSON with a file_name each"):
            synthesize(config(tmp_path / "in", tmp_path / "out"))

    def test_more_workers_than_cpus(self, sources, tmp_path):
        with pytest.raises(UserError, match="the workers ask for 50 CPUs but the cluster has 4; lower workers"):
            synthesize(config(sources, tmp_path / "out", workers=100))
        assert not (tmp_path / "out").exists()

    def test_an_unknown_recipe(self, sources, tmp_path):
        with pytest.raises(UserError, match=r"recipe 'gfpgam' is neither a file nor one that ships"):
            synthesize(config(sources, tmp_path / "out", recipe="gfpgam"))

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"variants": 0}, "variants: Input should be greater than or equal to 1"),
            ({"size": "large"}, "size: Input should be a valid integer"),
            ({"sources": []}, "sources: give one folder, archive or list of pictures at least"),
            ({"lq_format": "gif"}, r"lq_format: 'gif' is no format: png, webp \(both lossless\), or jpeg:QUALITY"),
            ({"varients": 2}, "unknown key 'varients'; did you mean 'variants'?"),
        ],
    )
    def test_a_configuration_that_is_wrong(self, change, sentence):
        with pytest.raises(UsageError, match=sentence.replace("?", r"\?")):
            parse(SynthConfig, {"sources": ["a"], "out": "b"} | change, "synth.yaml")

    @pytest.mark.parametrize(
        ("arguments", "code", "sentence"),
        [
            ("nowhere --out out", 1, "nowhere: nothing is there; give a folder, archive, list or URL"),
            ("in --out in/file/out", 1, "in/file/out: cannot be read (Not a directory); give another --out"),
            ("in --out out --workers 100", 1, "lower workers or cpus_per_worker (--set workers=1)"),
            ("in --out out --set varients=2", 2, "unknown key 'varients'; did you mean 'variants'?"),
            ("in --out out --config papre", 2, "--config papre: neither a file nor a set"),
            ("in", 2, "--out"),
        ],
    )
    def test_the_command_ends_with_one_sentence(self, tmp_path, monkeypatch, capfd, arguments, code, sentence):
        monkeypatch.chdir(tmp_path)
        draw(tmp_path / "in" / "a.png", 1)
        (tmp_path / "in" / "file").touch()
        assert console.run(cli.app, ["data", "synth", *arguments.split()]) == code
        shown = capfd.readouterr().err
        assert sentence in shown
        assert "Traceback" not in shown
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_killed_run_is_never_taken_for_finished_and_continues(tmp_path):
    """SIGKILL in the middle; the same command again keeps what was finished and gives the digest of a run in peace."""
    for k in range(12):
        draw(tmp_path / "in" / f"{k}.png", k, (256, 256))
    out, log = tmp_path / "out", tmp_path / "log"
    settings = ["size=256", "variants=12", "shard_rows=8", "workers=1"]
    options = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "jobs.cli", "data", "synth", str(tmp_path / "in"), "--out", str(out), *options]
    root = Path(__file__).parents[2]
    with log.open("w") as lines, subprocess.Popen(command, cwd=root, stdout=lines, stderr=lines) as run:
        while not list(out.glob(".receipts/part-*.json")):
            assert run.poll() is None, f"the run ended before it could be killed: {log.read_text()}"
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob(".receipts/part-*.json")}
    assert len(finished) < 18
    with pytest.raises(UserError, match=r"no manifest\.json, so not a finished dataset"):
        verify(out)
    assert [line for line in log.read_text().splitlines() if not line.startswith(("inspected ", "pairs "))] == []

    path, inputs = configs.find("tiny", "synth"), {"sources": [tmp_path / "in"]}
    digest = synthesize(load(SynthConfig, path, settings, **inputs, out=out)).digest
    assert {name: (out / ".receipts" / name).stat().st_mtime_ns for name in finished} == finished
    in_peace = synthesize(load(SynthConfig, path, [*settings, "workers=3"], **inputs, out=tmp_path / "whole"))
    assert digest == in_peace.digest == verify(out).digest
