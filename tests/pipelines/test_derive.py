"""What becomes of a dataset later: regenerated, derived, mended, extended, pictures removed, compared."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from degradations.recipe import load as load_recipe
from osdface.errors import UsageError, UserError
from osdface.files import sha256
from pipelines.pairs.diff import diff
from pipelines.pairs.manifest import Manifest, read_manifest
from pipelines.pairs.verify import verify
from pipelines.sources import Source
from pipelines.synthesize import derive
from pipelines.synthesize.build import synthesize
from pipelines.synthesize.config import Split, SynthConfig, Work
from pipelines.synthesize.derive import extend, regenerate, remove, would_remove
from pipelines.synthesize.estimate import estimate

pytestmark = pytest.mark.usefixtures("ray_session")
WORK = Work()


def config(source: Path, out: Path, **changes) -> SynthConfig:
    settings = {"size": 32, "shard_rows": 4, "split": Split(val=0.2, test=0.3)} | changes
    return SynthConfig(sources=[source], out=out, **settings)


def add(dataset: Path, *folders: Path, **options) -> Manifest:
    return extend(dataset, [Source(uri=str(folder)) for folder in folders], WORK, **options)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's time and bytes."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def rows(folder: Path) -> list[dict]:
    return [row for s in read_manifest(folder).shards for row in pq.read_table(folder / "shards" / s.name).to_pylist()]


def rejects(folder: Path) -> dict[str, str]:
    return {row["source_uri"]: row["reason"] for row in pq.read_table(folder / "rejects.parquet").to_pylist()}


@pytest.fixture(scope="module")
def first(draw, ray_session, tmp_path_factory) -> tuple[Path, Path]:
    """Ten pictures and one's twin, and their dataset of three shards."""
    folder = tmp_path_factory.mktemp("first")
    draw(folder / "in", range(10))
    shutil.copy(folder / "in" / "3.png", folder / "in" / "twin.png")
    synthesize(config(folder / "in", folder / "pairs"))
    return folder / "in", folder / "pairs"


@pytest.fixture
def faces(first, tmp_path) -> Path:
    return Path(shutil.copytree(first[0], tmp_path / "in"))


@pytest.fixture
def pairs(first, faces, tmp_path) -> Path:
    """A copy of that dataset, of sources of its own."""
    out = Path(shutil.copytree(first[1], tmp_path / "pairs"))
    text = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(text.replace(str(first[0]), str(faces)))
    return out


@pytest.fixture
def more(draw, tmp_path) -> Path:
    return draw(tmp_path / "more", range(20, 25))


class CutOff(BaseException):
    """What a kill is to the code: nothing catches it."""


def interrupted(monkeypatch, step: str, job: Callable[[], object]) -> None:
    """Run a job whose step of that name never happens."""

    def fail(*_: object, **__: object) -> None:
        raise CutOff

    with monkeypatch.context() as patch:
        patch.setattr(derive, step, fail)
        with pytest.raises(CutOff):
            job()


