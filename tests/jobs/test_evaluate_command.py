"""osdface evaluate: what reaches the pipeline, --require, and wrong use."""

import json

import pytest

from jobs import console
from jobs.cli import app
from pipelines.evaluation import run


@pytest.fixture
def report(monkeypatch) -> dict:
    """What the pipeline would return."""
    interval = {"value": 24.0, "low": 23.5, "high": 24.5, "counted": 9}
    none = {"value": None, "low": None, "high": None, "counted": 0}
    made = {
        "against": "untrained",
        "metrics": {
            "psnr": {"lq": 20.0, "restored": 24.0, "against": 23.0},
            "lpips.vgg": {"lq": 0.4, "restored": 0.3, "against": 0.35},
            "niqe": {"lq": None, "restored": None, "against": None},
        },
        "intervals": {"psnr": {"restored": interval}, "lpips.vgg": {"restored": interval}, "niqe": {"restored": none}},
        "labels": {
            "psnr": {"better": "higher"},
            "lpips.vgg": {"better": "lower"},
            "niqe": {"better": "lower"},
        },
        "missing": [{"name": "dists", "file": "DISTS.pth", "where": "weights"}],
        "pairs": 9,
        "wanted": None,
    }

    def evaluate(wanted, out, progress) -> dict:
        wanted.check()
        made["wanted"] = wanted.model_dump(exclude_none=True)
        return made

    monkeypatch.setattr(run, "evaluate", evaluate)
    return made


def evaluate(capsys, *words: str) -> tuple[int, dict]:
    code = console.run(app, ["evaluate", "--model", "m", "--data", "d", "--out", "o", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("metric", ["psnr", "lpips.vgg"])
def test_a_requirement_that_is_met(report, metric, capsys):
    assert evaluate(capsys, "--against", "untrained", "--require", metric) == (0, report)


@pytest.mark.parametrize(
    ("metric", "theirs", "sentence"),
    [
        ("psnr", 24.0, "psnr 24.000 does not beat 24.000 of 'untrained'; see o/report.html"),
        ("psnr", 25.0, "psnr 24.000 does not beat 25.000"),
        ("psnr", float("nan"), "psnr 24.000 does not beat nan"),
        ("lpips.vgg", 0.25, "lpips.vgg 0.300 does not beat 0.250"),
        ("niqe", None, "niqe has no value for these pictures"),
    ],
)
def test_a_requirement_that_is_not_met_fails_with_both_numbers(report, metric, theirs, sentence, capsys):
    report["metrics"][metric]["against"] = theirs
    code, result = evaluate(capsys, "--against", "untrained", "--require", metric)
    assert code == 1
    assert sentence in result["error"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--require", "psnr"], "--require goes with --against"),
        (["--split", "tst"], "'tst' is not one of"),
        (["--workers", "0"], "--workers"),
        (["--restored", "r", "--reference", "h"], "here --data, --reference"),
        (["--set", "lfw_test"], "here --data, --set"),
    ],
)
def test_wrong_use(report, words, sentence, capsys):
    code, result = evaluate(capsys, *words)
    assert code == 2
    assert sentence in result["error"]


def test_options_reach_the_pipeline(report, capsys):
    words = ["--set", "lfw_test", "--root", "r", "--restored", "s", "--metrics", "niqe,musiq", "--workers", "3"]
    assert console.run(app, ["evaluate", "--out", "o", *words]) == 0
    assert report["wanted"] == {
        "set": "lfw_test", "root": "r", "restored": "s", "metrics": ("niqe", "musiq"), "workers": 3
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "psnr       restored 24.000 [23.500, 24.500]" in printed
    assert "niqe       restored no value  (0 of 9 pictures count)" in printed
    assert "dists: left out, needs DISTS.pth" in printed
