"""osdface models list, show, compare, lineage, promote, history and rollback, from the command line."""

import json

import pytest

from jobs import console
from jobs.cli import app
from jobs.commands import models
from osdface.errors import UsageError
from pipelines import registry, tracking
from pipelines.serve import live
from tests.promotion import Fake

D = "d" * 64


@pytest.fixture
def versions(mlflow_home, with_provenance, monkeypatch):
    """Two versions, both evaluated: 30 and 28 dB. No endpoint runs."""
    monkeypatch.setattr(live, "endpoints", lambda url=None: [])
    for name, psnr in (("a", 30.0), ("b", 28.0)):
        registry.register(with_provenance(name, dataset_digest=name * 64), metrics={"psnr": psnr}, evaluated_on=D)
    registry.promote("1")
    return registry.versions()


@pytest.fixture
def gates(tmp_path):
    """A gate file that asks for PSNR."""
    file = tmp_path / "gates.yaml"
    file.write_text("metrics: {psnr: {max_regression: 0.5}}")
    return file


def answer(capfd, *words: str) -> dict:
    code = console.run(app, ["models", *words, "--json"])
    out, err = capfd.readouterr()
    return json.loads(out) | {"code": code, "said": err}


def test_versions_are_listed_shown_compared_and_traced(versions, capfd, tmp_path):
    told = answer(capfd, "list")
    assert [(one["version"], one["aliases"]) for one in told["versions"]] == [("1", ["champion"]), ("2", [])]
    assert "psnr 30" in told["said"]
    for ref in ("1", "champion", "models:/osdface/1", "models:/osdface@champion"):
        assert answer(capfd, "show", ref)["evaluations"] == [{"dataset": D, "figures": {"psnr": 30.0}}]
    told = answer(capfd, "compare", "2", "champion")
    assert (told["dataset"], told["metrics"]) == (D, {"psnr": {"one": 28.0, "other": 30.0, "better": "other"}})
    assert told["differs"]["dataset_digest"] == {"one": "b" * 64, "other": "a" * 64}
    assert "preset" not in told["differs"]
    told = answer(capfd, "lineage", "2")
    assert (told["version"], told["dataset_digest"]) == ("models:/osdface/2", "b" * 64)
    assert "dataset_digest  " + "b" * 64 in told["said"]
    headers = tmp_path / "headers"
    headers.write_text(f"HTTP/1.1 200 OK\r\nX-Model-Version: 2\r\nX-Dataset-Digest: {'b' * 64}\r\n")
    told = answer(capfd, "lineage", "--response-headers", str(headers))
    assert (told["version"], told["answer"]["version"]) == ("models:/osdface/2", "2")
    assert answer(capfd, "lineage")["code"] == 2
    assert answer(capfd, "lineage", "2", "--response-headers", str(headers))["code"] == 2


@pytest.mark.parametrize(
    ("ref", "sentence"),
    [("7", "no such version"), ("first", "no such version"), ("challenger", "no version of 'osdface' has")],
)
def test_a_version_that_is_not_there(versions, capfd, ref, sentence):
    for words in (["show", ref], ["compare", "1", ref], ["promote", ref]):
        told = answer(capfd, *words)
        assert (told["code"], sentence in told["error"]) == (1, True), told


def test_what_gates_refuse_is_a_table(versions, gates, capfd):
    for words in (["--dry-run"], []):
        told = answer(capfd, "promote", "2", "--gates", str(gates), *words)
        assert told["code"] == 1
        assert "psnr: 28, wanted at least 29.5, the champion's 30 and 0.5" in told["error"]
        assert {check["gate"]: check["passed"] for check in told["checks"]}["psnr"] is False
        assert "at least 29.5" in told["said"]
        assert registry.aliases() == {"champion": "1"}
    assert [one["outcome"] for one in answer(capfd, "history")["attempts"]] == ["refused"]


def test_a_version_goes_up_and_comes_back(versions, gates, capfd):
    gate = ["--gates", str(gates), "--set", "metrics.psnr.max_regression=3"]
    assert answer(capfd, "promote", "2", *gate, "--dry-run")["outcome"] == "would be promoted"
    told = answer(capfd, "promote", "2", *gate)
    assert (told["code"], told["outcome"], told["former"]) == (0, "promoted", "1")
    assert "no endpoint runs here: only the alias has moved" in told["said"]
    told = answer(capfd, "rollback", "--why", "glasses vanish")
    assert (told["code"], told["version"]) == (0, "1")
    told = answer(capfd, "history")
    assert [(one["action"], one["why"]) for one in told["attempts"]] == [
        ("rollback", "glasses vanish"),
        ("promote", ""),
    ]
    assert "glasses vanish" in told["said"]
    told = answer(capfd, "rollback")
    assert (told["code"], "no previous champion" in told["error"]) == (1, True)
    assert answer(capfd, "promote", "2", "--force")["code"] == 2
    told = answer(capfd, "promote", "2", "--gates", str(gates), "--force", "--why", "the old data")
    assert (told["outcome"], [c["gate"] for c in told["checks"] if not c["passed"]]) == ("promoted", ["psnr"])


def test_a_canary_on_an_endpoint(versions, capfd, monkeypatch):
    fake = Fake("1")
    monkeypatch.setattr(live, "endpoints", lambda url=None: [fake])
    told = answer(capfd, "promote", "2", "--force", "--why", "w", "--canary", "10%", "--for", "0.1s")
    assert told["endpoints"] == [fake.url], told
    assert ("stage", "2", 0.1, False) in fake.log
    assert "10% of the traffic for 0 s" in told["said"]


def test_a_first_version_without_an_evaluation_passes_the_default_gates(mlflow_home, bundle_folder, capfd, monkeypatch):
    """As in the demo, whose model is whatever minutes of training make of it."""
    monkeypatch.setattr(live, "endpoints", lambda url=None: [])
    registry.register(bundle_folder)
    told = answer(capfd, "promote", "1")
    assert (told["code"], told["outcome"]) == (0, "promoted"), told
    assert {check["gate"] for check in told["checks"]} == {"bundle", "evaluation", "trial"}
    assert tracking.client(tracking.uri()).get_registered_model("osdface").aliases == {"champion": 1}


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.1", 0.1), ("100%", 1), ("1", 1)])
def test_shares(text, share):
    assert models._share(text) == pytest.approx(share)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("1h", 3600), ("2", 2), ("0.5m", 30)])
def test_times(text, seconds):
    assert models._seconds(text) == seconds


@pytest.mark.parametrize("text", ["0%", "101%", "ten", "-1", "nan", "", "%"])
def test_what_is_no_share(text):
    with pytest.raises(UsageError, match="--canary"):
        models._share(text)


@pytest.mark.parametrize("text", ["0s", "-1m", "ten", "nan", "", "h", "9999h"])
def test_what_is_no_time(text):
    with pytest.raises(UsageError, match="--for"):
        models._seconds(text)