class TestRegenerate:
    def test_gives_the_same_digest(self, pairs, tmp_path):
        again, before = regenerate(pairs, tmp_path / "again", {}, WORK), read_manifest(pairs)
        assert (again.digest, again.shards, again.counts) == (before.digest, before.shards, before.counts)
        assert (again.parent, again.made_by) == (None, "synth")
        assert rejects(tmp_path / "again") == rejects(pairs)
        assert verify(tmp_path / "again", replay=10).rows == 10

    def test_also_after_it_was_extended(self, pairs, more, tmp_path):
        extended = add(pairs, more)
        again = regenerate(pairs, tmp_path / "again", {}, WORK)
        assert (again.digest, again.parent, again.made_by) == (extended.digest, extended.parent, "extend")
        assert again.counts == extended.counts

    def test_also_where_the_additions_took_turns_in_the_same_folder(self, faces, tmp_path):
        """The first took six, the second what it had left."""
        synthesize(config(faces, tmp_path / "pairs", limit=6))
        extended = add(tmp_path / "pairs", faces)
        assert extended.counts.sources == 10
        again = regenerate(tmp_path / "pairs", tmp_path / "again", {}, WORK)
        assert (again.digest, again.counts) == (extended.digest, extended.counts)

    def test_also_where_a_damaged_picture_came_twice(self, faces, more, tmp_path):
        """Only decoding shows it, so each addition plans it and rejects it."""
        data = (faces / "1.png").read_bytes()
        for folder in (faces, more):
            (folder / "torn.png").write_bytes(data[: len(data) // 2])
        synthesize(config(faces, tmp_path / "pairs"))
        extended = add(tmp_path / "pairs", more)
        assert regenerate(tmp_path / "pairs", tmp_path / "again", {}, WORK).digest == extended.digest

    @pytest.mark.parametrize("source_keeps_it", [True, False])
    def test_also_after_a_picture_was_removed(self, pairs, faces, tmp_path, source_keeps_it):
        hashed = sha256(faces / "5.png")
        smaller = remove(pairs, [hashed])
        if not source_keeps_it:
            (faces / "5.png").unlink()
        again = regenerate(pairs, tmp_path / "again", {}, WORK)
        assert (again.digest, again.removed, again.parent) == (smaller.digest, smaller.removed, smaller.parent)
        assert hashed not in {row["source_sha256"] for row in rows(tmp_path / "again")}
        assert verify(tmp_path / "again").rows == 9

    def test_also_after_extension_and_removals_of_both(self, pairs, faces, more, tmp_path):
        """The removed one of the first is in the second's folder too, and gone from the first's."""
        shutil.copy(faces / "5.png", more / "again.png")
        add(pairs, more)
        smaller = remove(pairs, [sha256(faces / "5.png"), sha256(more / "22.png")])
        (faces / "5.png").unlink()
        again = regenerate(pairs, tmp_path / "again", {}, WORK)
        assert (again.digest, again.counts.rows) == (smaller.digest, 13)

    @pytest.mark.parametrize(
        ("change", "said"),
        [("changed", r"5\.png has other bytes"), ("gone", r"5\.png is gone"), ("new", r"new\.png is new")],
    )
    def test_other_pictures_are_named_with_their_folder(self, pairs, faces, draw, tmp_path, change, said):
        if change == "gone":
            (faces / "5.png").unlink()
        else:
            draw(tmp_path / "other", range(77, 78))
            shutil.copy(tmp_path / "other" / "77.png", faces / ("5.png" if change == "changed" else "new.png"))
        with pytest.raises(
            UserError, match=rf"/in: holds other pictures than when the dataset was made \({said}\), so"
        ):
            regenerate(pairs, tmp_path / "again", {}, WORK)

    def test_other_pictures_are_refused_after_a_removal_too(self, pairs, faces, tmp_path):
        remove(pairs, [sha256(faces / "5.png")])
        (faces / "6.png").unlink()
        with pytest.raises(UserError, match="other pictures"):
            regenerate(pairs, tmp_path / "again", {}, WORK)
        assert not (tmp_path / "again" / "manifest.json").exists()

    def test_a_folder_that_is_gone_is_named(self, pairs, faces, tmp_path):
        shutil.rmtree(faces)
        with pytest.raises(UserError, match="/in: nothing is there; give a folder"):
            regenerate(pairs, tmp_path / "again", {}, WORK)
        assert not (tmp_path / "again").exists()


class TestDerived:
    @pytest.mark.parametrize("change", ["recipe", "seed", "variants"])
    def test_is_what_synthesis_makes_and_names_its_parent(self, pairs, faces, tmp_path, change):
        wanted = {"recipe": load_recipe("gfpgan").model_dump(), "seed": 7, "variants": 2}[change]
        derived = regenerate(pairs, tmp_path / "derived", {change: wanted}, WORK)
        plain = {"recipe": "gfpgan", "seed": 7, "variants": 2}[change]
        assert derived.digest == synthesize(config(faces, tmp_path / "plain", **{change: plain})).digest
        assert (derived.parent, derived.made_by) == (read_manifest(pairs).digest, "regenerate")
        assert f"made by regenerate from `{derived.parent}`" in (tmp_path / "derived" / "README.md").read_text()

    def test_leaves_removed_pictures_out_and_can_be_made_again(self, pairs, faces, tmp_path):
        hashed = sha256(faces / "5.png")
        remove(pairs, [hashed])
        derived = regenerate(pairs, tmp_path / "derived", {"variants": 2}, WORK)
        assert derived.counts.rows == 18
        assert hashed not in {row["source_sha256"] for row in rows(tmp_path / "derived")}
        again = regenerate(tmp_path / "derived", tmp_path / "again", {}, WORK)
        assert (again.digest, again.parent) == (derived.digest, derived.parent)
        with pytest.raises(UserError, match="has no picture whose source_sha256"):
            remove(tmp_path / "derived", ["ab" * 32])

    def test_of_an_extended_one_has_its_additions(self, pairs, more, tmp_path):
        add(pairs, more)
        derived = regenerate(pairs, tmp_path / "derived", {"seed": 3}, WORK)
        assert (derived.counts.rows, len(derived.additions)) == (15, 2)

    def test_needs_a_folder_of_its_own(self, pairs):
        before = state(pairs)
        with pytest.raises(UsageError, match="a derived dataset needs a folder of its own: give another --out"):
            regenerate(pairs, f"{pairs}/", {"seed": 1}, WORK)
        assert state(pairs) == before


class TestMending:
    def test_makes_lost_files_anew_in_place(self, pairs, more):
        extended = add(pairs, more)
        before = state(pairs)
        lost = ["shards/part-00001.parquet", "shards/part-00004.parquet", "rejects.parquet"]
        for name in lost:
            (pairs / name).unlink()
        mended = regenerate(pairs, pairs, {}, WORK)
        after = state(pairs)
        assert mended.digest == extended.digest == verify(pairs).digest
        assert [after[name][1] for name in lost] == [before[name][1] for name in lost]
        assert after["shards/part-00000.parquet"] == before["shards/part-00000.parquet"]

    def test_of_one_that_pictures_were_removed_from(self, pairs, faces):
        smaller = remove(pairs, [sha256(faces / "5.png")])
        (pairs / "shards" / smaller.shards[0].name).unlink()
        (faces / "5.png").unlink()
        assert regenerate(pairs, pairs, {}, WORK).digest == smaller.digest
        assert verify(pairs).rows == 9

    def test_synthesis_names_the_command_for_an_extended_one(self, pairs, faces, more):
        add(pairs, more)
        (pairs / "shards" / "part-00001.parquet").unlink()
        with pytest.raises(UserError, match=r"lost files since it was changed; mend it with `osdface data regenerate"):
            synthesize(config(faces, pairs))


class TestExtend:
    def test_adds_shards_and_leaves_the_old_ones_untouched(self, pairs, more):
        before, old = state(pairs / "shards"), read_manifest(pairs)
        extended = add(pairs, more)
        after = state(pairs / "shards")
        assert {name: after[name] for name in before} == before
        assert sorted(after.keys() - before.keys()) == ["part-00003.parquet", "part-00004.parquet"]
        assert (extended.parent, extended.made_by) == (old.digest, "extend")
        assert extended.digest != old.digest
        assert (extended.counts.rows, extended.counts.sources) == (15, 15)
        assert extended.shards[:3] == old.shards
        assert verify(pairs, replay=15).rows == 15

    def test_again_changes_nothing(self, pairs, more):
        extended = add(pairs, more)
        before = state(pairs)
        assert add(pairs, more) == extended
        assert state(pairs) == before

    def test_the_first_synthesis_again_finds_it_finished(self, pairs, faces, more):
        extended = add(pairs, more)
        assert synthesize(config(faces, pairs)) == extended

    def test_what_it_has_and_what_was_removed_are_rejects(self, pairs, faces, more):
        remove(pairs, [sha256(faces / "5.png")])
        for name in ("4", "5"):
            shutil.copy(faces / f"{name}.png", more / f"copy{name}.png")
        (more / "notes.txt").write_text("no picture")
        extended = add(pairs, more)
        found = rejects(pairs)
        assert found.keys() == {"twin.png", "copy4.png", "copy5.png", "notes.txt"}
        assert found["copy4.png"] == "is in the dataset already"
        assert found["copy5.png"] == "was removed from the dataset"
        assert (extended.counts.rows, extended.counts.rejects) == (14, 4)
        assert verify(pairs).rows == 14

    @pytest.mark.parametrize("step", ["manifest_of", "write_card", "write_manifest", "tidy"])
    def test_cut_off_it_leaves_the_old_dataset_and_goes_on(self, pairs, faces, more, tmp_path, monkeypatch, step):
        old = read_manifest(pairs)
        interrupted(monkeypatch, step, lambda: add(pairs, more))
        if step != "tidy":
            assert read_manifest(pairs) == old
        made = state(pairs / "shards")
        assert len(made) == 5
        extended = add(pairs, more)
        assert state(pairs / "shards") == made
        assert extended.counts.rows == 15
        assert verify(pairs).rows == 15

    def test_cut_off_another_may_follow(self, pairs, more, draw, tmp_path, monkeypatch):
        (more / "notes.txt").write_text("no picture")
        interrupted(monkeypatch, "write_manifest", lambda: add(pairs, more))
        assert read_manifest(pairs).counts.rows == 10
        extended = add(pairs, draw(tmp_path / "others", range(40, 42)))
        assert (extended.counts.rows, extended.counts.rejects) == (12, 1)
        assert verify(pairs).rows == 12

    def test_limit_takes_some_and_the_next_takes_the_rest(self, pairs, more):
        assert add(pairs, more, limit=2).counts.rows == 12
        assert add(pairs, more, limit=2).counts.rows == 14
        assert add(pairs, more).counts.rows == 15
        assert len({row["key"] for row in rows(pairs)}) == 15

    def test_of_what_changed_since_it_was_read_is_refused(self, pairs, more, draw, tmp_path, monkeypatch):
        """Another extension ends between reading the manifest and holding the folder."""
        others, claimed = draw(tmp_path / "others", range(40, 42)), derive.claimed

        def late(*arguments: object) -> object:
            monkeypatch.setattr(derive, "claimed", claimed)
            add(pairs, others)
            return claimed(*arguments)

        for job in (lambda: add(pairs, more), lambda: remove(pairs, [rows(pairs)[0]["source_sha256"]])):
            before = len(read_manifest(pairs).additions)
            monkeypatch.setattr(derive, "claimed", late)
            with pytest.raises(UserError, match="another job changed it meanwhile; run the same command again"):
                job()
            assert len(read_manifest(pairs).additions) == before + 1
            others = draw(tmp_path / "yet others", range(50, 52))
        assert verify(pairs).rows == 14


class TestRemove:
    def test_takes_rows_and_bytes_and_leaves_other_shards(self, pairs, faces):
        hashed, old = sha256(faces / "5.png"), read_manifest(pairs)
        gone = next(row for row in rows(pairs) if row["source_sha256"] == hashed)
        before = state(pairs / "shards")
        assert any(gone["hq"] in data for _, data in before.values())
        smaller = remove(pairs, [hashed])
        after = state(pairs / "shards")
        assert not any(gone["hq"] in data or gone["lq"] in data for _, data in state(pairs).values())
        assert len(after) == 3
        assert len(after.items() & before.items()) == 2
        assert [row for row in rows(pairs) if row["source_sha256"] == hashed] == []
        assert (smaller.parent, smaller.made_by, smaller.counts.rows) == (old.digest, "remove", 9)
        assert smaller.digest != old.digest
        assert [(entry.sha256, entry.rows) for entry in smaller.removed] == [(hashed, 1)]
        assert verify(pairs, replay=9).replayed == 9

    def test_leaves_no_name_of_it_either(self, pairs, faces):
        assert rejects(pairs) == {"twin.png": "same bytes as 3.png"}
        remove(pairs, [sha256(faces / "3.png")])
        assert rejects(pairs) == {}
        assert not any(b"3.png" in data for _, data in state(pairs).values())
        assert verify(pairs).rows == 9

    def test_no_later_run_brings_it_back(self, pairs, faces):
        smaller = remove(pairs, [sha256(faces / "5.png")])
        before = state(pairs)
        assert synthesize(config(faces, pairs)) == smaller
        assert state(pairs) == before
        assert regenerate(pairs, pairs, {}, WORK).digest == smaller.digest
        assert verify(pairs).rows == 9

    def test_twice_and_more_of_the_same_shard(self, pairs):
        hashes = [row["source_sha256"] for row in rows(pairs)]
        first = remove(pairs, hashes[:1])
        assert remove(pairs, hashes[:1]) == first
        second = remove(pairs, hashes[:2])
        assert (second.parent, second.counts.rows, len(second.removed)) == (first.digest, 8, 2)
        assert len(list((pairs / "shards").iterdir())) == 3
        third = remove(pairs, hashes[2:4])  # now its shard is empty
        assert (third.shards[0].rows, verify(pairs).rows) == (0, 6)
        assert regenerate(pairs, pairs, {}, WORK).digest == third.digest

    def test_a_picture_whose_variants_lie_in_two_shards(self, faces, tmp_path):
        out = tmp_path / "pairs"
        synthesize(config(faces, out, variants=3, shard_rows=4))
        hashed = rows(out)[4]["source_sha256"]
        assert len({row["key"] for row in rows(out)[3:6]}) == 3
        smaller = remove(out, [hashed])
        assert [(entry.sha256, entry.rows) for entry in smaller.removed] == [(hashed, 3)]
        assert (smaller.counts.rows, smaller.counts.sources) == (27, 9)
        assert regenerate(out, tmp_path / "again", {}, WORK).digest == smaller.digest

    def test_an_unknown_hash_is_named_and_changes_nothing(self, pairs, faces):
        before = state(pairs)
        with pytest.raises(UserError, match=f"has no picture whose source_sha256 is {'ab' * 32}"):
            remove(pairs, [sha256(faces / "5.png"), "ab" * 32])
        assert state(pairs) == before

    def test_all_of_it_is_refused_and_changes_nothing(self, pairs):
        before = state(pairs)
        with pytest.raises(UserError, match="these are all its pictures; delete the folder instead"):
            remove(pairs, [row["source_sha256"] for row in rows(pairs)])
        assert state(pairs) == before

    @pytest.mark.parametrize("step", ["manifest_of", "write_rejects", "write_card", "write_manifest"])
    def test_cut_off_before_its_manifest_the_old_dataset_holds(self, pairs, faces, monkeypatch, step):
        old, hashed = read_manifest(pairs), sha256(faces / "3.png")
        interrupted(monkeypatch, step, lambda: remove(pairs, [hashed]))
        assert read_manifest(pairs) == old
        assert len(rows(pairs)) == 10
        smaller = remove(pairs, [hashed])
        assert (smaller.parent, smaller.counts.rejects, verify(pairs).rows) == (old.digest, 0, 9)
        assert len(list((pairs / "shards").iterdir())) == 3

    def test_cut_off_after_its_manifest_the_old_bytes_go_by_the_same_command(self, pairs, faces, monkeypatch):
        hashed = sha256(faces / "5.png")
        gone = next(row for row in rows(pairs) if row["source_sha256"] == hashed)
        interrupted(monkeypatch, "tidy", lambda: remove(pairs, [hashed]))
        assert any(gone["hq"] in data for _, data in state(pairs).values())
        with pytest.raises(UserError, match="readers see it, but the manifest does not; remove it"):
            verify(pairs)
        remove(pairs, [hashed])
        assert not any(gone["hq"] in data for _, data in state(pairs).values())
        assert verify(pairs).rows == 9

    def test_dry_run_says_what_would_go_and_changes_nothing(self, pairs, faces):
        before, hashes = state(pairs), [sha256(faces / "5.png")] * 2
        shard = next(
            s
            for s in read_manifest(pairs).shards
            if hashes[0] in str(pq.read_table(pairs / "shards" / s.name, columns=["key"]))
        )
        expected = {"pictures": 1, "rows": 1, "shards": 1, "bytes_written_anew": shard.bytes}
        assert would_remove(pairs, hashes) == expected
        assert state(pairs) == before
        with pytest.raises(UserError, match="has no picture whose source_sha256"):
            would_remove(pairs, ["ab" * 32])
        remove(pairs, hashes)
        assert would_remove(pairs, hashes)["rows"] == 0


class TestDryRun:
    def test_of_a_synthesis_says_what_comes_out(self, faces, tmp_path):
        (faces / "notes.txt").write_text("no picture")
        settings = config(faces, tmp_path / "out", variants=3, shard_rows=8)
        expected = estimate(settings)
        assert not (tmp_path / "out").exists()
        made = synthesize(settings)
        assert expected[:4] == (made.counts.sources, made.counts.rejects, made.counts.rows, len(made.shards))
        stored = sum(len(row["lq"]) + len(row["hq"]) for row in rows(tmp_path / "out"))
        assert expected.bytes == pytest.approx(stored, rel=0.3)
        assert expected.seconds >= 0

    def test_of_a_synthesis_is_refused_as_it_would_be(self, faces, pairs, tmp_path):
        with pytest.raises(UserError, match=r"pairs: holds another dataset \(it differs in seed\)"):
            estimate(config(faces, pairs, seed=1))
        with pytest.raises(UserError, match="nowhere: nothing is there"):
            estimate(config(tmp_path / "nowhere", tmp_path / "out"))


class TestDiff:
    def test_of_equal_ones(self, pairs, first):
        found = diff(pairs, first[1])
        assert (found["same"], found["spec"], found["differ"], found["common"]) == (True, {}, {}, 10)
        assert (found["only_first"], found["only_second"]) == (0, 0)

    def test_says_what_differs_in_spec_rows_and_columns(self, pairs, faces, tmp_path):
        (faces / "0.png").unlink()
        synthesize(config(faces, tmp_path / "other", recipe="gfpgan", lq_format="jpeg:90"))
        found = diff(pairs, tmp_path / "other")
        assert not found["same"]
        assert found["digests"] == [read_manifest(pairs).digest, read_manifest(tmp_path / "other").digest]
        assert found["spec"].keys() == {"recipe", "lq_format"}
        assert found["spec"]["lq_format"] == ["png", "jpeg:90"]
        assert [name.split()[0] for name in found["spec"]["recipe"]] == ["dual_sequential", "gfpgan"]
        assert (found["only_first"], found["only_second"], found["common"]) == (1, 0, 9)
        assert found["differ"] == {"lq": 9, "trace": 9, "recipe_digest": 9}
        assert len(found["examples"]["lq"]) == 3
        assert set(found["examples"]["lq"]) <= {row["key"] for row in rows(pairs)}
        json.dumps(found)

    def test_of_an_unfinished_one_is_refused(self, pairs, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="no such dataset"):
            diff(pairs, tmp_path / "empty")
