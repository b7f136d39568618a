"""osdface runs: trainings as MLflow has them, and their checkpoints in the storage."""

from typing import Annotated

import typer

from jobs import console

app = typer.Typer(help="Trainings: what ran, when, on which data, and what came of it.")


def list_(
    stage: Annotated[str | None, typer.Option(help="Only this stage's: base, vre or osd.")] = None,
    count: Annotated[int, typer.Option(help="How many, the newest first.")] = 20,
) -> dict:
    """List the trainings that the tracking server knows."""
    from rich.table import Table

    from pipelines import runs

    found = [run._asdict() for run in runs.trainings(stage, count)]
    table = Table(box=None, pad_edge=False)
    for title in ("run", "stage", "status", "begun", "dataset", "last losses", "output"):
        table.add_column(title, overflow="fold")
    for run in found:
        losses = " ".join(f"{name} {value:.3g}" for name, value in list(run["losses"].items())[:4])
        begun = run["begun"].strftime("%Y-%m-%d %H:%M")
        table.add_row(run["name"], run["stage"], run["status"], begun, run["dataset"][:12], losses, run["output"])
    console.show(table)
    return {"runs": found}


console.command(app, "list", "osdface runs list --stage osd")(list_)


def show(run: Annotated[str, typer.Argument(help="A run's name, as `osdface runs list` has it, or its id.")]) -> dict:
    """Show one training: everything last measured, and its checkpoints in the storage."""
    from pipelines import runs

    found = runs.training(run)
    checkpoints = [checkpoint._asdict() for checkpoint in runs.checkpoints(found.name)]
    told = found._asdict() | {"measured": runs.measured(found.id)}
    console.table({name: value for name, value in told.items() if not isinstance(value, dict)})
    console.table({name: f"{value:.6g}" for name, value in told["measured"].items()})
    for checkpoint in checkpoints:
        scores = " ".join(f"{name} {value:.4g}" for name, value in checkpoint["scores"].items())
        console.say(f"{checkpoint['folder']}: {checkpoint['at']}, {checkpoint['mib']:.1f} MiB {scores}".rstrip())
    return told | {"checkpoints": checkpoints}


console.command(app, "show", "osdface runs show osd-3f2a90c1d4e7")(show)
