"""Tables 4 and 5 of the paper at the size of the tiny preset: prompts, and losses, each left out or replaced.

All rows share the base and the VRE, and have equal steps; each is trained with every seed by the command that a person
would type, and judged on the held-out pairs. A row that has been trained is kept, so that the same command goes on
where it was stopped.

    python -m benchmarks.ablations --base base --vre vre --vre-without-association vre_without --data pairs \\
        --test held_out --steps 1500 --jobs 2 --work ablations

The trainings can be run elsewhere: `--train-only` there, `--evaluate-only` here, with the same `--work`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import judging, prompts, quality, record
from benchmarks.judging import Judge, Measured
from osdface.errors import UserError
from osdface.files import write_json
from pipelines import metrics
from pipelines.store import STORAGE

ROOT = Path(__file__).parents[1]
# Those in the tables.
METRICS = (
    "psnr", "identity.procedural", "lpips.procedural", "dists.procedural", "fid.procedural", "lpips.dlib", "dists.dlib",
)  # fmt: skip
DRAWS = 300
LOG = "log.txt"


class Row(NamedTuple):
    """A line of a table. vre: which option names its VRE, "" for prompts that look at no picture. sets, settings: what
    it changes in the configuration, by shipped sets and by --set."""

    name: str
    title: str
    vre: str = "vre"
    sets: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


FULL = Row("full", "VRE; identity, EA-DISTS, GAN")
PROMPTS = (
    Row("empty", "empty", "", settings=("prompt.kind=empty",)),
    Row("learned", "learned", "", ("ablations/learned",)),
    Row("without_association", "VRE without association", "vre_without_association"),
    FULL._replace(title="VRE"),
)
LOSSES = (
    Row("without_identity", "EA-DISTS, GAN", sets=("ablations/without_identity",)),
    Row("without_perceptual", "identity, GAN", sets=("ablations/without_perceptual",)),
    Row("dists", "identity, DISTS, GAN", settings=("perceptual.kind=dists",)),
    Row("lpips", "identity, LPIPS, GAN", settings=("perceptual.kind=lpips",)),
    Row("without_gan", "identity, EA-DISTS", sets=("ablations/without_gan",)),
    FULL._replace(title="identity, EA-DISTS, GAN"),
)
TABLES = {"Prompts (table 4)": PROMPTS, "Losses (table 5)": LOSSES}
ROWS = {row.name: row for rows in TABLES.values() for row in rows}


class Run(NamedTuple):
    """One training: a row with a seed."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row.name}_{self.seed}"


def planned(names: Iterable[str], seeds: int) -> list[Run]:
    """All rows with the first seed, then all with the next, so that what is stopped early can be compared."""
    return [Run(ROWS[name], seed) for seed in range(seeds) for name in names]


def command(run: Run, options: argparse.Namespace) -> list[str]:
    """The words after `osdface`."""
    row = run.row
    words = ["train", "osd", "--config", ",".join([options.config, *row.sets]), "--workers", "0"]
    words += ["--data", str(options.data), "--base", str(options.base), "--out", str(options.work / run.name)]
    words += ["--vre", str(getattr(options, row.vre))] if row.vre else []
    settings = [f"duration={{steps: {options.steps}}}", f"checkpoint_every={options.steps}", f"seed={run.seed}"]
    settings += [f"gpus_per_worker={int(options.device.startswith('cuda'))}", *options.set, *row.settings]
    return words + [word for setting in settings for word in ("--set", setting)]


