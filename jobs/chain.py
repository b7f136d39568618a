"""`osdface run`: a chain of commands as one resumable job.

A step is done when its receipt carries the digest of its commands, their configurations, its inputs and the steps it
needs, and what it makes is there. A step that was killed runs again: its commands resume by themselves.
"""

import contextlib
import shlex
import shutil
import string
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError, model_validator
from rich.markup import escape

from jobs import configs, console
from osdface.config import Strict, digest, home, read
from osdface.errors import UsageError, UserError
from osdface.files import sha256, write_json

GIVEN = ("work", "home")  # names that every line may use beside the steps'


class ChainStep(Strict):
    """One step. Its lines may use {work}, {home}, and {STEP[key]} from the results of earlier steps.

    run: command lines without the leading `osdface`. after: command lines that run whatever happens. makes: paths
    that it leaves behind. inputs: files and folders from elsewhere whose contents count. needs: earlier steps whose
    results count; those that its lines name do anyway.
    """

    name: str
    needs: list[str] = []
    inputs: list[str] = []
    run: list[str]
    after: list[str] = []
    makes: list[str] = []

    def all_needs(self) -> list[str]:
        """The steps it needs, those named in its lines among them. Raises ValueError for a malformed line."""
        named = [name for line in (*self.run, *self.after, *self.inputs, *self.makes) for name in _names(line)]
        return sorted({*self.needs, *named} - {*GIVEN})


class Chain(Strict):
    """A chain file: the folder under $OSDFACE_HOME where it works, its steps, and lines to print at the end."""

    work: str
    steps: list[ChainStep]
    summary: list[str] = []

    @model_validator(mode="after")
    def _refuse_unknown_steps(self) -> "Chain":
        """Before anything runs, since what an hour of training comes before should not be a misspelt name."""
        known: set[str] = set()
        for step in self.steps:
            if step.name in known or step.name in GIVEN:
                raise ValueError(f"two things are named '{step.name}'; rename the step")
            for line in (*step.run, *step.after):
                shlex.split(line)
            if unknown := set(step.all_needs()) - known:
                raise ValueError(f"step '{step.name}' needs '{min(unknown)}', which is no earlier step")
            known.add(step.name)
        if unknown := {name for line in self.summary for name in _names(line)} - known - {*GIVEN}:
            raise ValueError(f"summary: '{min(unknown)}' is no step")
        return self


def _names(line: str) -> Iterator[str]:
    """What {NAME} and {NAME[key]} in a line refer to."""
    for _, field, _, _ in string.Formatter().parse(line):
        if field is not None:
            yield field.partition("[")[0]


class Receipt(Strict):
    """What is kept of a step: `result` and `seconds` once it is done."""

    key: str
    done: bool = False
    result: dict[str, Any] = {}
    seconds: float = 0


Invoke = Callable[[list[str]], dict[str, Any]]


