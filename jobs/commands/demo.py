"""osdface run and osdface demo: the whole chain as one resumable job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from jobs import configs, console, options
from osdface.config import load

if TYPE_CHECKING:
    from jobs.chain import Runner, Selection


def run(
    file: Annotated[Path, typer.Argument(help="A chain file: steps of commands.")],
    first: Annotated[
        str | None,
        typer.Option("--from", metavar="STEP", help="This step and those after it; earlier ones as they are."),
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="STEP", help="This step alone; earlier ones as they are.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also what is done: all, or what --from or --only says.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run and why; touch nothing.")] = False,
    address: options.Address = None,
) -> dict:
    """Run a chain of commands; steps that are done, by their inputs, configuration and code, are skipped."""
    from jobs.chain import Selection

    return _run(file, Selection(first, only, force), dry_run, address)


def demo() -> dict:
    """The main job on the embedded default, from procedural faces to two restored photographs.

    The same as `osdface run jobs/configs/tiny/demo.yaml`.
    """
    from jobs.chain import Selection

    return _run(configs.FOLDER / "tiny" / "demo.yaml", Selection())


def _run(file: Path, selection: "Selection", dry_run: bool = False, address: str | None = None) -> dict:
    from jobs.chain import Chain, Runner
    from jobs.cli import app  # here, since it imports this file
    from jobs.submission import parsing

    def invoke(words: list[str]) -> dict[str, Any]:
        return console.invoke(app, parsing.joining(words, address) if address else words)

    runner = Runner(load(Chain, file), invoke, selection, file.stem)
    if dry_run:
        return _plan(runner)
    results = runner.run()
    console.say("\n[bold]What was made, and the time of each step[/]")
    console.table({name: f"{seconds:.1f} s" for name, seconds in runner.seconds.items()})
    console.say("")
    for line in runner.summary():
        console.say(escape(line))
    return {"work": runner.work, "steps": results, "seconds": runner.seconds}


def _plan(runner: "Runner") -> dict:
    planned = runner.plan()
    table = Table(box=None, pad_edge=False)
    for title in ("step", "would", "why"):
        table.add_column(title, overflow="fold")
    for step in planned:
        table.add_row(*map(escape, step))
    console.show(table)
    return {"work": runner.work, "plan": [step._asdict() for step in planned]}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    console.command(app, "run", "osdface run jobs/configs/tiny/demo.yaml --dry-run")(run)
    console.command(app, "demo", "osdface demo")(demo)
