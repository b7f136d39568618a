"""osdface data, as typed: what each command returns, its one sentence where it fails, and what MLflow keeps."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import cli, console
from osdface.files import sha256
from pipelines import tracking
from pipelines.pairs.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def osdface(capfd):
    """A function that runs a command line with --json; returns what it wrote."""

    def run(*words: object) -> dict:
        capfd.readouterr()
        code = console.run(cli.app, ["data", *map(str, words), "--json"])
        out, err = capfd.readouterr()
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def fails(capfd):
    """A function that runs a command line; returns its exit code and the one sentence it ends with."""

    def run(*words: object) -> tuple[int, str]:
        capfd.readouterr()
        code = console.run(cli.app, ["data", *map(str, words)])
        err = capfd.readouterr().err
        assert "Traceback" not in err
        return code, " ".join(err.split())

    return run


@pytest.fixture(scope="module")
def first(draw, ray_session, tmp_path_factory) -> Path:
    """Ten pictures and a file that is none in in/, their dataset in pairs/; not to be changed."""
    folder = draw(tmp_path_factory.mktemp("command") / "in", range(10)).parent
    (folder / "in" / "notes.txt").write_text("no picture")
    words = [folder / "in", "--out", folder / "pairs", "--size", "32", "--shard-rows", "4", "--variants", "1"]
    assert console.run(cli.app, ["data", "synth", *map(str, words), "--split", "0.2,0.3", "--no-track"]) == 0
    return folder


@pytest.fixture
def pairs(first, tmp_path) -> Path:
    return Path(shutil.copytree(first / "pairs", tmp_path / "pairs"))


class TestSynth:
    def test_options_reach_the_dataset(self, first, tmp_path, osdface):
        made = osdface(
            "synth", first / "in", "--out", tmp_path / "out", "--recipe", "gfpgan", "--variants", 2, "--seed", 5,
            "--size", 24, "--split", "0.25,0.5", "--limit", 4, "--fit", "pad", "--store", "reference", "--hq-format",
            "webp", "--lq-format", "jpeg:90", "--licence", "CC0", "--shard-rows", 3, "--workers", 1, "--no-track",
        )  # fmt: skip
        assert (made["recipe"], made["rows"], made["sources"], made["shards"]) == ("gfpgan", 8, 4, 3)
        manifest = read_manifest(tmp_path / "out")
        spec = manifest.spec.model_dump() | {"recipe": manifest.spec.recipe.name}
        assert spec == {
            "recipe": "gfpgan", "seed": 5, "variants": 2, "size": 24, "fit": "pad", "crop": "none", "val": 0.25,
            "test": 0.5, "store": "reference", "hq_format": "webp", "lq_format": "jpeg:90", "shard_rows": 3,
        }  # fmt: skip
        assert (manifest.digest, manifest.licences) == (made["digest"], ["CC0"])

    def test_dry_run_writes_nothing(self, first, tmp_path, home, osdface):
        said = osdface("synth", first / "in", "--out", tmp_path / "out", "--size", 32, "--dry-run")
        assert (said["pictures"], said["rejects"], said["rows"], said["shards"]) == (10, 1, 20, 1)
        assert said["bytes"] > 0
        assert not (tmp_path / "out").exists()
        assert not home.exists()

    def test_targets(self, first, draw, tmp_path, osdface):
        draw(tmp_path / "twins", range(10))
        words = ["synth", first / "in", "--target", tmp_path / "twins", "--out", tmp_path / "out", "--size", 32]
        assert osdface(*words, "--no-track")["rows"] == 20
        assert pq.read_table(tmp_path / "out" / "shards")["target"].null_count == 0

    @pytest.mark.parametrize(
        ("words", "code", "sentence"),
        [
            (["--max-rejects", "0"], 1, "more than 0 of 11 files are no pictures to use (notes.txt: is not a picture"),
            (["--split", "half"], 2, "'half' is not VAL,TEST, for example 0.05,0.1"),
            (["--split", "0.7,0.7"], 2, "val 0.7 and test 0.7 are more than everything together"),
            (["--fit", "squeeze"], 2, "squeeze"),
            (["--hq-format", "jpeg:0"], 2, "'jpeg:0' is no format"),
            (["--target", "nowhere"], 1, "nowhere: nothing is there"),
            (["--limit", "0"], 2, "limit: Input should be greater than or equal to 1"),
        ],
    )
    def test_ends_with_one_sentence(self, first, tmp_path, fails, words, code, sentence):
        got, said = fails("synth", first / "in", "--out", tmp_path / "out", *words)
        assert (got, sentence in said) == (code, True), said


class TestOthers:
    def test_info_tells_reasons_and_licences(self, pairs, osdface):
        said = osdface("info", pairs)
        assert (said["rows"], said["rejected"], said["licences"]) == (10, {"unknown": 1}, [])
        assert (said["parent"], said["made_by"], said["digest"]) == (None, "synth", read_manifest(pairs).digest)

    def test_regenerate_to_the_same_digest_and_to_another(self, pairs, tmp_path, osdface):
        digest = read_manifest(pairs).digest
        assert osdface("regenerate", pairs, "--out", tmp_path / "again", "--no-track")["digest"] == digest
        other = osdface("regenerate", pairs, "--out", tmp_path / "other", "--recipe", "gfpgan", "--no-track")
        assert (other["recipe"], other["digest"] != digest) == ("gfpgan", True)
        assert osdface("info", tmp_path / "other")["parent"] == digest

    def test_extend_remove_and_diff(self, first, pairs, draw, tmp_path, osdface):
        extended = osdface("extend", pairs, draw(tmp_path / "more", range(20, 23)), "--licence", "CC0", "--no-track")
        assert (extended["rows"], osdface("info", pairs)["licences"]) == (13, ["CC0"])
        hashed = sha256(first / "in" / "5.png")
        said = osdface("remove", pairs, "--source-sha256", hashed, "--dry-run")
        assert (said["rows"], said["shards"], read_manifest(pairs).digest) == (1, 1, extended["digest"])
        assert osdface("remove", pairs, "--source-sha256", hashed, "--no-track")["rows"] == 12
        found = osdface("diff", first / "pairs", pairs)
        assert (found["same"], found["only_first"], found["only_second"], found["common"]) == (False, 1, 3, 9)
        assert osdface("verify", pairs, "--replay", 12)["replayed"] == 12

    def test_card_is_printed_or_written(self, pairs, tmp_path, osdface):
        printed = osdface("card", pairs)["card"]
        osdface("card", pairs, "--out", tmp_path / "card.md")
        assert (tmp_path / "card.md").read_text() == printed == (pairs / "README.md").read_text()

    def test_preview_of_virtual_pairs(self, first, tmp_path, osdface):
        osdface("synth", first / "in", "--out", tmp_path / "v", "--size", 32, "--store", "virtual", "--no-track")
        osdface("preview", tmp_path / "v", "--out", tmp_path / "v.png", "--count", 3)
        assert Image.open(tmp_path / "v.png").size == (268, 418)

    @pytest.mark.parametrize(
        ("words", "code", "sentence"),
        [
            ("regenerate {} --out {}/../x --recipe gfpgam", 1, "recipe 'gfpgam' is neither a file nor one that ships"),
            ("regenerate {} --out {} --seed 4", 2, "a derived dataset needs a folder of its own"),
            ("regenerate {} --out {}/../x --variants 0", 2, "--variants"),
            ("regenerate {} --out {}/../x --workers 0", 2, "workers: Input should be greater than or equal to 1"),
            ("regenerate nowhere --out {}/../x", 1, "nowhere: no such dataset; make one with `osdface data synth`"),
            ("extend {} nowhere", 1, "nowhere: nothing is there; give a folder, archive, list or URL"),
            ("extend {}", 2, "Missing argument 'sources'"),
            ("remove {} --source-sha256 abc", 1, "has no picture whose source_sha256 is abc"),
            ("remove {}", 2, "--source-sha256"),
            ("remove {} --source-sha256 abc --dry-run", 1, "has no picture whose source_sha256 is abc"),
            ("diff {} nowhere", 1, "nowhere: no such dataset"),
            ("card nowhere", 1, "nowhere: no such dataset"),
            ("info s3fs://x/y", 1, "Protocol not known: s3fs"),
        ],
    )
    def test_end_with_one_sentence(self, first, tmp_path, monkeypatch, fails, words, code, sentence):
        monkeypatch.chdir(tmp_path)
        got, said = fails(*words.format(*[first / "pairs"] * words.count("{}")).split())
        assert (got, sentence in said) == (code, True), said


class TestRuns:
    """Each synthesis is an MLflow run; one that found nothing to do is none."""

    def test_keep_counts_rejects_sheets_and_lineage(self, first, draw, tmp_path, mlflow_home, osdface):
        out = tmp_path / "out"
        command = ["synth", first / "in", "--out", out, "--size", 32, "--split", "0.2,0.3", "--variants", 2]
        made = osdface(*command)
        again = osdface(*command)
        assert "run_id" not in again
        more = draw(tmp_path / "more", range(20, 23))
        extended = osdface("extend", out, more)
        client = tracking.client(tracking.uri())
        run = client.get_run(made["run_id"])
        metrics = run.data.metrics
        assert (metrics["rows"], metrics["sources"], metrics["rejects"]) == (20, 10, 1)
        assert metrics["rejects/unknown"] == 1
        assert [metrics[f"rows/{name}"] for name in ("train", "val", "test")] == list(made["splits"].values())
        assert metrics["pairs_per_second"] == pytest.approx(20 / metrics["seconds"])
        assert run.data.params["spec.size"] == "32"
        assert run.info.run_name == f"synth-{made['digest'][:12]}"
        assert made["digest"] in run.data.tags.values()
        sheets = {file.path for file in client.list_artifacts(run.info.run_id, "sheets")}
        assert sheets == {"sheets/pairs.png", "sheets/parameters.png"}
        assert "manifest.json" in {file.path for file in client.list_artifacts(run.info.run_id)}
        path = client.download_artifacts(run.info.run_id, "sheets/pairs.png", str(tmp_path))
        assert Image.open(path).size[0] == 268
        second = client.get_run(extended["run_id"])
        assert second.data.params["parent"] == made["digest"]
        assert second.data.metrics["pairs_per_second"] == pytest.approx(6 / second.data.metrics["seconds"])

    def test_of_virtual_pairs_have_no_parameters_to_show(self, first, tmp_path, mlflow_home, osdface):
        made = osdface("synth", first / "in", "--out", tmp_path / "out", "--size", 32, "--store", "virtual")
        client = tracking.client(tracking.uri())
        assert {file.path for file in client.list_artifacts(made["run_id"], "sheets")} == {"sheets/pairs.png"}

    def test_a_server_that_does_not_answer_is_named_and_the_dataset_stays(
        self, first, tmp_path, monkeypatch, free_port, fails
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
        code, said = fails("synth", first / "in", "--out", tmp_path / "out", "--size", 32)
        assert (code, f"MLflow at http://127.0.0.1:{free_port}: does not answer" in said) == (1, True), said
        assert read_manifest(tmp_path / "out").counts.rows == 20