class Runner:
    """Runs a chain. `invoke` runs one command line and returns its result."""

    def __init__(self, chain: Chain, invoke: Invoke):
        self.chain, self.invoke = chain, invoke
        self.work = home() / chain.work
        self.values: dict[str, Any] = {"work": str(self.work), "home": str(home())}
        self.digests: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Run or skip every step in order; returns the steps' results by name.

        Raises the error of the step that failed, its name put before it.
        """
        with self._alone():
            for step in self.chain.steps:
                receipt, key = self._receipt(step), self._key(step)
                if receipt and receipt.done and receipt.key == key and self._made(step):
                    console.say(f"[dim]-- {step.name}: done before ({receipt.seconds:.0f} s), skipped[/]")
                else:
                    receipt = self._execute(step, key, receipt)
                self.values[step.name] = receipt.result
                self.seconds[step.name] = receipt.seconds
                # With the result: a step that was done anew, its output lost, may have made something else.
                self.digests[step.name] = digest([key, receipt.result])
        return {step.name: self.values[step.name] for step in self.chain.steps}

    def summary(self) -> list[str]:
        """The chain's closing lines, filled in."""
        return [self._fill(line) for line in self.chain.summary]

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Two runs of a chain would write into the same folders."""
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            with FileLock(self.work / ".lock", timeout=0):
                yield
        except Timeout:
            raise UserError(f"{self.work}: another `osdface run` works there; wait until it has ended") from None

    def _key(self, step: ChainStep) -> str:
        lines = (*step.run, *step.after)
        return digest(
            {
                "run": step.run,
                "after": step.after,
                "configs": {line: self._settings(line) for line in lines},
                "inputs": {path: _content(Path(self._fill(path))) for path in step.inputs},
                "needs": {name: self.digests[name] for name in step.all_needs()},
            }
        )

    def _settings(self, line: str) -> Any:
        """The configuration file that a command line reads; None where it reads none."""
        words = self._words(line)
        given = [after for word, after in zip(words, [*words[1:], ""], strict=True) if word == "--config"]
        given += [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
        kind = words[1] if len(words) > 1 else ""
        if not given and not (configs.FOLDER / configs.DEFAULT / f"{kind}.yaml").is_file():
            return None
        files = configs.find(given[0] if given else configs.DEFAULT, kind)
        try:
            return read(files)
        except UsageError:
            return [path.read_text() for path in files]  # the command will say what is wrong with it

    def _made(self, step: ChainStep) -> bool:
        return all(Path(self._fill(path)).exists() for path in step.makes)

    def _execute(self, step: ChainStep, key: str, before: Receipt | None) -> Receipt:
        if before and not before.done:
            self._after(step)  # what a killed step left running
        if before and before.key != key:
            console.say(f"-- {step.name}: its inputs or configuration changed; what it made before is removed")
            self._remove(step)
        self._write(step, Receipt(key=key))
        start = time.monotonic()
        result: dict[str, Any] = {}
        try:
            for line in step.run:
                result |= self._command(step, line)
        finally:
            failed = self._after(step)
        if failed:
            raise failed
        return self._write(step, Receipt(key=key, done=True, result=result, seconds=time.monotonic() - start))

    def _after(self, step: ChainStep) -> Exception | None:
        """Run all `after` lines, each whatever came of the others; returns the first failure."""
        failures = []
        for line in step.after:
            try:
                self._command(step, line)
            except Exception as error:
                console.say(f"-- {escape(str(error))}")
                failures.append(error)
        return failures[0] if failures else None

    def _remove(self, step: ChainStep) -> None:
        """Remove what the step made in the work folder; elsewhere a chain file's slip could cost somebody's data."""
        for path in map(Path, map(self._fill, step.makes)):
            if path.resolve().is_relative_to(self.work.resolve()):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _command(self, step: ChainStep, line: str) -> dict[str, Any]:
        words = self._words(line)
        console.say(f"\n[bold]$ osdface {escape(shlex.join(words))}[/]")
        try:
            return self.invoke(words)
        except UserError as error:
            raise type(error)(f"step '{step.name}': {error}") from error

    def _words(self, line: str) -> list[str]:
        return [self._fill(word) for word in shlex.split(line)]

    def _fill(self, text: str) -> str:
        try:
            return text.format_map(self.values)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            known = "; ".join(f"{name}: {', '.join(v)}" for name, v in self.values.items() if name not in GIVEN)
            raise UsageError(f"'{text}': no result {error}; there are {known or 'none yet'}") from None

    def _receipt_path(self, step: ChainStep) -> Path:
        return self.work / "steps" / f"{step.name}.json"

    def _receipt(self, step: ChainStep) -> Receipt | None:
        with contextlib.suppress(FileNotFoundError, ValidationError):
            return Receipt.model_validate_json(self._receipt_path(step).read_bytes())
        return None

    def _write(self, step: ChainStep, receipt: Receipt) -> Receipt:
        """Write a receipt; returns it as it will be read, in plain JSON types."""
        path = self._receipt_path(step)
        write_json(path, receipt.model_dump())
        return Receipt.model_validate_json(path.read_bytes())


def _content(path: Path) -> str:
    """Digest of a file, or of a folder's files and their names. Raises UserError if there is nothing there."""
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        raise UserError(f"{path}: this input of the chain is not there")
    return digest({str(file.relative_to(path)): sha256(file) for file in sorted(path.rglob("*")) if file.is_file()})
