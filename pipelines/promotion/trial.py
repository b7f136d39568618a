"""A version tried on this machine: does it load, what does it make of the self-test pictures, how long does it take."""

import time
from pathlib import Path
from typing import NamedTuple

from osdface.imagefile import read_image
from pipelines.promotion import selftest
from pipelines.promotion.checks import Check, number
from pipelines.promotion.gates import Trial


class Tried(NamedTuple):
    """faults: why it is no restorer, in sentences. seconds: of the fastest picture, which other work moves
    least."""

    faults: list[str]
    seconds: float | None


def check(gate: Trial, folder: Path, champion: Path | None) -> list[Check]:
    """A bundle on the self-test set; its time beside the champion's, if that is another bundle and a gate asks."""
    tried = run(folder, gate)
    checks = [Check("trial", "; ".join(tried.faults) or f"{gate.pictures} pictures restored", "restores pictures",
                    not tried.faults)]  # fmt: skip
    if tried.seconds is None:
        return checks
    if gate.max is not None:
        found = f"{number(tried.seconds)} s"
        checks.append(Check("latency, batch 1", found, f"at most {gate.max} s", tried.seconds <= gate.max))
    if gate.max_ratio is not None and champion:
        checks.append(_ratio(gate.max_ratio, tried.seconds, run(champion, gate).seconds))
    return checks


def _ratio(limit: float, ours: float, theirs: float | None) -> Check:
    wanted = f"at most {limit:g} times the champion's"
    if theirs is None:
        return Check("latency, batch 1", f"{number(ours)} s", wanted, True, "the champion itself does not run here")
    found = f"{number(ours)} s, {ours / theirs:.2f} times"
    return Check("latency, batch 1", found, wanted, ours <= limit * theirs)


def run(folder: Path, gate: Trial) -> Tried:
    """Load a bundle here and give it the self-test pictures one by one, the first once more before the clock runs."""
    from osdface.restorer import Restorer

    given = selftest.pictures(gate.pictures)
    try:
        restorer = Restorer.load(folder)
        images = [read_image(data) for data in given]
        restorer(images[0], "aligned", output_type="array", identity=False)
        answers, seconds = [], []
        for image in images:
            start = time.perf_counter()
            answers.append(restorer(image, "aligned", output_type="array", identity=False).image)
            seconds.append(time.perf_counter() - start)
    except Exception as error:  # whatever a model raises, it does not run
        return Tried([f"it does not run: {next(iter(str(error).splitlines()), type(error).__name__)}"], None)
    return Tried(selftest.faults(given, answers, gate.deviation), min(seconds))
