"""What every command shares: --json and --debug, plain words on the screen, progress, one sentence for an error."""

import contextlib
import functools
import inspect
import json as jsonlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from osdface.errors import UserError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
_screen = out


def say(text: str) -> None:
    """A line for people: on standard output, or on standard error where --json has the former."""
    _screen.print(text)


def command(app: typer.Typer, name: str | None = None, example: str = "") -> Callable:
    """Register a function that returns its result as a dict: adds --json, --debug and the example to its help."""

    def decorate(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        @functools.wraps(function)
        def run(*args: Any, json: bool, debug: bool, **kwargs: Any) -> dict[str, Any]:
            with _screen_for(json):
                result = function(*args, **kwargs)
            if json:
                sys.stdout.write(jsonlib.dumps(result, default=str) + "\n")
            return result

        flags = [
            _flag("json", "One JSON object on standard output, everything else on standard error."),
            _flag("debug", "Show the traceback of an error."),
        ]
        signature = inspect.signature(function)
        run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *flags])  # type: ignore[attr-defined]
        run.__annotations__ = {**function.__annotations__, "json": bool, "debug": bool}
        help = inspect.cleandoc(function.__doc__ or "") + (f"\n\nExample: {example}" if example else "")
        return app.command(name, help=help)(run)

    return decorate


def _flag(name: str, help: str) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=typer.Option(False, f"--{name}", help=help), annotation=bool
    )


@contextlib.contextmanager
def _screen_for(json: bool) -> Iterator[None]:
    global _screen
    before, _screen = _screen, err if json else _screen
    try:
        yield
    finally:
        _screen = before


def run(app: click.Command, arguments: list[str]) -> int:
    """Run a command line; returns its exit code: 0 done, 1 failed, 2 wrong use. Never shows a traceback unasked."""
    try:
        code = app.main(args=arguments, prog_name="osdface", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:
        err.print("stopped")
        return 130
    except KeyboardInterrupt:
        err.print("stopped; the same command again continues")
        return 130
    except Exception as error:
        if "--debug" in arguments:
            raise
        expected = isinstance(error, UserError)
        sentence = str(error) if expected else f"{type(error).__name__}: {error} (unexpected; --debug shows where)"
        if "--json" in arguments:
            sys.stdout.write(jsonlib.dumps({"error": sentence}) + "\n")
        err.print(f"[bold red]Error:[/] {escape(sentence)}")
        return getattr(error, "exit_code", 1)


@contextlib.contextmanager
def progress(unit: str = "") -> Iterator[Callable[..., None]]:
    """A callable (label, done, total, values) that draws bars on a terminal and plain lines elsewhere."""
    if err.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=err) as bars:
            tasks: dict[str, Any] = {}

            def draw(label: str, done: int, total: int, values: dict[str, float] | None = None) -> None:
                task = tasks.setdefault(label, None) or bars.add_task(label, total=total)
                tasks[label] = task
                bars.update(task, completed=done, total=total, description=f"{label} {_numbers(values)}")

            yield draw
        return
    shown: dict[str, float] = {}

    def line(label: str, done: int, total: int, values: dict[str, float] | None = None) -> None:
        if done >= total or time.monotonic() - shown.get(label, 0) > 5:
            shown[label] = time.monotonic()
            err.print(f"{label} {done}/{total} {unit} {_numbers(values)}".rstrip())

    yield line


def _numbers(values: dict[str, float] | None) -> str:
    return " ".join(f"{name.split('/')[-1]} {value:.3g}" for name, value in list((values or {}).items())[:4])


def table(result: dict[str, Any]) -> None:
    """Show a flat result as `name  value` lines."""
    width = max(map(len, result), default=0)
    for name, value in result.items():
        say(f"{name:<{width}}  {escape(str(value))}")


def existing(path: Path, what: str) -> Path:
    """`path`, if it is there. Raises UserError naming it and what it should have been."""
    if not path.exists():
        raise UserError(f"{path}: no such {what}")
    return path
