"""Evaluation: what is measured, written, logged, and refused."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from osdface import bundle, presets
from osdface.base import load_base, new_base, save_base
from osdface.errors import UserError
from osdface.generator import OneStepGenerator
from osdface.imagefile import read_image
from osdface.prompts.vre import VisualEmbedder
from osdface.restorer import Restorer
from pipelines import report
from pipelines.evaluate import evaluate, flat_metrics
from pipelines.metrics import psnr, ssim
from pipelines.pairs.manifest import read_manifest

TINY = presets.preset("tiny")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A bundle of random weights, its adapters not zero."""
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    save_base(new_base(TINY), folder / "base")
    generator = OneStepGenerator.from_parts(TINY, load_base(folder / "base"), VisualEmbedder(TINY.vre), seed=1)
    for name, parameter in generator.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    provenance = bundle.Provenance(runs={"osd": "0123abcd"}, dataset_digest="d")
    bundle.save(generator, folder / "model", preset="tiny", seed=1, base=folder / "base", provenance=provenance)
    return folder / "model"


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
        made = evaluate(str(model), pairs, home / "out", against="untrained", progress=lambda *e: events.append(e))
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


def test_the_sheet_has_three_columns_and_a_row_for_each_of_six_pairs(evaluated):
    step = 192 + report.MARGIN
    size = Image.open(evaluated.out / "sheet.png").size
    assert size == (3 * step + report.MARGIN, report.TITLE + 6 * step)


def test_it_is_a_run_of_its_experiment_with_everything_it_was_made_of(evaluated, pairs):
    client = MlflowClient(evaluated.uri)
    run = client.get_run(evaluated.report["run_id"])
    assert client.get_experiment(run.info.experiment_id).name == "osdface/evaluate"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["restored_psnr"] == pytest.approx(evaluated.report["metrics"]["psnr"]["restored"])
    assert run.data.tags["osdface.dataset_digest"] == read_manifest(pairs).digest
    assert run.data.tags["osdface.run.osd"] == "0123abcd"
    assert run.data.params["bundle_digest"] == evaluated.report["bundle_digest"]
    assert run.data.params["bundle.preset"] == "tiny"
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id, "evaluation")}
    assert artifacts == {f"evaluation/{name}" for name in ("metrics.json", "rows.parquet", "sheet.png")}


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
    made = evaluate(str(model), pairs, tmp_path / "out", split="val")
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
        evaluate(str(model), pairs, tmp_path, split="val")
    assert not (tmp_path / "metrics.json").exists()
    client = MlflowClient(f"sqlite:///{same_server}/mlflow.db")
    experiment = client.get_experiment_by_name("osdface/evaluate")
    assert client.search_runs([experiment.experiment_id], max_results=1)[0].info.status == "FAILED"


@pytest.mark.parametrize("missing", ["nowhere", "models:/nobody/1", "models:/nobody@champion"])
def test_a_model_that_is_not_there_is_named_and_nothing_is_made(same_server, pairs, model, tmp_path, missing):
    for words in ({"model": missing}, {"model": str(model), "against": missing}):
        with pytest.raises(UserError, match=missing.rpartition("/")[0] or missing):
            evaluate(data=pairs, out=tmp_path / "out", **words)
    assert not (tmp_path / "out").exists()


def test_a_split_without_pairs_is_named_with_those_there_are(same_server, model, pairs, tmp_path):
    with pytest.raises(UserError, match="its holdout split is empty.*'train'"):
        evaluate(str(model), pairs, tmp_path / "out", split="holdout")
    with pytest.raises(UserError, match="gone: no such dataset"):
        evaluate(str(model), tmp_path / "gone", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_named_before_the_work(same_server, model, pairs, tmp_path):
    (tmp_path / "file").write_text("")
    events: list[tuple] = []
    with pytest.raises(UserError, match="file/out: cannot be written"):
        evaluate(str(model), pairs, tmp_path / "file" / "out", progress=lambda *event: events.append(event))
    assert events == []
