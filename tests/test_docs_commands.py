"""Every command line of README and docs parses; those that nothing here is missing for are run (`make test-full`)."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import typer

from jobs import configs, console
from jobs.cli import app
from tests import documents
from tests.documents import Command

COMMAND = typer.main.get_command(app)
OURS = documents.commands("osdface")
PLACEHOLDER = re.compile(r"\[|FORMAT$|N$")  # of a line within a sentence: no value that could be checked
# Why a line is not run, by what it holds: what is missing here, or which test runs the command otherwise.
NEEDS = {
    "--config paper": "FFHQ, SD 2.1-base, GPUs",
    "--config ablations/": "FFHQ, SD 2.1-base, GPUs",
    "--config shipped": "an hour and a half: make quality",
    "--device cuda": "a GPU",
    "--measure": "memory for sd21: benchmarks/results/restore.md",
    "--set celeba_test": "the test sets",
    "--set wider_test": "the test sets",
    "--set lfw_test": "the test sets",
    "--set webphoto_test": "the test sets",
    "import-official": "the authors' checkpoints: tests/osdface/test_official.py has some in their layout",
    "weights add": "weights of others: tests/jobs/test_weights_command.py",
    "weights check": "weights of others: tests/jobs/test_weights_command.py",
    "s3://": "an object store: tests/pipelines/test_synthesize_s3.py",
    "PICTURES": "pictures of your own",
    " MORE": "more pictures: tests/pipelines/test_data_command.py",
    " HASH": "a hash of yours: tests/pipelines/test_data_command.py",
    " NAME": "a training's name: tests/pipelines",
    "FFHQ": "FFHQ",
    "train ": "minutes: tests/test_whole_chain.py runs them in the demo's chain, with fewer steps",
    "run jobs/": "minutes: tests/test_whole_chain.py runs it, with fewer steps",
    "jobs ": "a cluster: tests/jobs/test_jobs_command.py",
    "serve ": "a port of its own: tests/test_whole_chain.py, tests/pipelines/serve",
    "--url": "an endpoint: tests/test_whole_chain.py",
    "models ": "a registry with trained versions: tests/test_whole_chain.py, tests/jobs, tests/pipelines",
    "champion": "a registry with a champion: tests/test_whole_chain.py",
    "--count 6000": "minutes",
    "--model REF": "the same with names: quickstart.md",
    "--restored DIR": "pictures of a method: tests/jobs/test_evaluate_command.py",
    "--no-reference DIR": "the same",
}


def leaf(words: list[str]) -> tuple[typer.core.TyperCommand, list[str]]:
    """The command that words name, and the words that are its own. Fails for a name that is none."""
    command = COMMAND
    while hasattr(command, "commands") and words:
        name, *words = words
        assert name in command.commands, f"no such command: {name}"
        command = command.commands[name]
    return command, words


def parse(command: Command) -> None:
    """Parse without running. Raises what typer raises for a line that is wrong."""
    found, words = leaf(command.words[1:])
    if hasattr(found, "commands"):
        return
    if not command.whole:
        words = words[: next((at for at, word in enumerate(words) if PLACEHOLDER.match(word)), len(words))]
        words = words[:-1] if words and words[-1] in ("--format", "--replay") else words
    try:
        found.make_context(found.name, words)
    except typer.exceptions.TyperException as error:
        if command.whole or type(error).__name__ != "MissingParameter":
            raise


def test_lines_are_found():
    assert len(OURS) > 80
    assert {"README.md", "docs/quickstart.md", "docs/reproduce.md", "docs/training.md"} <= {c.page for c in OURS}


@pytest.mark.parametrize("command", OURS, ids=lambda c: f"{c.page}: {c.line}")
def test_a_line_parses(command):
    parse(command)
    words = command.words
    if "--config" in words and words[1] in ("train", "data"):
        configs.find(words[words.index("--config") + 1], words[2])  # raises for a set that isn't there


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        ("osdface train osd --out model --frob", False),
        ("osdface trian osd", False),
        ("osdface train osd", True),
        ("osdface data verify pairs --replay many", True),
        ("osdface data show pairs key extra --out p.png", False),
    ],
)
def test_a_wrong_line_does_not(line, whole):
    with pytest.raises((typer.exceptions.TyperException, AssertionError)):
        parse(Command("page", line, whole))


def test_makes_targets_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (documents.ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {command.words[1] for command in documents.commands("make")} <= targets


@pytest.mark.parametrize("command", documents.commands("python"), ids=lambda c: f"{c.page}: {c.line}")
def test_a_program_is_there_and_knows_the_options(command):
    _, *words = command.words
    if words[0] == "-m":
        _, module, *words = words
        file = Path(importlib.util.find_spec(module).origin)
    else:
        file = documents.ROOT / words.pop(0)
    text = file.read_text()
    assert '__name__ == "__main__"' in text
    for word in words:
        assert not word.startswith("--") or f'"{word}"' in text


def test_every_whole_line_is_run_or_says_what_it_needs():
    runnable = [command.line for command in OURS if command.whole and not needs(command)]
    assert len(runnable) > 15
    held = "\n".join(command.line for command in OURS)
    assert [part for part in NEEDS if part not in held] == []


def needs(command: Command) -> str | None:
    return next((why for part, why in NEEDS.items() if part in command.line), None)


@pytest.mark.full
def test_lines_run_in_their_order(tmp_path, home, monkeypatch, bundle_folder, ray_session, capfd):
    """In one folder, where the model is a bundle of random weights, since trainings are run elsewhere."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle_folder, tmp_path / "model")
    ran: dict[str, int] = {}
    for command in OURS:
        if command.whole and not needs(command) and command.line not in ran:
            ran[command.line] = console.run(app, command.words[1:])
    said = capfd.readouterr().err
    assert {line: code for line, code in ran.items() if code} == {}, said[-3000:]
    assert (tmp_path / "evaluation" / "report.html").is_file()
