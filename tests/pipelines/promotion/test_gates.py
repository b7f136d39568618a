"""Gate files, and what the gates find before any endpoint is asked."""

import pytest

from jobs import gates as gate_files
from osdface import bundle
from osdface.config import load
from osdface.errors import UsageError, UserError
from pipelines import registry, tracking
from pipelines.evaluation import run as evaluation
from pipelines.evaluation.wanted import Wanted
from pipelines.pairs.manifest import read_manifest
from pipelines.promotion import evaluations, judging, trial
from pipelines.promotion.checks import failed
from pipelines.promotion.gates import Bound, Gates, Live, Trial
from pipelines.serve.live import Observed
from tests.promotion import FREE, not_a_number, too_short

pytestmark = pytest.mark.usefixtures("mlflow_home")
D, E = "d" * 64, "e" * 64


def before(gates: Gates, version, champion=None) -> list:
    return judging.before(gates, version, champion, lambda text: None)


def sentences(checks) -> str:
    return "; ".join(check.sentence() for check in failed(checks))


def test_shipped_gates_parse_and_the_defaults_of_the_program_ask_for_no_metric():
    for name in ("default", "release"):
        assert load(Gates, gate_files.find(name)).metrics["psnr"].max_regression is not None
    assert load(Gates, gate_files.find("sound")) == Gates()
    assert load(Gates, gate_files.find("release")).live.requests == 100
    assert Gates().metrics == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("metrics: {psnrr: {min: 2}}", "metrics: no metric 'psnrr'; known: .*psnr"),
        ("metrics: {psnr: {mini: 2}}", "metrics.psnr: unknown key 'mini'; did you mean 'min'"),
        ("metrics: {psnr: {max_regression: -1}}", "metrics.psnr.max_regression: .*greater than or equal to 0"),
        ("live: {errors: 2}", "live.errors: .*less than or equal to 1"),
        ("licences: {use: fun}", "licences.use: "),
        ("trial: {pictures: 1}", "trial.pictures: "),
        ("dataset: abc", "dataset: .*at least 8 characters"),
    ],
)
def test_a_fault_of_a_gate_file_is_named(tmp_path, text, sentence):
    file = tmp_path / "gates.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"gates.yaml: {sentence}"):
        load(Gates, gate_files.find(str(file)))
    with pytest.raises(UsageError, match="neither a file nor one of default, release, sound"):
        gate_files.find("strict")


def test_a_first_version_needs_no_evaluation_for_what_is_relative(versions):
    gates = Gates(metrics={"psnr": Bound(max_regression=0.5)}, trial=None)
    assert failed(before(gates, versions[0])) == []
    assert "evaluation: none, wanted on any dataset (osdface evaluate --model models:/osdface/2" in sentences(
        before(gates, versions[1], versions[0])
    )


def test_a_metric_must_reach_its_bounds(versions, evaluated):
    evaluated(versions[0], D, psnr=21.5, lpips__vgg=0.4)
    bounds = {"psnr": Bound(min=22), "lpips.vgg": Bound(max=0.5), "ssim": Bound(min=0.1)}
    found = before(FREE.model_copy(update={"metrics": bounds}), versions[0])
    assert sentences(found) == "psnr: 21.5, wanted at least 22; ssim: not measured, wanted at least 0.1"


@pytest.mark.parametrize(
    ("name", "theirs", "ours", "limit", "passes"),
    [
        ("psnr", 22.0, 21.6, 0.5, True),
        ("psnr", 22.0, 21.4, 0.5, False),
        ("psnr", 22.0, 30.0, 0.0, True),
        ("lpips__vgg", 0.30, 0.31, 0.02, True),
        ("lpips__vgg", 0.30, 0.33, 0.02, False),
        ("lpips__vgg", 0.30, 0.10, 0.0, True),
        ("identity__procedural", 0.8, 0.7, 0.02, False),
    ],
)
def test_a_metric_must_not_be_worse_than_the_champions_by_more(versions, evaluated, name, theirs, ours, limit, passes):
    evaluated(versions[0], D, **{name: theirs})
    evaluated(versions[1], D, **{name: ours})
    gates = FREE.model_copy(update={"metrics": {name.replace("__", "."): Bound(max_regression=limit)}})
    assert (failed(before(gates, versions[1], versions[0])) == []) == passes


