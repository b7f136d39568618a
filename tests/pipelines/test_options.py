"""What a synthesis can be told: which pictures, how often, how they are fitted, what they aim at, when to stop."""

import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
from PIL import Image

from osdface import faces as detectors
from osdface.errors import UserError
from osdface.imagefile import read_image
from pipelines.pairs.manifest import read_manifest
from pipelines.pairs.reading import PairDataset
from pipelines.pairs.verify import verify
from pipelines.prepare import prepare
from pipelines.synthesize.build import synthesize
from pipelines.synthesize.config import Split, SynthConfig

pytestmark = pytest.mark.usefixtures("ray_session")


def config(source, out: Path, **changes) -> SynthConfig:
    settings = {"size": 32, "shard_rows": 8, "split": Split(val=0.2, test=0.3)} | changes
    return SynthConfig(sources=source if isinstance(source, list) else [source], out=out, **settings)


def rows(folder: Path) -> list[dict]:
    return pq.read_table(folder / "shards").to_pylist()


def rejects(folder: Path) -> dict[str, str]:
    return {row["source_uri"]: row["reason"] for row in pq.read_table(folder / "rejects.parquet").to_pylist()}


@pytest.fixture(scope="module")
def faces(draw, tmp_path_factory) -> Path:
    return draw(tmp_path_factory.mktemp("faces") / "in", range(12))


class TestLimit:
    def test_takes_the_same_pictures_in_whatever_order_they_come(self, faces, tmp_path):
        first = synthesize(config(faces, tmp_path / "first", limit=5))
        renamed = tmp_path / "renamed"
        renamed.mkdir()
        for number, path in enumerate(sorted(faces.iterdir(), reverse=True)):
            shutil.copy(path, renamed / f"{number:02d}.png")
        synthesize(config(renamed, tmp_path / "second", limit=5))
        assert first.counts.sources == 5
        hashes = [row["source_sha256"] for row in rows(tmp_path / "first")]
        assert hashes == [row["source_sha256"] for row in rows(tmp_path / "second")]
        assert hashes == sorted(hashes)

    def test_counts_pictures_and_not_variants_and_may_be_more_than_there_are(self, faces, tmp_path):
        assert synthesize(config(faces, tmp_path / "three", limit=3, variants=2)).counts.rows == 6
        assert synthesize(config(faces, tmp_path / "all", limit=100)).counts.rows == 12


class TestWeight:
    @pytest.mark.parametrize(
        ("weight", "variants", "each"), [(2, 1, {2}), (2, 3, {6}), (0.5, 4, {2}), (1.5, 1, {1, 2})]
    )
    def test_multiplies_the_variants_of_a_source_s_pictures(self, faces, draw, tmp_path, weight, variants, each):
        other = draw(tmp_path / "other", range(50, 54))
        places = [{"uri": str(faces), "weight": weight}, {"uri": str(other)}]
        manifest = synthesize(config(places, tmp_path / "out", variants=variants))
        found = [Path(row["source_uri"]).stem for row in rows(tmp_path / "out")]
        weighted = {found.count(str(k)) for k in range(12)}
        assert weighted == each
        assert {found.count(str(k)) for k in range(50, 54)} == {variants}
        assert manifest.counts.sources == 16
        assert len({row["key"] for row in rows(tmp_path / "out")}) == len(found)

    def test_a_half_takes_about_every_second_picture_and_the_same_ones_each_time(self, draw, tmp_path):
        source = draw(tmp_path / "in", range(60), (16, 16))
        places = [{"uri": str(source), "weight": 0.5}]
        manifest = synthesize(config(places, tmp_path / "out", size=16))
        assert 18 <= manifest.counts.rows == manifest.counts.sources <= 42
        assert synthesize(config(places, tmp_path / "again", size=16, workers=1)).digest == manifest.digest