def train(run: Run, options: argparse.Namespace) -> None:
    """In a process and a home of its own, its output in the home's log; latents are made once for all.

    Raises UserError naming the log where it fails.
    """
    home = options.work / "homes" / run.name
    home.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    places = {"OSDFACE_HOME": str(home), STORAGE: str((options.work / "storage").absolute()), "PYTHONPATH": str(ROOT)}
    environment = os.environ | places | {"OMP_NUM_THREADS": str(threads)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    words = [sys.executable, "-m", "jobs.cli", *command(run, options)]
    with (home / LOG).open("w") as log:
        done = subprocess.run(words, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise UserError(f"{run.name}: its training failed; see {home / LOG}")
    print(run.name, flush=True)


def finished(run: Run, work: Path) -> bool:
    return (work / run.name / "config.json").is_file()


def train_all(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Those that are missing, `jobs` at a time. One that fails stops the others that have not begun."""
    missing = [run for run in runs if not finished(run, options.work)]
    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = [pool.submit(train, run, options) for run in missing]
        try:
            for one in waiting:
                one.result()
        finally:
            pool.shutdown(cancel_futures=True)


def claim(options: argparse.Namespace) -> dict[str, Any]:
    """What the trainings in `work` share, noted there. Raises UserError where other ones lie there."""
    from osdface.base import base_digest
    from osdface.files import sha256
    from pipelines.pairs.manifest import read_manifest

    path = options.work / "plan.json"
    if options.evaluate_only:
        if not path.is_file():
            raise UserError(f"{path}: missing; train there first, without --evaluate-only")
        return json.loads(path.read_text())
    vres = {name: getattr(options, name) for name in ("vre", "vre_without_association")}
    plan = {
        "steps": options.steps,
        "config": options.config,
        "set": options.set,
        "data": read_manifest(options.data).digest,
        "base": base_digest(options.base),
        **{name: sha256(folder / "lq.safetensors") for name, folder in vres.items() if folder},
    }
    known = json.loads(path.read_text()) if path.is_file() else plan
    if plan != known:
        other = ", ".join(name for name in plan if plan[name] != known.get(name))
        raise UserError(f"{options.work}: has trainings with another {other}; give another --work")
    write_json(path, plan)
    return plan


def measure(run: Run, judge: Judge, lq: np.ndarray, options: argparse.Namespace) -> tuple[Measured, dict[str, float]]:
    """A finished training's pictures, and what its prompts do."""
    from osdface.restorer import Restorer

    restorer = Restorer.load(options.work / run.name, options.device)
    print(run.name, flush=True)
    return judge(quality.restore(restorer, lq)), prompted(restorer, judge, lq)


def prompted(restorer: Any, judge: Judge, lq: np.ndarray) -> dict[str, float]:
    """Whether the prompt matters: codes in use over all pictures, and PSNR in dB that another picture's prompt costs.

    Empty for prompts that do not look at the picture.
    """
    from osdface.presets import VISUAL_PROMPTS

    generator = restorer.generator
    if generator.embedder.kind not in VISUAL_PROMPTS:
        return {}
    images = prompts.tensor(lq).to(next(generator.parameters()).device)
    items = prompts.codes_of(generator, images).flatten(0, 1).unique(dim=0)
    return {
        "codes": int(items.any(1).sum()),  # what fills a short prompt is zero
        "dictionary": restorer.config.architecture().vre.codes,
        "cost": prompts.costs(generator, images, judge.references, [prompts.OTHER])[prompts.OTHER],
    }


def draws(judge: Judge, measured: dict[str, list[Measured]], count: int = DRAWS) -> dict[str, dict[str, np.ndarray]]:
    """Metric -> row -> its mean over pictures and seeds, then that of `count` draws of both: (1 + count,).

    Every draw takes pictures and seeds with replacement, the same ones in all rows, so that rows can be subtracted.
    """
    rng = np.random.default_rng(0)
    seeds, pictures = len(next(iter(measured.values()))), len(judge.references)
    chosen = [(np.arange(seeds), np.arange(pictures))]
    chosen += [(rng.integers(0, seeds, seeds), rng.integers(0, pictures, pictures)) for _ in range(count)]
    found: dict[str, dict[str, np.ndarray]] = {}
    for metric in judge.suite.metrics:
        values = {row: np.stack([one.values[metric.name] for one in runs]) for row, runs in measured.items()}
        found[metric.name] = {
            row: np.array([np.nanmean(those[np.ix_(s, p)]) for s, p in chosen]) for row, those in values.items()
        }
    for one in judge.suite.distributions:
        wanted = judge.wanted[one.name]
        found[one.name] = {
            row: np.array([_distance(one, [run.features[one.name] for run in runs], wanted, s, p) for s, p in chosen])
            for row, runs in measured.items()
        }
    return found


def _distance(one: Any, features: list[np.ndarray], wanted: np.ndarray, seeds: np.ndarray, rows: np.ndarray) -> float:
    """The mean over the drawn seeds of the distance of the drawn pictures."""
    each = {seed: judging.distance(one, features[seed][rows], wanted[rows]) for seed in set(seeds.tolist())}
    return float(np.mean([each[seed] for seed in seeds.tolist()]))


def interval(drawn: np.ndarray) -> list[float]:
    """The value, and the middle 95 % of its draws, recentred on it: distances of sets grow where pictures repeat."""
    value, rest = float(drawn[0]), drawn[1:]
    return [value, *map(float, np.quantile(rest - rest.mean() + value, [0.025, 0.975]))]


def evaluate(options: argparse.Namespace, runs: Sequence[Run]) -> dict[str, Any]:
    """Figures of every row that all its seeds are trained of, and their differences from the full one."""
    rows = {run.row.name: [other for other in runs if other.row == run.row] for run in runs}
    rows = {name: those for name, those in rows.items() if all(finished(run, options.work) for run in those)}
    if FULL.name not in rows:
        raise UserError(f"{options.work}: the full row is not trained, which the others are compared with")
    pairs = quality.held_out(options.test, options.data, options.count)
    judge = Judge(metrics.load(options.device, METRICS), pairs.hq)
    both = {name: [measure(run, judge, pairs.lq, options) for run in those] for name, those in rows.items()}
    drawn = draws(judge, {"LQ": [judge(pairs.lq)] * options.seeds} | {n: [m for m, _ in b] for n, b in both.items()})
    labels = {one.name: one for one in (*judge.suite.metrics, *judge.suite.distributions)}
    return {
        "pictures": len(pairs.keys),
        "seeds": options.seeds,
        "metrics": {
            n: {"better": one.better, "network": one.network, "digest": one.digest} for n, one in labels.items()
        },
        "figures": {n: {row: interval(d) for row, d in by.items()} for n, by in drawn.items()},
        "against full": {n: {row: interval(d - by[FULL.name]) for row, d in by.items()} for n, by in drawn.items()},
        "prompts": {name: [found for _, found in those] for name, those in both.items() if those[0][1]},
        "untrained": sorted({run.row.name for run in runs} - rows.keys()),
    }


def report(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    sections = [
        f"# Ablations on the tiny preset, {result['plan']['steps']} steps, {result['seeds']} seeds",
        f"{result['date']}; {result['cpu']}; {versions}. {result['pictures']} held-out faces, shared base and VRE.",
        "Means over pictures and seeds. Intervals: 95 % of the means of draws that take both pictures and seeds with "
        "replacement, the same ones in all rows; few seeds make them narrower than they should be. **Bold**: a "
        "difference from the full row whose interval does not hold zero.",
    ]
    for title, rows in TABLES.items():
        there = [row for row in (Row("LQ", "LQ, nothing restored"), *rows) if row.name in result["figures"]["psnr"]]
        sections += [f"## {title}", record.table([_figures(row, result) for row in there])]
        others = [row for row in there if row.name not in ("LQ", FULL.name)]
        if others:
            sections += ["Differences from the full row:", record.table([_differences(row, result) for row in others])]
    if result["prompts"]:
        sections += ["## What the prompts do", record.table([_prompts(n, f) for n, f in result["prompts"].items()])]
    if result["untrained"]:
        sections.append("Not trained yet, or not with every seed: " + ", ".join(result["untrained"]) + ".")
    return "\n\n".join(sections)


def _figures(row: Row, result: dict[str, Any]) -> dict[str, str]:
    arrows = {name: f"{name} {judging.ARROWS[label['better']]}" for name, label in result["metrics"].items()}
    by = result["figures"]
    return {"row": row.title} | {arrows[name]: judging.interval(by[name][row.name]) for name in arrows}


def _differences(row: Row, result: dict[str, Any]) -> dict[str, str]:
    shown = {}
    for name, by in result["against full"].items():
        _, low, high = by[row.name]
        text = judging.interval(by[row.name], "+")
        shown[name] = f"**{text}**" if low > 0 or high < 0 else text
    return {"row": row.title} | shown


def _prompts(name: str, found: list[dict[str, float]]) -> dict[str, str]:
    return {
        "row": name,
        "codes in use, by seed": ", ".join(f"{one['codes']:.0f}" for one in found) + f" of {found[0]['dictionary']}",
        "PSNR that another picture's prompt costs, dB, by seed": ", ".join(f"{one['cost']:.3f}" for one in found),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, help="the base that all rows share")
    parser.add_argument("--vre", type=Path, help="the output of `osdface train vre`")
    parser.add_argument("--vre-without-association", type=Path, help="the same with ablations/without_association")
    parser.add_argument("--data", required=True, help="the pair dataset to train on")
    parser.add_argument("--test", help="a dataset whose split test has the held-out faces; else that of --data")
    parser.add_argument("--count", type=int, default=256, help="held-out faces")
    parser.add_argument("--config", default="tiny", help="the configuration that rows change")
    parser.add_argument("--set", nargs="*", default=[], help="settings of stage 2 for all rows")
    parser.add_argument("--steps", type=int, default=1500, help="of every training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--work", type=Path, default=Path("ablations"), help="folder of the trainings, kept")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--evaluate-only", action="store_true")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of ablations.json and ablations.md")
    options = parser.parse_args()
    options.test = options.test or options.data
    runs = planned(options.rows, options.seeds)
    for run in runs if not options.evaluate_only else ():
        if not options.base or (run.row.vre and not getattr(options, run.row.vre)):
            parser.error(
                f"row {run.row.name} needs --base" + f" and --{run.row.vre.replace('_', '-')}" * bool(run.row.vre)
            )
    try:
        plan = claim(options)
        if not options.evaluate_only:
            train_all(runs, options)
        if options.train_only:
            return 0
        result = {**record.machine(["torch", "diffusers", "numpy"]), "plan": plan, **evaluate(options, runs)}
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    text = report(result)
    record.write("ablations", result, text, options.out)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