def test_not_a_number_passes_nothing(versions):
    judged = evaluations.Evaluated(D, {"psnr": float("nan")})
    bound = Bound(min=0, max=100, max_regression=50)
    assert [check.passed for check in judging.metric("psnr", bound, judged, {"psnr": 20})] == [False] * 3


def test_a_family_is_all_of_its_metrics_that_were_measured(versions):
    judged = evaluations.Evaluated(D, {"lpips.vgg": 0.3, "lpips.alex": 0.5, "lpips.vgg/low": 9, "lq_lpips.vgg": 9})
    checks = judging.metric("lpips", Bound(max=0.4), judged, None)
    assert {check.gate: check.passed for check in checks} == {"lpips.alex": False, "lpips.vgg": True}


def test_only_evaluations_on_one_dataset_are_compared(versions, evaluated):
    gates = FREE.model_copy(update={"metrics": {"psnr": Bound(max_regression=0.5)}})
    first, second, _ = versions
    evaluated(first, E, psnr=30)
    evaluated(second, D, psnr=20)
    assert (
        "psnr: 20, wanted 0.5 worse than the champion at most (evaluate the champion on the same dataset in this metric"
        in sentences(before(gates, second, first))
    )
    evaluated(second, E, psnr=29.8)
    evaluated(second, D, psnr=20.1)  # newer, but not the champion's
    assert failed(before(gates, second, first)) == []
    evaluated(first, D, split="val", psnr=5)
    asked = gates.model_copy(update={"dataset": D[:10]})
    assert failed(before(asked, second, None)) == []
    assert "psnr: 20.1, wanted 0.5 worse" in sentences(before(asked, second, first))


def test_the_required_dataset_must_have_been_evaluated_on(versions, evaluated):
    evaluated(versions[0], D, psnr=30)
    gates = FREE.model_copy(update={"dataset": E})
    assert sentences(before(gates, versions[0])).startswith(f"evaluation: {D[:12]}, wanted on dataset {E[:12]} (osd")
    assert failed(before(gates.model_copy(update={"dataset": D}), versions[0])) == []


def test_the_newest_figure_counts_and_an_unfinished_evaluation_does_not(versions, evaluated):
    version = versions[0]
    evaluated(version, D, psnr=20, ssim=0.5)
    evaluated(version, D, psnr=21)
    killed = evaluated(version, D, psnr=99)
    tracking.client(tracking.uri()).set_terminated(killed, "KILLED")
    assert evaluations.of(version) == [evaluations.Evaluated(D, {"psnr": 21, "ssim": 0.5})]


def test_a_real_evaluation_is_what_gates_read(bundle_folder, pairs, tmp_path):
    """Whether it came before the registration, as in the demo, or not, and whatever the version was registered with."""
    out = tmp_path / "evaluation"
    evaluation.evaluate(Wanted(model=str(bundle_folder), data=str(pairs), metrics=("psnr",)), out)
    digest = read_manifest(pairs).digest
    told = evaluations.read(out / "metrics.json", bundle_folder)
    assert (told.dataset, told.figures.keys()) == (digest, {"psnr", "lq_psnr"})
    (found,) = evaluations.of(registry.register(bundle_folder))
    assert found.dataset == digest
    assert found.figures["psnr"] == told.figures["psnr"]
    gates = FREE.model_copy(update={"dataset": digest, "metrics": {"psnr": Bound(min=told.figures["psnr"] - 1)}})
    assert failed(before(gates, registry.version("1"))) == []


def test_metrics_of_another_model_are_not_taken(with_provenance, pairs, tmp_path):
    one, other, out = with_provenance("a"), with_provenance("b", dataset_digest="b"), tmp_path / "evaluation"
    evaluation.evaluate(Wanted(model=str(one), data=str(pairs), metrics=("psnr",)), out)
    with pytest.raises(UserError, match="metrics.json: is an evaluation of another model than .*b; evaluate that one"):
        evaluations.read(out / "metrics.json", other)