class TestMaxRejects:
    @pytest.fixture
    def bad(self, faces, tmp_path) -> Path:
        """Twelve good pictures, a twin, two that their headers give away, and one that only decoding does."""
        folder = Path(shutil.copytree(faces, tmp_path / "bad"))
        shutil.copy(folder / "1.png", folder / "twin.png")
        (folder / "a.txt").write_text("no picture")
        (folder / "b.png").touch()
        data = (folder / "2.png").read_bytes()
        (folder / "torn.png").write_bytes(data[: len(data) // 2])
        return folder

    @pytest.mark.parametrize("allowed", [3, 0.2, None])
    def test_lets_as_many_pass(self, bad, tmp_path, allowed):
        counts = synthesize(config(bad, tmp_path / "out", max_rejects=allowed)).counts
        assert (counts.rows, counts.rejects) == (12, 4)

    @pytest.mark.parametrize(("allowed", "said"), [(0, "0"), (1, "1"), (0.1, "1.6")])
    def test_stops_at_more_and_shows_the_first(self, bad, tmp_path, allowed, said):
        sentence = (
            rf"more than {said} of 16 files are no pictures to use \(.*(a\.txt: is not a pic|b\.png: is empty).*see"
        )
        with pytest.raises(UserError, match=sentence):
            synthesize(config(bad, tmp_path / "out", max_rejects=allowed))
        assert not (tmp_path / "out" / "manifest.json").exists()

    @pytest.mark.parametrize("allowed", [2, 0.15])
    def test_counts_what_only_decoding_shows(self, bad, tmp_path, allowed):
        with pytest.raises(UserError, match=r"more than 2(\.4)? of 16 files are no pictures to use"):
            synthesize(config(bad, tmp_path / "out", max_rejects=allowed))
        assert not (tmp_path / "out" / "manifest.json").exists()
        assert synthesize(config(bad, tmp_path / "out", max_rejects=3)).counts.rows == 12  # and it goes on from there


class TestFit:
    @pytest.fixture(scope="class")
    @staticmethod
    def shapes(draw, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("shapes")
        draw(folder, range(1), (32, 32))
        draw(folder, range(1, 2), (64, 40))
        draw(folder, range(2, 3), (20, 20))
        return folder

    @pytest.mark.parametrize("fit", ["crop", "resize", "pad"])
    def test_makes_every_picture_square(self, shapes, tmp_path, fit):
        synthesize(config(shapes, tmp_path / "out", fit=fit))
        found = {row["source_uri"]: read_image(row["hq"]) for row in rows(tmp_path / "out")}
        assert found.keys() == {"0.png", "1.png", "2.png"}
        for name, image in found.items():
            data = (shapes / name).read_bytes()
            assert np.array_equal(image, prepare(data, 32, fit, "none", "", 10**6))
            assert image.shape == (32, 32, 3)

    def test_the_rules_differ_where_a_picture_is_not_square(self, shapes):
        data = (shapes / "1.png").read_bytes()
        made = [prepare(data, 32, fit, "none", "", 10**6) for fit in ("crop", "resize", "pad")]
        assert not any(np.array_equal(made[a], made[b]) for a, b in ((0, 1), (1, 2), (0, 2)))

    def test_reject_takes_squares_that_are_large_enough(self, shapes, tmp_path):
        synthesize(config(shapes, tmp_path / "out", fit="reject"))
        assert [row["source_uri"] for row in rows(tmp_path / "out")] == ["0.png"]
        assert rejects(tmp_path / "out") == {
            "1.png": "64x40 is not square", "2.png": "20x20 is smaller than 32x32",
        }  # fmt: skip


class TestCropFace:
    def test_aligns_the_face_of_a_real_photograph_and_rejects_what_has_none(self, draw, tmp_path):
        folder = draw(tmp_path / "in", range(1), (128, 128))
        for name, image in detectors.photographs().items():
            Image.fromarray(image).save(folder / f"{name}.png")
        synthesize(config(folder, tmp_path / "out", crop="face", size=128))
        assert rejects(tmp_path / "out") == {"0.png": "no face was found"}
        found = {row["source_uri"]: read_image(row["hq"]) for row in rows(tmp_path / "out")}
        assert found.keys() == {f"{name}.png" for name in detectors.photographs()}
        for image in found.values():
            large = np.asarray(Image.fromarray(image).resize((512, 512), Image.Resampling.BICUBIC))
            face = max(detectors.DlibFrontal().detect(large), key=lambda face: face.score)
            assert np.abs(face.landmarks - detectors.TEMPLATE * 512).max() < 40  # where alignment puts them
        assert verify(tmp_path / "out", replay=2).replayed == 2

    def test_is_not_the_middle_of_the_picture(self, tmp_path):
        (tmp_path / "in").mkdir()
        Image.fromarray(skimage.data.astronaut()).save(tmp_path / "in" / "a.png")
        made = []
        for crop in ("none", "face"):
            synthesize(config(tmp_path / "in", tmp_path / crop, crop=crop, size=64))
            made.append(read_image(rows(tmp_path / crop)[0]["hq"]).astype(float))
        assert np.abs(made[0] - made[1]).mean() > 20


class TestTargets:
    """FFHQ and its retouched twin, FFHQR: restore to the twin."""

    @pytest.fixture
    def twins(self, faces, draw, tmp_path) -> Path:
        draw(tmp_path / "retouched", range(100, 111))
        for k in range(11):
            (tmp_path / "retouched" / f"{100 + k}.png").rename(tmp_path / "retouched" / f"{k}.png")
        return tmp_path / "retouched"

    def test_come_into_the_row_and_the_reader_s_hq_is_the_target(self, faces, twins, tmp_path):
        places = [{"uri": str(faces), "target": str(twins)}]
        manifest = synthesize(config(places, tmp_path / "out", split=Split()))
        assert rejects(tmp_path / "out") == {"11.png": "has no target"}
        found = {row["key"]: row for row in rows(tmp_path / "out")}
        assert manifest.counts.rows == len(found) == 11
        data = PairDataset(tmp_path / "out", "train")
        for item in (data[k] for k in range(len(data))):
            row = found[item["key"]]
            assert row["target_uri"] == row["source_uri"]
            target = (twins / row["target_uri"]).read_bytes()
            assert np.array_equal(read_image(row["target"]), read_image(target))
            assert np.array_equal(read_image(row["hq"]), read_image((faces / row["source_uri"]).read_bytes()))
            shown = ((item["hq"].numpy().transpose(1, 2, 0) + 1) * 127.5).round().astype(np.uint8)
            assert np.array_equal(shown, read_image(row["target"]))
        assert verify(tmp_path / "out", replay=11).replayed == 11

    def test_a_share_of_the_pairs_aims_at_its_twin(self, faces, twins, tmp_path):
        places = [{"uri": str(faces), "target": str(twins)}]
        synthesize(config(places, tmp_path / "out", split=Split()))
        every, none, half = (PairDataset(tmp_path / "out", "train", twins=share) for share in (1, 0, 0.5))
        aimed = [bool((half[k]["hq"] == every[k]["hq"]).all()) for k in range(len(half))]
        assert 0 < sum(aimed) < len(aimed)
        for k, twin in enumerate(aimed):
            assert not (every[k]["hq"] == none[k]["hq"]).all()
            assert (half[k]["hq"] == (every if twin else none)[k]["hq"]).all()

    def test_another_twin_makes_another_dataset(self, faces, twins, draw, tmp_path):
        places = [{"uri": str(faces), "target": str(twins)}]
        first = synthesize(config(places, tmp_path / "out"))
        draw(twins, range(5, 6))  # now its twin is the picture itself
        assert synthesize(config(places, tmp_path / "other")).digest != first.digest

    def test_without_twins_the_columns_are_null(self, faces, tmp_path):
        synthesize(config(faces, tmp_path / "out"))
        values = {row[name] for row in rows(tmp_path / "out") for name in ("target", "target_uri", "target_sha256")}
        assert values == {None}


class TestLicences:
    def test_go_into_manifest_and_card_and_not_into_the_digest(self, faces, draw, tmp_path):
        other = draw(tmp_path / "other", range(50, 52))
        places = [{"uri": str(faces), "licence": "CC-BY-4.0"}, {"uri": str(other), "licence": "CC0-1.0"}]
        manifest = synthesize(config(places, tmp_path / "out"))
        assert manifest.licences == ["CC-BY-4.0", "CC0-1.0"]
        card = (tmp_path / "out" / "README.md").read_text()
        assert "license: other\nlicense_name: CC-BY-4.0, CC0-1.0\n" in card
        assert "| licences of the sources | CC-BY-4.0, CC0-1.0 |" in card
        bare = synthesize(config([faces, other], tmp_path / "bare"))
        assert (bare.digest, bare.licences) == (manifest.digest, [])
        assert "license: unknown" in (tmp_path / "bare" / "README.md").read_text()


class TestFfhq:
    @pytest.fixture
    def ffhq(self, draw, tmp_path) -> Path:
        """FFHQ's layout: 8 pictures, of which it says that the last two are for validation."""
        draw(tmp_path / "images1024x1024" / "00000", range(8))
        for k in range(8):
            folder = tmp_path / "images1024x1024" / "00000"
            (folder / f"{k}.png").rename(folder / f"0000{k}.png")
        entries = {str(k): {"category": "training" if k < 6 else "validation"} for k in range(8)}
        (tmp_path / "ffhq-dataset-v2.json").write_text(json.dumps(entries))
        return tmp_path

    def test_its_own_split_wins(self, ffhq, tmp_path):
        manifest = synthesize(config(ffhq, tmp_path / "out", split=Split(test=1.0)))
        assert manifest.counts.splits == {"train": 6, "val": 2, "test": 0}
        found = {Path(row["source_uri"]).stem: row["split"] for row in rows(tmp_path / "out")}
        assert {name for name, split in found.items() if split == "val"} == {"00006", "00007"}


class TestKinds:
    """The same pictures from every kind of source are the same rows but for their names."""

    @staticmethod
    def folder(faces: Path, place: Path) -> Path:
        return faces

    @staticmethod
    def zipped(faces: Path, place: Path) -> Path:
        with zipfile.ZipFile(place / "faces.zip", "w") as archive:
            for path in faces.iterdir():
                archive.write(path, f"deep/{path.name}")
        return place / "faces.zip"

    @staticmethod
    def tarred(faces: Path, place: Path) -> Path:
        with tarfile.open(place / "faces.tar", "w") as archive:
            archive.add(faces, "deep")
        return place / "faces.tar"

    @staticmethod
    def webdataset(faces: Path, place: Path) -> str:
        for number in range(2):
            with tarfile.open(place / f"faces-{number}.tar", "w") as archive:
                for path in sorted(faces.iterdir())[number::2]:
                    archive.add(path, path.name)
        return f"{place}/faces-{{0..1}}.tar"

    @staticmethod
    def parquet(faces: Path, place: Path) -> Path:
        pictures = [{"image": {"bytes": path.read_bytes(), "path": path.name}} for path in sorted(faces.iterdir())]
        pq.write_table(pa.Table.from_pylist(pictures), place / "faces.parquet")
        return place / "faces.parquet"

    @staticmethod
    def listed(faces: Path, place: Path) -> Path:
        (place / "faces.txt").write_text("\n".join(map(str, faces.iterdir())))
        return place / "faces.txt"

    @pytest.mark.parametrize("kind", ["zipped", "tarred", "webdataset", "parquet", "listed"])
    def test_give_the_same_rows_but_their_names(self, faces, tmp_path, kind):
        made = {}
        for name in ("folder", kind):
            source = getattr(self, name)(faces, tmp_path)
            manifest = synthesize(config(str(source), tmp_path / name))
            assert (manifest.counts.rows, manifest.counts.rejects) == (12, 0)
            made[name] = rows(tmp_path / name)
        names = [row.pop("source_uri") for row in made[kind]]
        assert [Path(name).stem for name in names] == [Path(row.pop("source_uri")).stem for row in made["folder"]]
        assert made[kind] == made["folder"]

    def test_an_archive_s_sidecar_keeps_people_together(self, faces, tmp_path):
        with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
            for path in faces.iterdir():
                archive.write(path, path.name)
            lines = [json.dumps({"file_name": f"{k}.png", "group": f"person {k // 3}"}) for k in range(12)]
            archive.writestr("metadata.jsonl", "\n".join(lines))
        manifest = synthesize(config(tmp_path / "faces.zip", tmp_path / "out", split=Split(val=0.4, test=0.3)))
        found: dict[int, set[str]] = {}
        for row in rows(tmp_path / "out"):
            found.setdefault(int(Path(row["source_uri"]).stem) // 3, set()).add(row["split"])
        assert sorted(found) == [0, 1, 2, 3]
        assert [len(splits) for splits in found.values()] == [1] * 4
        assert len(set.union(*found.values())) > 1
        assert (manifest.counts.rows, manifest.counts.rejects) == (12, 0)
        assert read_manifest(tmp_path / "out") == manifest
