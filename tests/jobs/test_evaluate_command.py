"""osdface evaluate: --require, and wrong use."""

import json
from typing import get_args, get_type_hints

import pytest

from jobs import console
from jobs.cli import app
from jobs.commands import evaluate as command
from pipelines import evaluate as pipeline
from pipelines.metrics import METRICS


@pytest.fixture
def report(monkeypatch) -> dict:
    """What the pipeline would return."""
    made = {"metrics": {"psnr": {"lq": 20.0, "restored": 24.0, "against": 23.0}}}
    monkeypatch.setattr(pipeline, "evaluate", lambda *arguments: made)
    return made


def evaluate(capsys, *words: str) -> tuple[int, dict]:
    code = console.run(app, ["evaluate", "--model", "m", "--data", "d", "--out", "o", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_requirement_that_is_met(report, capsys):
    assert evaluate(capsys, "--against", "untrained", "--require", "psnr") == (0, report)


@pytest.mark.parametrize("theirs", [24.0, 25.0, float("nan")])
def test_a_requirement_that_is_not_met_fails_with_both_numbers(report, theirs, capsys):
    report["metrics"]["psnr"]["against"] = theirs
    code, result = evaluate(capsys, "--against", "untrained", "--require", "psnr")
    assert code == 1
    assert f"psnr 24.000 does not beat {theirs:.3f} of 'untrained'" in result["error"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--require", "psnr"], "give --against too"),
        (["--against", "untrained", "--require", "fidd"], "'--require'"),
        (["--split", "tst"], "'tst' is not one of"),
    ],
)
def test_wrong_use(report, words, sentence, capsys):
    code, result = evaluate(capsys, *words)
    assert code == 2
    assert sentence in result["error"]


def test_every_metric_can_be_required():
    choice, _ = get_args(get_type_hints(command.evaluate)["require"])
    assert set(get_args(choice)) == set(METRICS)
