"""What every command shares: --json and --debug, plain words on the screen, progress, one sentence for an error."""

import contextlib
import functools
import inspect
import json as jsonlib
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from typer.exceptions import TyperException

from osdface.errors import UsageError, UserError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
PAUSE = 5  # seconds between two plain lines of progress
WIDE = 250  # columns of a table in a file or a pipe
INTERRUPTED = 130  # exit code, as shells have it


def say(text: str) -> None:
    """A line for people, in Rich's markup: on standard output, or on standard error where --json has the former."""
    out.print(text, soft_wrap=True)


def show(renderable: RenderableType) -> None:
    """A table or the like, fitted to the terminal; where there is none, wide enough to keep a row on its line."""
    (out if out.is_terminal else Console(highlight=False, width=WIDE)).print(renderable)


def command(app: typer.Typer, name: str | None = None, example: str = "") -> Callable:
    """Register a function that returns its result as a dict: adds --json, --debug and the example to its help."""

    def decorate(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        @functools.wraps(function)
        def run(*args: Any, json: bool, debug: bool, **kwargs: Any) -> dict[str, Any]:
            if not json:
                return function(*args, **kwargs)
            with _stdout_to_stderr():
                result = function(*args, **kwargs)
            _write_json(result)
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
def _stdout_to_stderr() -> Iterator[None]:
    """Standard output goes to standard error, also that of C libraries and child processes, which print at will."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _write_json(value: dict[str, Any]) -> None:
    sys.stdout.write(jsonlib.dumps(_finite(value), default=str) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    """JSON knows no infinity and no NaN: null stands for them."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def invoke(app: typer.Typer, arguments: list[str]) -> Any:
    """Run a command line in this process; returns what its function returns.

    Not Click's `main`, which turns an interrupt into a result and an EOFError into an interrupt. Raises UsageError
    for a command line that doesn't parse, typer.Exit for --help.
    """
    command = typer.main.get_command(app)
    try:
        with command.make_context("osdface", list(arguments)) as context:
            return command.invoke(context)
    except TyperException as error:
        where = getattr(error, "ctx", None)
        path = where.command_path if where else "osdface"
        message = error.format_message().strip().rstrip(".").replace("Value error, ", "")
        raise UsageError(f"{message} (see `{path} --help`)") from None


def run(app: typer.Typer, arguments: list[str]) -> int:
    """Run a command line; returns its exit code: 0 done, 1 failed, 2 wrong use. Shows a traceback only for --debug."""
    try:
        invoke(app, arguments or ["--help"])
        return 0
    except typer.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, SystemExit):  # the latter is what Ray makes of SIGTERM
        return _fail("stopped; the same command again continues", INTERRUPTED, arguments)
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exception(error)
        code = error.exit_code if isinstance(error, UserError) else 1
        return _fail(_sentence(error), code, arguments, getattr(error, "details", {}))


def _sentence(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; pip install 'osdface[train,serve,eval]' brings all that commands need"
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first} (unexpected; --debug shows where)"


def _fail(sentence: str, code: int, arguments: list[str], details: dict[str, Any] | None = None) -> int:
    """Say what went wrong. details: what a program may want to know of it, beside the sentence, with --json."""
    if "--json" in arguments:
        _write_json({"error": sentence, **(details or {})})
    err.print(f"[bold red]Error:[/] {escape(sentence)}", soft_wrap=True)
    return code


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g}/s" if task.speed else "")


@contextlib.contextmanager
def progress(unit: str = "") -> Iterator[Callable[..., None]]:
    """A callable (label, done, total, values) that draws bars on a terminal and plain lines elsewhere."""
    if err.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), _Rate())
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=err) as bars:
            tasks: dict[str, TaskID] = {}

            def draw(label: str, done: int, total: int, values: dict[str, float] | None = None) -> None:
                if label not in tasks:
                    tasks[label] = bars.add_task(label)
                bars.update(
                    tasks[label], completed=done, total=total, description=f"{label} {_numbers(values)}".rstrip()
                )

            yield draw
        return
    shown: dict[str, float] = {}
    begun: dict[str, tuple[float, int]] = {}

    def line(label: str, done: int, total: int, values: dict[str, float] | None = None) -> None:
        now = time.monotonic()
        since, first = begun.setdefault(label, (now, done))
        if done >= total or now - shown.get(label, -math.inf) > PAUSE:
            shown[label] = now
            pace = _pace(done - first, now - since, total - done)
            err.print(f"{label} {done}/{total} {unit} {_numbers(values)}{pace}".rstrip(), markup=False, soft_wrap=True)

    yield line


def _pace(done: int, seconds: float, left: int) -> str:
    """How many a second, and how long the rest takes at that pace."""
    if not done or seconds < 1:
        return ""
    rate = done / seconds
    return f" ({rate:.3g}/s" + (f", {left / rate:.0f} s left)" if left else ")")


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
