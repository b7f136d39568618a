"""What commands share: --json, --debug, one sentence for an error, exit codes, progress."""

import io
import json
import os
import subprocess

import pytest
import typer
from rich.console import Console

from jobs import console
from osdface.errors import UsageError, UserError


def make_app(function) -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None)
    app.callback()(lambda: None)  # so that `go` is a command's name also where it is the only one
    console.command(app, "go", "osdface go")(function)
    return app


def raising(error: BaseException) -> typer.Typer:
    def go() -> dict:
        """Fail."""
        raise error

    return make_app(go)


def test_json_is_all_that_stands_on_standard_output(capfd):
    def go() -> dict:
        """Print in every way there is."""
        console.say("for [bold]people[/]")
        print("a library's print")
        os.write(1, b"a C library's\n")
        subprocess.run(["echo", "a child's"], check=True)
        with console.progress("pictures") as progress:
            progress("faces", 1, 1)
        return {"value": 1, "psnr": float("inf"), "path": os, "nested": [{"x": float("nan")}]}

    assert console.run(make_app(go), ["go", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"value": 1, "psnr": None, "path": str(os), "nested": [{"x": None}]}
    for line in ("for people", "a library's print", "a C library's", "a child's", "faces 1/1 pictures"):
        assert line in err


def test_without_json_words_go_to_standard_output(capfd):
    def go() -> dict:
        """Say it."""
        console.table({"out": "a[b]", "n": 2})
        return {}

    assert console.run(make_app(go), ["go"]) == 0
    assert capfd.readouterr().out == "out  a[b]\nn    2\n"


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("pairs[old]: no such dataset; make one"), 1, "pairs[old]: no such dataset; make one"),
        (UsageError("--size 3: give 32 or more"), 2, "--size 3: give 32 or more"),
        (PermissionError(13, "Permission denied", "/x/y"), 1, "/x/y: Permission denied"),
        (ModuleNotFoundError("No module named 'ray'", name="ray"), 1, "ray is not installed"),
        (ValueError("first\nsecond"), 1, "ValueError: first (unexpected; --debug shows where)"),
        (EOFError(), 1, "EOFError"),
        (KeyboardInterrupt(), 130, "stopped; the same command again continues"),
        (SystemExit(15), 130, "stopped"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(error, code, sentence, capsys):
    assert console.run(raising(error), ["go"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert sentence in err

    assert console.run(raising(error), ["go", "--json"]) == code
    out, err = capsys.readouterr()
    assert sentence in json.loads(out)["error"]
    assert "Traceback" not in err


@pytest.mark.parametrize(("error", "code"), [(UserError("gone"), 1), (UsageError("wrong"), 2), (KeyError("x"), 1)])
def test_debug_shows_the_traceback_and_changes_nothing_else(error, code, capsys):
    assert console.run(raising(error), ["go", "--debug", "--json"]) == code
    out, err = capsys.readouterr()
    assert "Traceback" in err
    assert "raise error\n" in err
    assert list(json.loads(out)) == ["error"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["go", "--sise", "3"], "No such option: --sise"),
        (["go"], "Missing argument"),
        (["go", "x", "--size", "three"], "Invalid value for '--size'"),
        (["go", "x", "y"], "unexpected extra argument"),
        (["goo"], "No such command 'goo'"),
        ([], "Missing command"),
    ],
)
def test_wrong_use_is_exit_code_2_and_says_where_help_is(arguments, sentence, capsys):
    def go(name: str, size: int = 3) -> dict:
        """Never run."""
        raise AssertionError

    app = make_app(go)
    with pytest.raises(UsageError, match="--help"):
        console.invoke(app, arguments)
    assert console.run(app, [*arguments, "--json"]) == 2
    out, _ = capsys.readouterr()
    if arguments:  # `osdface --json` alone: there is no such option
        assert sentence in json.loads(out)["error"]


def test_invoke_returns_the_result_and_leaves_an_interrupt_one():
    def go() -> dict:
        """Give."""
        return {"digest": "d"}

    assert console.invoke(make_app(go), ["go"]) == {"digest": "d"}
    with pytest.raises(KeyboardInterrupt):
        console.invoke(raising(KeyboardInterrupt()), ["go"])


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys):
    with console.progress("steps") as progress:
        for step in range(1, 1001):
            progress("hq", step, 1000, {"train/l1": 0.25})
        progress("lq", 1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "hq 1/1000 steps l1 0.25"
    assert "hq 1000/1000 steps l1 0.25" in lines
    assert lines[-1] == "lq 1/2 steps"
    assert len(lines) < 100, "not a line a step"
    assert not any("\x1b" in line or "\r" in line for line in lines)


def test_progress_is_one_bar_for_each_label_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen, force_terminal=True, width=100, _environ={}))
    with console.progress("steps") as progress:
        for step in range(5):
            progress("hq", step + 1, 5, {"l1": 0.5})
            progress("lq", step + 1, 5)
    last = screen.getvalue().rpartition("\x1b[2K")[2]
    assert last.count("hq l1 0.5") == 1
    assert last.count("lq") == 1
    assert "5/5" in last


def test_what_should_be_there_is_named_where_it_is_not(tmp_path):
    assert console.existing(tmp_path, "folder") == tmp_path
    with pytest.raises(UserError, match=r"gone\.png: no such picture"):
        console.existing(tmp_path / "gone.png", "picture")
