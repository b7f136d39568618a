"""A synthesis among hostile files, on full and read-only disks, of sources that vanish or change, of files that broke.

Each fault ends in one sentence that names the file, and costs nothing: the same command afterwards gives the digest of
a run in peace.
"""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from jobs import cli, console
from osdface.errors import UserError
from pipelines import lease
from pipelines.pairs.manifest import read_manifest
from pipelines.pairs.verify import verify
from pipelines.synthesize.build import synthesize
from pipelines.synthesize.config import Split, SynthConfig
from tests.hostile import MAX_PIXELS, write_hostile

pytestmark = pytest.mark.usefixtures("ray_session", "home")
MEGABYTE = 2**20
PICTURES = 12
SETTINGS = {"recipe": "dual_sequential", "size": 64, "variants": 2, "shard_rows": 4}
Progress = Callable[[str, int, int, dict], None]


def draw(path: Path, seed: int) -> None:
    """A noisy picture of its own, which no encoding makes small."""
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8))


@pytest.fixture
def sources(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(PICTURES):
        draw(folder / f"{k:02d}.png", k)
    return folder


@pytest.fixture(scope="module")
def peace(ray_session, tmp_path_factory) -> Path:
    """The dataset that an undisturbed run makes of `sources`."""
    folder = tmp_path_factory.mktemp("peace")
    (folder / "in").mkdir()
    for k in range(PICTURES):
        draw(folder / "in" / f"{k:02d}.png", k)
    synthesize(config(folder / "in", folder / "out"))
    return folder / "out"


@pytest.fixture
def made(peace, sources, tmp_path) -> Path:
    """A finished dataset of `sources`."""
    return Path(shutil.copytree(peace, tmp_path / "out"))


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine lets no test mount a disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def config(sources: Path, out: Path, **changes) -> SynthConfig:
    return SynthConfig(sources=[sources], out=out, **SETTINGS | {"split": Split(val=0.2, test=0.2)} | changes)


def command(sources: Path, out: Path, **changes) -> list[str]:
    """The command that makes what `config` describes."""
    options = [word for name, value in (SETTINGS | changes).items() for word in ("--set", f"{name}={value}")]
    return ["data", "synth", str(sources), "--out", str(out), "--split", "0.2,0.2", "--no-track", *options]


def refused(capfd, words: list[str]) -> str:
    """The one sentence that a command ends with, with exit code 1."""
    capfd.readouterr()
    assert console.run(cli.app, words) == 1
    shown = capfd.readouterr().err
    assert "Traceback" not in shown
    said = [line for line in shown.splitlines() if not line.startswith(("inspected", "pairs", "verified"))]
    assert len(said) == 1, shown[-3000:]
    return said[0].removeprefix("Error: ")


def once(label: str, act: Callable[[], object], done: int | None = None) -> Progress:
    """A progress that acts when so much of that is done (all of it, if not said)."""

    def progress(what: str, number: int, total: int, values: dict) -> None:
        if what == label and number == (done or total):
            act()

    return progress


def assert_as_in_peace(sources: Path, out: Path, peace: Path) -> None:
    """After the same command, everything is there as the undisturbed run made it."""
    assert console.run(cli.app, command(sources, out)) == 0
    assert verify(out).digest == read_manifest(peace).digest
    assert read_manifest(out).shards == read_manifest(peace).shards
    assert names(out) == names(peace)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestHostile:
    def test_files_cost_no_good_row_and_little_memory(self, tmp_path):
        """Good files alone, then with as many hostile ones: what the bombs add to a worker's largest memory is small.

        Decoded, they would be 200 MB to gigabytes each; the bound is 100 MB above the good files' peak.
        """
        good, mixed = tmp_path / "good", tmp_path / "mixed"
        good.mkdir()
        for k in range(60):
            draw(good / f"{k}.png", k)
        synthesize(config(good, tmp_path / "first", max_pixels=MAX_PIXELS))
        before = peaks()
        shutil.copytree(good, mixed / "good")
        outcomes = {f"bad/{name}": outcome for name, outcome in write_hostile(mixed / "bad").items()}
        assert list(outcomes.values()).count("reject") >= 60
        manifest = synthesize(config(mixed, tmp_path / "out", max_pixels=MAX_PIXELS))
        usual = max(before.values())  # of a worker that is new, or that had nothing to do before
        added = max(peak - max(before.get(worker, 0), usual) for worker, peak in peaks().items())
        used = {f"good/{k}.png" for k in range(60)} | {name for name, what in outcomes.items() if what == "convert"}
        rows = pq.read_table(tmp_path / "out" / "shards", columns=["source_uri", "variant"]).to_pylist()
        assert sorted((row["source_uri"], row["variant"]) for row in rows) == sorted(
            (name, variant) for name in used for variant in range(2)
        )
        rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
        assert {row["source_uri"] for row in rejects} == {name for name, what in outcomes.items() if what == "reject"}
        assert len(rejects) == manifest.counts.rejects == len({row["source_uri"] for row in rejects})
        assert all(row["reason"] and row["kind"] for row in rejects)
        assert verify(tmp_path / "out").rows == 2 * len(used)
        assert added < 100 * MEGABYTE, f"{usual / MEGABYTE:.0f} MB and {added / MEGABYTE:.0f} more"


def peaks() -> dict[int, int]:
    """The largest resident memory that each of this session's Ray workers ever had."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ray::"):
            status = Path(f"/proc/{process.pid}/status").read_text()
            found[process.pid] = next(int(line.split()[1]) * 1024 for line in status.splitlines() if "VmHWM" in line)
    return found


class TestDisk:
    def test_full_amid_the_shards(self, sources, disk, peace, capfd):
        remount(disk, "size=300k")
        sentence = refused(capfd, command(sources, disk / "out"))
        assert f"{disk}/out/shards/part-0000" in sentence
        assert ".parquet: cannot be written (" in sentence
        assert "No space left on device" in sentence
        assert sentence.endswith("; make room and run the same command again")
        kept = state(disk / "out" / "shards")
        assert 0 < len(kept) < len(state(peace / "shards"))
        assert kept.items() <= state(peace / "shards").items()
        remount(disk, "size=20m")
        assert_as_in_peace(sources, disk / "out", peace)

    def test_full_from_the_beginning(self, sources, disk, peace, capfd):
        filler = fill(disk)
        assert "disk/out: cannot be written (No space left on device)" in refused(capfd, command(sources, disk / "out"))
        filler.unlink()
        assert_as_in_peace(sources, disk / "out", peace)

    def test_full_before_the_manifest(self, sources, disk, peace):
        filled: list[Path] = []
        sentence = r"disk/out: cannot be written \(No space left on device\); make room and run the same command again"
        with pytest.raises(UserError, match=sentence):
            synthesize(config(sources, disk / "out"), once("pairs", lambda: filled.append(fill(disk))))
        assert not (disk / "out" / "manifest.json").exists()
        filled[0].unlink()
        assert_as_in_peace(sources, disk / "out", peace)

    def test_read_only_from_the_beginning(self, sources, disk, peace, capfd):
        remount(disk, "ro")
        assert "disk/out: cannot be written (Read-only file system)" in refused(capfd, command(sources, disk / "out"))
        remount(disk, "rw")
        assert_as_in_peace(sources, disk / "out", peace)

    @pytest.mark.parametrize(("label", "name"), [("inspected", "disk/out/shards/part-0000"), ("pairs", "disk/out")])
    def test_read_only_midway(self, sources, disk, peace, label, name, monkeypatch):
        monkeypatch.setattr(lease, "PATIENCE", 1.0)  # this process lives on, and cannot give its lease up
        with pytest.raises(UserError, match=rf"{name}.*: cannot be written \(.*Read-only file system.*\); make room"):
            synthesize(config(sources, disk / "out"), once(label, lambda: remount(disk, "ro")))
        remount(disk, "rw")
        assert_as_in_peace(sources, disk / "out", peace)


def fill(disk: Path) -> Path:
    """A file that leaves no byte of the disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler


class TestSources:
    @pytest.mark.parametrize("moment", [("inspected", 1), ("inspected", None), ("pairs", 4)], ids=str)
    def test_that_vanish_midway(self, sources, tmp_path, peace, moment):
        away, out = tmp_path / "away", tmp_path / "out"
        label, done = moment
        with pytest.raises(
            UserError, match=rf"{sources}(/\d+\.png)?: (cannot be read any more \(No such file|none of)"
        ):
            synthesize(config(sources, out, workers=1), once(label, lambda: sources.rename(away), done))
        with pytest.raises(UserError, match="nothing is there"):
            synthesize(config(sources, out))
        away.rename(sources)
        assert_as_in_peace(sources, out, peace)

    def test_a_picture_that_changed_since_the_finished_run_is_named(self, sources, tmp_path, peace, capfd):
        made = tmp_path / "made"
        synthesize(config(sources, made))
        before = state(made)
        draw(sources / "05.png", 99)
        sentence = refused(capfd, command(sources, made))
        assert sentence == (
            f"{made}: was made from other pictures than the sources hold now (05.png has other bytes); "
            "give another --out or remove it"
        )
        assert refused(capfd, ["data", "regenerate", str(made), "--out", str(made)]) == (
            f"{sources}: holds other pictures than when the dataset was made (05.png has other bytes), so it cannot be "
            "made again"
        )
        assert state(made) == before
        draw(sources / "05.png", 5)
        assert_as_in_peace(sources, made, peace)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda folder: (folder / "03.png").unlink(), "03.png is gone"),
            (lambda folder: draw(folder / "zz.png", 77), "zz.png is new"),
        ],
    )
    def test_a_picture_that_came_or_went_is_named(self, sources, made, capfd, change, named):
        change(sources)
        assert f"than the sources hold now ({named}); give" in refused(capfd, command(sources, made))

    def test_a_picture_that_changed_since_an_unfinished_run_is_taken_as_it_is_now(self, sources, made, tmp_path):
        """No shard of before that held it is kept, and none other is made again."""
        (made / "manifest.json").unlink()
        draw(sources / "05.png", 99)
        assert synthesize(config(sources, made)).digest == synthesize(config(sources, tmp_path / "fresh")).digest
        assert {n: d for n, d in state(made).items() if "part" in n} == {
            n: d for n, d in state(tmp_path / "fresh").items() if "part" in n
        }

    def test_a_picture_that_changes_between_the_two_passes_is_named(self, sources, tmp_path, peace):
        change = once("inspected", lambda: draw(sources / "05.png", 99))
        with pytest.raises(UserError, match=rf"{sources}/05\.png: changed while the dataset was being made; run the"):
            synthesize(config(sources, tmp_path / "out"), change)
        draw(sources / "05.png", 5)
        assert_as_in_peace(sources, tmp_path / "out", peace)


