"""A model on a pair dataset: what is measured, written, logged, and refused."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image

from osdface import bundle
from osdface.errors import UsageError, UserError
from osdface.imagefile import read_image
from osdface.restorer import Restorer
from pipelines import registry, report, tracking
from pipelines.evaluation import measure
from pipelines.evaluation.run import evaluate
from pipelines.evaluation.statistics import bootstrap, paired
from pipelines.evaluation.summary import flat_metrics
from pipelines.evaluation.wanted import Wanted
from pipelines.metrics import psnr, ssim
from pipelines.pairs.manifest import read_manifest
from pipelines.synthesize.build import synthesize
from pipelines.synthesize.config import Split, SynthConfig

FAST = ("psnr", "ssim")
WITH_A_NETWORK = (*FAST, "dists.dlib")
FILES = ("metrics.json", "rows.parquet", "report.html", "sheet.png", "best.png", "worst.png")


def on(model: Path | str, pairs: Path, **more: Any) -> Wanted:
    """The model on a split of the pairs, by the metrics that take no time."""
    return Wanted(**{"model": str(model), "data": str(pairs), "metrics": FAST} | more)


class Evaluated(NamedTuple):
    out: Path
    report: dict[str, Any]
    uri: str
    events: list[tuple]


@pytest.fixture(scope="module")
def evaluated(model, pairs, tmp_path_factory) -> Evaluated:
    """The test split by that model and by the same one untrained."""
    home = tmp_path_factory.mktemp("home")
    events: list[tuple] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSDFACE_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        wanted = on(model, pairs, against="untrained", metrics=WITH_A_NETWORK)
        made = evaluate(wanted, home / "out", progress=lambda *e: events.append(e))
    return Evaluated(home / "out", made, f"sqlite:///{home}/mlflow.db", events)


@pytest.fixture
def same_server(evaluated, monkeypatch) -> Path:
    """Tracking by the server of `evaluated`, whose tables are there."""
    monkeypatch.setenv("OSDFACE_HOME", str(evaluated.out.parent))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", evaluated.uri)
    return evaluated.out.parent


def test_rows_hold_the_metrics_of_every_pair_of_the_split(evaluated, pairs, model):
    table = pq.read_table(evaluated.out / "rows.parquet").to_pylist()
    stored = {row["key"]: row for path in (pairs / "shards").iterdir() for row in pq.read_table(path).to_pylist()}
    keys = [key for key, row in stored.items() if row["split"] == "test"]
    assert sorted(row["key"] for row in table) == sorted(keys)
    row = table[0]
    lq, hq = (read_image(stored[row["key"]][name]) for name in ("lq", "hq"))
    assert row["lq_psnr"] == pytest.approx(psnr(lq, hq))
    assert row["lq_ssim"] == pytest.approx(ssim(lq, hq))
    restored = Restorer.load(model)(lq, "aligned", output_type="array").image
    assert row["restored_psnr"] == pytest.approx(psnr(restored, hq), abs=0.02)
    assert row["against_psnr"] != row["restored_psnr"]
    assert row["trace"] == stored[row["key"]]["trace"]
    assert row["severity"] == pytest.approx(report.severity(row["trace"]))


def test_the_report_is_the_means_and_where_they_come_from(evaluated, pairs, model):
    assert json.loads((evaluated.out / "metrics.json").read_text()) == evaluated.report
    table = pq.read_table(evaluated.out / "rows.parquet")
    for name in ("psnr", "ssim"):
        for which in ("lq", "restored", "against"):
            column = table.column(f"{which}_{name}").to_numpy()
            assert evaluated.report["metrics"][name][which] == pytest.approx(np.mean(column))
    assert evaluated.report["pairs"] == table.num_rows
    assert evaluated.report["dataset_digest"] == read_manifest(pairs).digest
    assert evaluated.report["bundle_digest"] == bundle.digest(model)
    assert evaluated.events[-1] == ("evaluate", table.num_rows, table.num_rows)


def test_figures_have_intervals_and_models_are_compared_picture_by_picture(evaluated):
    table = pq.read_table(evaluated.out / "rows.parquet")
    ours, theirs = (table.column(f"{which}_psnr").to_numpy() for which in ("restored", "against"))
    assert evaluated.report["intervals"]["psnr"]["restored"] == {**bootstrap(ours)._asdict(), "counted": len(ours)}
    compared = evaluated.report["paired"]["against"]["psnr"]
    expected = paired(ours, theirs, "higher")
    assert compared["win_rate"] == expected.win_rate
    assert compared["difference"] == expected.difference._asdict()
    assert set(evaluated.report["paired"]) == {"lq", "against"}


def test_thirds_by_severity_hold_every_pair_once(evaluated):
    severities = np.sort(pq.read_table(evaluated.out / "rows.parquet").column("severity").to_numpy())
    thirds = evaluated.report["severity"]
    assert [third["part"] for third in thirds] == ["mild", "medium", "severe"]
    assert sum(third["pictures"] for third in thirds) == len(severities)
    assert thirds[0]["from"] == severities[0]
    assert thirds[2]["to"] == severities[-1]
    assert thirds[0]["to"] <= thirds[1]["from"]
    means = [third["metrics"]["psnr"]["lq"]["value"] * third["pictures"] for third in thirds]
    assert sum(means) / len(severities) == pytest.approx(evaluated.report["metrics"]["psnr"]["lq"])


def test_the_sheets_have_a_row_for_each_face_that_is_shown(evaluated):
    step, pairs = 192 + report.MARGIN, evaluated.report["pairs"]
    for name, rows in (("sheet", 6), ("best", min(20, (pairs + 1) // 2)), ("worst", min(20, (pairs + 1) // 2))):
        assert Image.open(evaluated.out / f"{name}.png").size == (4 * step + report.MARGIN, report.TITLE + rows * step)


def test_it_is_a_run_of_its_experiment_with_everything_it_was_made_of(evaluated, pairs):
    client = MlflowClient(evaluated.uri)
    run = client.get_run(evaluated.report["run_id"])
    assert client.get_experiment(run.info.experiment_id).name == "osdface/evaluate"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["psnr"] == pytest.approx(evaluated.report["metrics"]["psnr"]["restored"])
    assert run.data.tags["osdface.dataset_digest"] == read_manifest(pairs).digest
    assert run.data.tags["osdface.run.osd"] == "0123abcd"
    assert run.data.params["bundle_digest"] == evaluated.report["bundle_digest"]
    assert run.data.params["bundle.preset"] == "tiny"
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id, "evaluation")}
    assert artifacts == {f"evaluation/{name}" for name in FILES}
    assert run.data.metrics["against_ssim/low"] < run.data.metrics["against_ssim"]
    assert run.data.metrics["win_rate/lq/psnr"] == evaluated.report["paired"]["lq"]["psnr"]["win_rate"]
    (entry,) = run.inputs.dataset_inputs
    assert entry.dataset.name == "pairs"
    assert entry.dataset.digest == read_manifest(pairs).digest[: tracking.DIGEST_LENGTH]
    assert [tag.value for tag in entry.tags] == ["evaluation"]


def test_of_a_registered_model_they_are_the_logged_models_on_that_dataset(same_server, model, pairs, tmp_path):
    version = registry.register(model)
    made = evaluate(on(model, pairs, split="val"), tmp_path / "out")
    client = MlflowClient(tracking.uri())
    logged = client.get_logged_model(
        client.get_model_version(version.name, version.version).source.removeprefix("models:/")
    )
    found = {metric.key: metric for metric in logged.metrics}
    assert found["psnr"].value == pytest.approx(made["metrics"]["psnr"]["restored"])
    assert found["lq_ssim"].value == pytest.approx(made["metrics"]["ssim"]["lq"])
    assert found["psnr"].dataset_name == "pairs"
    assert found["psnr"].dataset_digest == read_manifest(pairs).digest[: tracking.DIGEST_LENGTH]
    assert [entry.model_id for entry in client.get_run(made["run_id"]).inputs.model_inputs] == [logged.model_id]


def test_the_registry_gets_the_metrics_flat(evaluated, tmp_path):
    flat = flat_metrics(evaluated.out / "metrics.json")
    assert flat["psnr"] == evaluated.report["metrics"]["psnr"]["restored"]
    assert flat["lq_ssim"] == evaluated.report["metrics"]["ssim"]["lq"]
    other = tmp_path / "other.json"
    for text in ("{", "[]", '{"metrics": {"psnr": 3}}'):
        other.write_text(text)
        with pytest.raises(UserError, match=r"other\.json: not the metrics\.json"):
            flat_metrics(other)
    with pytest.raises(UserError, match="gone"):
        flat_metrics(tmp_path / "gone")


def test_pictures_of_a_model_of_another_size_are_compared_at_the_pairs_size(
    same_server, model, pairs, tmp_path, monkeypatch
):
    load = Restorer.load

    def larger(*arguments, **options) -> Restorer:
        restorer = load(*arguments, **options)
        restorer.size = 128
        return restorer

    monkeypatch.setattr(Restorer, "load", larger)
    made = evaluate(on(model, pairs, split="val"), tmp_path / "out")
    assert made["pairs"] == read_manifest(pairs).counts.splits["val"]
    assert set(made["metrics"]["psnr"]) == {"lq", "restored"}
    assert made["metrics"]["psnr"]["restored"] > 0


def test_what_is_cut_off_is_unfinished_also_where_an_earlier_one_was_not(
    same_server, model, pairs, tmp_path, monkeypatch
):
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "metrics.json").write_text("{}")
    monkeypatch.setattr(report, "save_png", full)
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written .No space left"):
        evaluate(on(model, pairs, split="val"), tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    client = MlflowClient(f"sqlite:///{same_server}/mlflow.db")
    experiment = client.get_experiment_by_name("osdface/evaluate")
    assert client.search_runs([experiment.experiment_id], max_results=1)[0].info.status == "FAILED"


@pytest.mark.parametrize("missing", ["nowhere", "models:/nobody/1", "models:/nobody@champion"])
def test_a_model_that_is_not_there_is_named_and_nothing_is_made(same_server, pairs, model, tmp_path, missing):
    for wanted in (on(missing, pairs), on(model, pairs, against=missing)):
        with pytest.raises(UserError, match=missing.rpartition("/")[0] or missing):
            evaluate(wanted, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_without_pairs_is_named_with_those_there_are(same_server, model, faces_folder, pairs, tmp_path):
    synthesize(
        SynthConfig(sources=[faces_folder], out=tmp_path / "pairs", size=64, limit=4, split=Split(val=0, test=0))
    )
    with pytest.raises(UserError, match="its val split is empty.*'train': 4"):
        evaluate(on(model, tmp_path / "pairs", split="val"), tmp_path / "out")
    with pytest.raises(UserError, match="gone: no such dataset"):
        evaluate(on(model, tmp_path / "gone"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wishes", "sentence"),
    [({"metrics": ("psnrr",)}, "'psnrr' does not exist; known: psnr"), ({"require": "niqe"}, "niqe: is none of")],
)
def test_a_metric_that_there_is_not_is_named(same_server, model, pairs, tmp_path, wishes, sentence):
    with pytest.raises(UsageError, match=sentence):
        evaluate(on(model, pairs, against="untrained", **wishes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_any_metric_the_files_that_are_needed_are_named(same_server, model, pairs, tmp_path):
    with pytest.raises(UserError, match="no metric can be computed: musiq needs musiq_koniq_ckpt"):
        evaluate(on(model, pairs, metrics=("musiq",)), tmp_path / "out")


def test_an_output_that_cannot_be_written_is_named_before_the_work(same_server, model, pairs, tmp_path):
    (tmp_path / "file").write_text("")
    events: list[tuple] = []
    with pytest.raises(UserError, match="file/out: cannot be written"):
        evaluate(on(model, pairs), tmp_path / "file" / "out", progress=lambda *event: events.append(event))
    assert events == []


def test_two_workers_give_the_numbers_of_one(evaluated, same_server, model, pairs, tmp_path, monkeypatch):
    made = evaluate(on(model, pairs, against="untrained", metrics=WITH_A_NETWORK, workers=2), tmp_path)
    _same(made, evaluated.report)
    ours, theirs = (pq.read_table(folder / "rows.parquet").to_pylist() for folder in (tmp_path, evaluated.out))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, abs=1e-6)
    for name in ("best.png", "worst.png", "sheet.png"):
        assert (tmp_path / name).read_bytes() == (evaluated.out / name).read_bytes()


def _same(made: Any, other: Any) -> None:
    """Numbers within 1e-6, everything else equal, but for the run."""
    if isinstance(made, dict):
        assert made.keys() == other.keys()
        for key in made.keys() - {"run_id"}:
            _same(made[key], other[key])
    elif isinstance(made, float):
        assert made == pytest.approx(other, abs=1e-6)
    else:
        assert made == other


def test_chunks_are_of_the_pictures_alone():
    assert [list(chunk) for chunk in measure.chunks(range(20))] == [list(range(16)), list(range(16, 20))]
