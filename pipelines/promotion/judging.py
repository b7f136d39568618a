"""A version judged before it gets a single request, and by what it answers to live ones."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from osdface.errors import UserError
from pipelines import registry, tracking
from pipelines.promotion import evaluations, licences, trial
from pipelines.promotion.checks import Check, number
from pipelines.promotion.evaluations import Evaluated
from pipelines.promotion.gates import Bound, Gates, Live
from pipelines.registry import Version

if TYPE_CHECKING:
    from pipelines.serve.live import Observed

ENOUGH_ERRORS = 3  # of live requests, which are not waited to become more


def before(gates: Gates, version: Version, champion: Version | None, tell: Callable[[str], None]) -> list[Check]:
    """All gates that need no endpoint. champion: what it is compared with, None where there is none but itself."""
    checks: list[Check] = []
    folder = None
    try:
        folder = registry.fetch(version, again=gates.bundle)  # other machines have no copy in a cache
        checks += [Check("bundle", version.bundle_digest[:12], "files as registered", True)] if gates.bundle else []
    except UserError as error:
        checks.append(Check("bundle", str(error), "files as registered", False))
    checks += _finished(gates.runs, version) if gates.runs is not None else []
    checks += licences.check(gates.licences, version) if gates.licences else []
    checks += _measured(gates, version, champion)
    if gates.trial and folder:
        tell("trying it on the self-test pictures here")
        checks += trial.check(gates.trial, folder, _folder(champion))
    return checks


def _folder(champion: Version | None) -> Path | None:
    """Of the champion, None where it is damaged: that must not keep another version from taking its place."""
    with contextlib.suppress(UserError):
        return registry.fetch(champion) if champion else None
    return None


def _finished(stages: list[str], version: Version) -> list[Check]:
    """A line for every run that is recorded or asked for."""
    client, checks = tracking.client(tracking.uri()), []
    for stage in sorted({*stages, *version.runs}):
        run_id = version.runs.get(stage, "")
        there = bool(run_id) and tracking.exists(client, run_id)
        status = client.get_run(run_id).info.status if there else "not on this server" if run_id else "not recorded"
        passed = status == "FINISHED" or (not there and stage not in stages)
        checks.append(Check(f"run {stage}", f"{run_id[:8]} {status}".strip(), "FINISHED", passed))
    return checks


def _measured(gates: Gates, version: Version, champion: Version | None) -> list[Check]:
    """The evaluation that counts, and every metric in it."""
    if not gates.dataset and not any(_asks(bound, champion) for bound in gates.metrics.values()):
        return [Check("evaluation", "no champion to compare with", "none worse", True)] if gates.metrics else []
    mine, theirs = evaluations.of(version), evaluations.of(champion) if champion else []
    judged = evaluations.chosen(mine, theirs, gates.dataset)
    wanted = f"on dataset {gates.dataset[:12]}" if gates.dataset else "on any dataset"
    if judged is None:
        found = ", ".join(one.dataset[:12] for one in mine) or "none"
        note = f"osdface evaluate --model {version.ref} --data PAIRS --out OUT"
        return [Check("evaluation", found, wanted, False, note)]
    checks = [Check("evaluation", f"on {judged.dataset[:12]}", wanted, True)]
    for name, bound in gates.metrics.items():
        checks += metric(name, bound, judged, evaluations.same(theirs, judged.dataset) if champion else None)
    return checks


def _asks(bound: Bound, champion: Version | None) -> bool:
    return bound.min is not None or bound.max is not None or (bound.max_regression is not None and champion is not None)


def metric(name: str, bound: Bound, judged: Evaluated, theirs: evaluations.Figures | None) -> list[Check]:
    """A line for each thing that is asked of a metric, or of each in a family. theirs: None without a champion."""
    better = evaluations.directions()[name]
    checks = []
    for one in evaluations.members(name, judged.figures) or [name]:
        value = judged.figures.get(one)
        if bound.min is not None:
            checks.append(_check(one, value, value is not None and value >= bound.min, f"at least {bound.min:g}"))
        if bound.max is not None:
            checks.append(_check(one, value, value is not None and value <= bound.max, f"at most {bound.max:g}"))
        if bound.max_regression is not None and theirs is not None:
            checks.append(_regression(one, value, theirs.get(one), bound.max_regression, better))
    return checks


def _check(name: str, value: float | None, passed: bool, wanted: str) -> Check:
    return Check(name, number(value), wanted, passed)


def _regression(name: str, value: float | None, theirs: float | None, limit: float, better: str) -> Check:
    if theirs is None or value is None:
        which = "it" if value is None else "the champion on the same dataset"
        note = f"evaluate {which} in this metric: osdface evaluate --model REF --data PAIRS --out OUT"
        return Check(name, number(value), f"{limit:g} worse than the champion at most", False, note)
    edge = theirs - limit if better == "higher" else theirs + limit
    wanted = f"{'at least' if better == 'higher' else 'at most'} {edge:.4g}, the champion's {theirs:.4g} and {limit:g}"
    return Check(name, number(value), wanted, value >= edge if better == "higher" else value <= edge)


def live(limits: Live, champion: "Observed | None", staged: "Observed | None", over: bool) -> list[Check]:
    """What live requests say, so far or when the time is over: only lines that can be decided.

    Errors are decided early once there are a few, so that few people see them; times once there are requests enough.
    """
    requests, errors = (staged.requests, staged.errors) if staged else (0, 0)
    enough, checks = requests >= limits.requests, []
    if over:
        note = "" if enough else "give it longer, a larger share, or --shadow; or lower live.requests in the gate file"
        checks.append(Check("live requests", str(requests), f"at least {limits.requests}", enough, note))
    if staged and requests and (enough or errors >= ENOUGH_ERRORS):
        usual = champion.errors / champion.requests if champion and champion.requests else 0.0
        allowed = usual + limits.errors
        checks.append(
            Check("live errors", f"{errors} of {requests}", f"at most {allowed:.2%}", errors <= allowed * requests)
        )
    if staged and enough:
        checks += _times(limits, champion, staged, over)
    return checks


def _times(limits: Live, champion: "Observed | None", staged: "Observed", over: bool) -> list[Check]:
    """The middle as soon as there are requests enough; the tail, which one hiccup makes, when the time is over."""
    checks = []
    if over and limits.p95 is not None:
        found = f"{number(staged.p95)} s"
        checks.append(Check("live latency, p95", found, f"at most {limits.p95:g} s", staged.p95 <= limits.p95))
    if not champion or champion.requests < limits.requests:
        return checks
    for name, ratio in (("p50", limits.p50_ratio), ("p95", limits.p95_ratio)):
        ours, theirs = getattr(staged, name), getattr(champion, name)
        if ratio is not None and theirs > 0 and (over or name == "p50"):
            wanted = f"at most {ratio:g} times {number(theirs)} s"
            checks.append(Check(f"live latency, {name}", f"{number(ours)} s", wanted, ours <= ratio * theirs))
    return checks