def test_runs_must_have_finished(with_provenance, pairs):
    with tracking.run("vre", "vre-1", {}, read_manifest(pairs), pairs, {}) as vre:
        pass
    with pytest.raises(RuntimeError), tracking.run("osd", "osd-1", {}, read_manifest(pairs), pairs, {}) as osd:
        raise RuntimeError
    version = registry.register(with_provenance(runs={"vre": vre.id, "osd": osd.id, "base": "f" * 32}))
    assert sentences(before(FREE, version)) == f"run osd: {osd.id[:8]} FAILED, wanted FINISHED"
    asked = before(FREE.model_copy(update={"runs": ["base", "vre"]}), version)
    assert "run base: ffffffff not on this server, wanted FINISHED" in sentences(asked)
    assert failed(before(FREE.model_copy(update={"runs": None}), version)) == []
    bare = registry.register(with_provenance("bare"))
    assert (
        sentences(before(FREE.model_copy(update={"runs": ["osd"]}), bare)) == "run osd: not recorded, wanted FINISHED"
    )


def test_a_damaged_bundle_fails(versions, mlflow_home):
    (stored,) = [path for path in (mlflow_home / "artifacts").rglob(bundle.ADAPTER) if "a" * 64 in read(path)]
    stored.write_bytes(b"x")
    assert "bundle: models:/osdface/1: its files in the registry are damaged" in sentences(before(Gates(), versions[0]))


def read(path) -> str:
    return (path.parent / "config.json").read_text()


def test_a_sound_bundle_restores_the_self_test_here(bundle_folder):
    checks = trial.check(Trial(max=60, max_ratio=50), bundle_folder, bundle_folder)
    assert [(check.gate, check.passed) for check in checks] == [
        ("trial", True), ("latency, batch 1", True), ("latency, batch 1", True),
    ]  # fmt: skip
    assert "at most 1e-06" in sentences(trial.check(Trial(max=1e-6, max_ratio=None), bundle_folder, None))
    assert "times the champion's" in trial._ratio(2, 0.3, 0.1).sentence()
    assert not trial._ratio(2, 0.3, 0.1).passed


@pytest.mark.parametrize(("change", "sentence"), [(not_a_number, "of one colour"), (too_short, "it does not run: ")])
def test_a_bundle_that_restores_nothing_fails(spoilt, change, sentence):
    folder = spoilt(change)
    bundle.verify(folder)
    assert sentence in sentences(trial.check(Trial(), folder, None))


def observed(requests=100, errors=0, p50=0.1, p95=0.2) -> Observed:
    return Observed(requests, errors, p50, p95)


@pytest.mark.parametrize(
    ("staged", "over", "words"),
    [
        (observed(), True, ""),
        (None, False, ""),
        (None, True, "live requests: 0, wanted at least 20"),
        (observed(19), True, "live requests: 19, wanted at least 20"),
        (observed(5, 2), False, ""),
        (observed(5, 3), False, "live errors: 3 of 5"),
        (observed(100, 1), False, ""),
        (observed(100, 2), False, "live errors: 2 of 100, wanted at most 1.00%"),
        (observed(19, p50=9), False, ""),
        (observed(p50=0.21), False, "live latency, p50: 0.21 s, wanted at most 2 times 0.1 s"),
        (observed(p95=0.7), False, ""),
        (observed(p95=0.7), True, "live latency, p95: 0.7 s, wanted at most 3 times 0.2 s"),
        (observed(p50=float("nan")), False, "live latency, p50"),
    ],
)
def test_live_requests_are_judged(staged, over, words):
    assert words in sentences(judging.live(Live(), observed(900), staged, over))
    if not words:
        assert failed(judging.live(Live(), observed(900), staged, over)) == []


def test_errors_that_the_champion_makes_too_are_not_held_against_a_version():
    assert failed(judging.live(Live(), observed(900, 90), observed(100, 10), True)) == []
    assert sentences(judging.live(Live(p95=0.1), None, observed(), True)) == (
        "live latency, p95: 0.2 s, wanted at most 0.1 s"
    )
