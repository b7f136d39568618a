"""Pictures of folders: which belong together, what is refused, and a restored folder evaluated as such."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from osdface.errors import UsageError, UserError
from pipelines.evaluation import sets
from pipelines.evaluation.pictures import Matched, Pairs
from pipelines.evaluation.run import evaluate
from pipelines.evaluation.wanted import Wanted
from pipelines.metrics import psnr
from pipelines.pairs.manifest import read_manifest
from pipelines.synthesize.build import synthesize
from pipelines.synthesize.config import Split, SynthConfig

FAST = ("psnr", "ssim")


def test_pictures_match_by_name_whatever_their_suffix_and_the_rest_is_listed(written, tmp_path):
    restored = written(tmp_path / "restored", {"a.png": 32, "sub/b.png": 32, "only.png": 32})
    reference = written(tmp_path / "reference", {"a.jpg": 32, "sub/b.bmp": 32, "b.png": 32})
    (restored / "report.json").write_text("{}")  # as `osdface restore` leaves it
    matched = Matched({"restored": str(restored), "reference": str(reference)})
    assert matched.keys == ["a", "sub/b"]
    assert matched.unmatched == {"restored": ["only.png"], "reference": ["b.png"]}
    assert matched.references
    sample = matched[1]
    assert sample.key == "sub/b"
    assert set(sample.pictures) == {"restored"}
    assert sample.reference is not None
    assert sample.reference.shape == (32, 32, 3)


def test_the_digest_is_that_of_the_pictures_which_methods_are_compared_on(written, tmp_path):
    one, other = (written(tmp_path / name, {"1.png": 16, "2.png": 16}) for name in ("one", "other"))
    written(other, {"2.png": 16})  # of other noise
    digest = {folder: Matched({"restored": str(folder)}).digest for folder in (one, other)}
    assert Matched({"restored": str(one)}).digest == digest[one] != digest[other]
    both = [Matched({"restored": str(folder), "reference": str(one)}) for folder in (one, other)]
    assert both[0].digest == both[1].digest
    assert both[0].uri == str(one)
    assert both[0].digest != Matched({"restored": str(one), "reference": str(other)}).digest


@pytest.mark.parametrize(
    ("restored", "reference", "sentence"),
    [
        ({"a.png": 32}, {"b.png": 32}, r"no picture has the same name in both \(restored has a.png, reference has b"),
        ({"a.png": 32, "b.png": 16}, {"a.png": 32, "b.png": 32}, r"restored/b\.png: is 16x16, but its reference 32x32"),
        ({"a.png": 32, "a.jpg": 32}, {"a.png": 32}, r"restored/a\.(png|jpg): a\.(png|jpg) has the same name but"),
    ],
)
def test_what_does_not_go_together_is_named_before_any_work(written, tmp_path, restored, reference, sentence):
    folders = {"restored": written(tmp_path / "restored", restored), "reference": written(tmp_path / "hq", reference)}
    with pytest.raises(UserError, match=sentence):
        Matched({what: str(folder) for what, folder in folders.items()})


def test_what_is_no_picture_is_named(written, tmp_path):
    folder = written(tmp_path / "a", {"1.png": 16})
    (folder / "2.png").write_text("text")
    with pytest.raises(UserError, match=r"a/2\.png: is not a picture"):
        Matched({"restored": str(folder)})
    (folder / "2.png").write_bytes((folder / "1.png").read_bytes()[:200])  # its header is whole
    with pytest.raises(UserError, match=r"a/2\.png: is damaged"):
        Matched({"restored": str(folder)})[1]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "1.csv").write_text("text")
    with pytest.raises(UserError, match="texts: holds no pictures"):
        Matched({"restored": str(tmp_path / "texts")})
    with pytest.raises(UserError, match="gone"):
        Matched({"restored": str(tmp_path / "gone")})


def test_a_restored_folder_is_measured_against_its_references(mlflow_home, written, tmp_path):
    rng = np.random.default_rng(0)
    hq = {f"{i}.png": rng.integers(0, 256, (32, 40, 3), np.uint8) for i in range(3)}
    restored = {name: (image // 2 + 64).astype(np.uint8) for name, image in hq.items()}
    written(tmp_path / "hq", hq)
    written(tmp_path / "restored", restored | {"more.png": 32})
    wanted = Wanted(restored=str(tmp_path / "restored"), reference=str(tmp_path / "hq"), metrics=FAST)
    made = evaluate(wanted, tmp_path / "out")
    expected = [psnr(restored[name], hq[name]) for name in sorted(hq)]
    rows = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    assert [row["restored_psnr"] for row in rows] == pytest.approx(expected)
    assert made["metrics"]["psnr"] == {"restored": pytest.approx(np.mean(expected))}
    assert made["unmatched"] == {"restored": ["more.png"], "reference": []}
    assert made["severity"] == []
    assert made["paired"] == {}
    assert "more.png" in (tmp_path / "out" / "report.html").read_text()


def test_an_output_among_the_pictures_is_refused(written, tmp_path):
    folder = written(tmp_path / "photos", {"1.png": 32})
    for out in (folder, folder / "evaluation"):
        with pytest.raises(UsageError, match="lies in .*photos, whose pictures would include the report's"):
            evaluate(Wanted(no_reference=str(folder)), out)
    assert [file.name for file in folder.iterdir()] == ["1.png"]


def test_pictures_without_references_get_the_metrics_that_need_none(mlflow_home, written, tmp_path):
    folder = written(tmp_path / "photos", {"1.png": 200, "2.png": 224})
    made = evaluate(Wanted(no_reference=str(folder), metrics=("niqe",)), tmp_path / "out")
    assert made["metrics"]["niqe"]["restored"] > 0
    assert made["intervals"]["niqe"]["restored"]["counted"] == 2
    with pytest.raises(UsageError, match="'psnr' compares with reference pictures"):
        evaluate(Wanted(no_reference=str(folder), metrics=("psnr",)), tmp_path / "out")


def test_a_metric_without_any_value_is_said_as_such(mlflow_home, written, tmp_path):
    folder = written(tmp_path / "small", {"1.png": 32, "2.png": 32})
    made = evaluate(Wanted(no_reference=str(folder), metrics=("niqe",)), tmp_path / "out")
    assert made["metrics"]["niqe"] == {"restored": None}
    assert made["intervals"]["niqe"]["restored"]["counted"] == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == made


def test_a_virtual_dataset_has_the_traces_of_a_stored_one(faces_folder, ray_session, tmp_path):
    stores = {}
    for store in ("hq", "virtual"):
        out, split = tmp_path / store, Split(val=0, test=0)
        synthesize(SynthConfig(sources=[faces_folder], out=out, size=64, limit=3, split=split, store=store))
        found = Pairs(str(out), "train")
        stores[store] = {found[i].key: found[i] for i in range(len(found))}
    assert stores["hq"].keys() == stores["virtual"].keys()
    for key, stored in stores["hq"].items():
        assert json.loads(stores["virtual"][key].trace) == json.loads(stored.trace)
        assert np.array_equal(stores["virtual"][key].pictures["lq"], stored.pictures["lq"])
    assert found.digest == read_manifest(tmp_path / "virtual").digest


@pytest.fixture
def three(monkeypatch):
    """A test set of three faces of 32 pixels."""
    made = sets.load("celeba_test").model_copy(update={"files": [3], "size": 32})
    monkeypatch.setattr(sets, "load", lambda name: made)


def _set(written, root: Path, count: int = 3, size: int = 32) -> Path:
    names = {f"{i}.png": size for i in range(count)}
    written(root / "lq", names)
    written(root / "hq", dict(reversed(names.items())))
    return root


def test_a_named_set_is_restored_by_a_model_or_looked_at_as_it_is(mlflow_home, model, three, written, tmp_path):
    root = _set(written, tmp_path / "root")
    wanted = Wanted(set="celeba_test", root=str(root), metrics=FAST)
    as_it_is = evaluate(wanted, tmp_path / "lq")
    assert set(as_it_is["metrics"]["psnr"]) == {"lq"}
    made = evaluate(wanted.model_copy(update={"model": str(model)}), tmp_path / "out")
    assert set(made["metrics"]["psnr"]) == {"lq", "restored"}
    assert made["metrics"]["psnr"]["lq"] == as_it_is["metrics"]["psnr"]["lq"]
    assert made["dataset_digest"] == as_it_is["dataset_digest"]
    assert made["table"]["title"] == "Table 1, CelebA-Test"
    method = evaluate(wanted.model_copy(update={"restored": str(root / "hq")}), tmp_path / "hq")
    assert method["metrics"]["ssim"]["restored"] == pytest.approx(1)


def test_a_named_set_is_refused_where_pictures_are_missing_or_of_another_size(three, written, tmp_path):
    chosen = sets.load("celeba_test")
    with pytest.raises(UserError, match=r"a/lq: has 2 pictures, but CelebA-Test has 3; get self_celeba_512_v2\.zip"):
        chosen.pictures(str(_set(written, tmp_path / "a", count=2)))
    with pytest.raises(UserError, match=r"b/lq: has a picture of 48x48, but CelebA-Test has 32 pixels"):
        chosen.pictures(str(_set(written, tmp_path / "b", size=48)))
    root = _set(written, tmp_path / "c")
    (root / "hq" / "2.png").unlink()
    with pytest.raises(UserError, match="c/hq: has 2 pictures"):
        chosen.pictures(str(root))


def test_every_named_set_is_described():
    assert sets.names() == ["celeba_test", "lfw_test", "webphoto_test", "wider_test"]
    for name in sets.names():
        chosen = sets.load(name)
        assert chosen.size == 512
        assert all("http" in place for place in chosen.get)
    with pytest.raises(UsageError, match="--set celeba: there is no such test set; known: celeba_test, lfw_test"):
        sets.load("celeba")


def test_a_picture_that_lies_on_its_side_has_the_size_that_it_is_shown_at(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "a").mkdir()
    for name in ("1.jpg", "2.png"):
        Image.new("RGB", (20, 30)).save(tmp_path / "a" / name, exif=exif)
    matched = Matched({"restored": str(tmp_path / "a")})
    assert matched.sizes("restored") == {(30, 20)}
    assert [matched[i].pictures["restored"].shape for i in range(2)] == [(20, 30, 3)] * 2
