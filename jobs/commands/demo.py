"""osdface run and osdface demo: the whole chain as one resumable job."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from jobs import configs, console
from osdface.config import load


def run(file: Annotated[Path, typer.Argument(help="A chain file: steps of commands.")]) -> dict:
    """Run a chain of commands; steps that are done, by the digest of their inputs and configuration, are skipped."""
    return _run(file)


def demo() -> dict:
    """The main job on the embedded default, from procedural faces to two restored photographs.

    The same as `osdface run jobs/configs/tiny/demo.yaml`.
    """
    return _run(configs.FOLDER / "tiny" / "demo.yaml")


def _run(file: Path) -> dict:
    from jobs.chain import Chain, Runner
    from jobs.cli import app  # here, since it imports this file

    runner = Runner(load(Chain, file), lambda words: console.invoke(app, words))
    results = runner.run()
    console.say("\n[bold]What was made, and the time of each step[/]")
    console.table({name: f"{seconds:.1f} s" for name, seconds in runner.seconds.items()})
    console.say("")
    for line in runner.summary():
        console.say(escape(line))
    return {"work": str(runner.work), "steps": results, "seconds": runner.seconds}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    console.command(app, "run", "osdface run jobs/configs/tiny/demo.yaml")(run)
    console.command(app, "demo", "osdface demo")(demo)
