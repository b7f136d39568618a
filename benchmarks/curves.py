"""A short training of stage 2 on the tiny preset, every loss on: `python -m benchmarks.curves` draws docs/training.png.

It trains by the commands that a person would type, and draws what they recorded in MLflow. Exits with 1 where a
reconstruction term's median over the last 50 steps is not below that over the first 50, or the discriminator's accuracy
in the second half is not between 55 and 95 %.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median

from benchmarks import record

ENDS = 50  # steps
ACCURACY = (0.55, 0.95)
RECONSTRUCTION = ("mse", "ea_dists", "identity")  # the beginnings of their names
Curves = dict[str, list[float]]


def train(work: Path, steps: int, settings: list[str]) -> None:
    """Faces, pairs, base, stage 1 and stage 2, in `work`."""
    wanted = [f"duration={{steps: {steps}}}", "log_every=1", *settings]
    commands = [
        "faces make faces --count 480 --size 64 --seed 0",
        "data synth faces --out pairs --config tiny",
        "train base --config tiny --data pairs --out base",
        "train vre --config tiny --data pairs --out vre",
        "train osd --config tiny --data pairs --base base --vre vre --out model",
    ]
    for command in commands:
        words = command.split()
        if words[:2] == ["train", "osd"]:
            words += [word for one in wanted for word in ("--set", one)]
        print("osdface", *words, file=sys.stderr, flush=True)
        root = str(Path(__file__).parents[1])
        environment = os.environ | {"OSDFACE_HOME": str(work / "home"), "PYTHONPATH": root}
        environment.pop("MLFLOW_TRACKING_URI", None)
        subprocess.run([sys.executable, "-m", "jobs.cli", *words], cwd=work, env=environment, check=True)


def read(work: Path) -> Curves:
    """Every metric of stage 2's last run at every step, without its phase's name."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{work / 'home' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("osdface/osd")
    (run,) = client.search_runs([experiment.experiment_id], max_results=1)
    names = [name for name in run.data.metrics if name.startswith("osd/")]
    history = {name: client.get_metric_history(run.info.run_id, name) for name in names}
    return {name[4:]: [m.value for m in sorted(rows, key=lambda m: m.step)] for name, rows in history.items()}


def reconstruction(curves: Curves) -> list[str]:
    """The terms of eq. 12 that compare pictures."""
    return [name for name in curves if name.startswith(RECONSTRUCTION)]


def judged(curves: Curves) -> list[dict]:
    """What is held to, a row for each."""
    rows = []
    for name in reconstruction(curves):
        first, last = median(curves[name][:ENDS]), median(curves[name][-ENDS:])
        rows.append({"what": name, "first": f"{first:.4f}", "last": f"{last:.4f}", "good": last < first})
    half = len(curves["accuracy_real"]) // 2
    accuracies = [[(a + b) / 2 for a, b in zip(curves["accuracy_real"], curves["accuracy_fake"], strict=True)]]
    first, last = mean(accuracies[0][:half]), mean(accuracies[0][half:])
    good = ACCURACY[0] <= last <= ACCURACY[1]
    rows.append({"what": "discriminator's accuracy", "first": f"{first:.3f}", "last": f"{last:.3f}", "good": good})
    return rows


def smooth(values: list[float], window: int = 15) -> list[float]:
    return [median(values[max(0, i - window) : i + window + 1]) for i in range(len(values))]


def draw(curves: Curves, path: Path) -> None:
    """Reconstruction terms, both sides of the adversarial loss, and the discriminator's accuracies over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {name: [name] for name in reconstruction(curves)}
    panels |= {"adversarial losses": ["adversarial", "discriminator"]}
    panels |= {"discriminator's accuracy": ["accuracy_real", "accuracy_fake"]}
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.4 * len(panels), 2.8), layout="constrained")
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in (n for n in names if n in curves):
            (line,) = axis.plot(smooth(curves[name]), label=name, linewidth=1.6)
            axis.plot(curves[name], color=line.get_color(), alpha=0.2, linewidth=0.6)
        if len(names) > 1:
            axis.legend(frameon=False, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.supxlabel("step", fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--set", nargs="*", default=[], help="settings of stage 2, beside the set tiny's")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "training.png")
    parser.add_argument("--work", type=Path, help="folder of the training, kept; one that is finished is drawn again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = options.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "model").exists():
            train(work, options.steps, options.set)
        curves = read(work)
    draw(curves, options.out)
    rows = judged(curves)
    print(record.table(rows))
    return 0 if all(row["good"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