class TestFiles:
    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            (lambda m: m.update(digest="0" * 64), "its digest is not that of its spec and shards"),
            (lambda m: m["shards"][1].update(content="0" * 64), "its digest is not that of its spec and shards"),
            (lambda m: m["shards"].pop(), "its digest is not that of its spec and shards"),
            (lambda m: m["counts"].update(rows=25), "its counts are not those of its shards and rejects"),
        ],
    )
    @pytest.mark.parametrize("verb", ["synth", "regenerate", "extend", "remove"])
    def test_a_manifest_edited_by_hand(self, sources, made, peace, capfd, change, fault, verb):
        manifest = json.loads((made / "manifest.json").read_text())
        change(manifest)
        (made / "manifest.json").write_text(json.dumps(manifest))
        before = state(made)
        words = {
            "synth": command(sources, made),
            "regenerate": ["data", "regenerate", str(made), "--out", str(made)],
            "extend": ["data", "extend", str(made), str(sources)],
            "remove": ["data", "remove", str(made), "--source-sha256", "0" * 64],
        }[verb]
        assert refused(capfd, words) == (
            f"{made}/manifest.json: {fault}; was it edited? put the original back, or delete it and run the dataset's "
            "`osdface data synth` again"
        )
        assert state(made) == before
        (made / "manifest.json").unlink()
        assert_as_in_peace(sources, made, peace)

    def test_a_manifest_that_was_torn(self, sources, made, peace, capfd):
        (made / "manifest.json").write_text((made / "manifest.json").read_text()[:1000])
        assert f"{made}/manifest.json: damaged" in refused(capfd, command(sources, made))
        (made / "manifest.json").unlink()
        assert_as_in_peace(sources, made, peace)

    @pytest.mark.parametrize("name", ["shards/part-00001.parquet", "rejects.parquet"])
    @pytest.mark.parametrize("put_back", [b"", bytes(20)], ids=["cut", "zeros"])
    def test_a_torn_footer(self, sources, made, peace, capfd, name, put_back):
        (made / name).write_bytes((made / name).read_bytes()[:-20] + put_back)
        sentence = refused(capfd, ["data", "verify", str(made)])
        assert sentence.startswith(f"{made}/{name}: cannot be read (")
        assert sentence.endswith("; delete it and run the synth again")
        (made / name).unlink()
        assert_as_in_peace(sources, made, peace)
