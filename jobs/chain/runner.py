"""Which steps of a chain run and why; running them."""

import json
import shlex
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

from rich.markup import escape

from jobs import console
from jobs.chain import basis, code
from jobs.chain.file import GIVEN, Chain, ChainStep, names
from jobs.chain.record import Record, recorded
from jobs.chain.state import Receipt, State, content, exists
from osdface.config import digest, home
from osdface.errors import UsageError, UserError

Invoke = Callable[[list[str]], dict[str, Any]]


class Selection(NamedTuple):
    """Which steps of a chain are looked at: all, one, or one and those after it. force: they run, done or not."""

    first: str | None = None
    only: str | None = None
    force: bool = False

    def of(self, chain: Chain) -> tuple[list[ChainStep], list[ChainStep]]:
        """The steps before those that are chosen, and these. Raises UsageError for a step that the chain hasn't."""
        if self.first is not None and self.only is not None:
            raise UsageError("--from and --only: give one of them")
        if self.name is None:
            return [], chain.steps
        known = [step.name for step in chain.steps]
        if self.name not in known:
            raise UsageError(f"{self} {self.name}: no such step; the chain's steps: {', '.join(known)}")
        at = known.index(self.name)
        return chain.steps[:at], chain.steps[at : None if self.only is None else at + 1]

    @property
    def name(self) -> str | None:
        """The step that is named."""
        return self.first if self.only is None else self.only

    def __str__(self) -> str:
        return "--from" if self.only is None else "--only"


ALL = Selection()


class Planned(NamedTuple):
    """What would become of a step: run, skip, or skip unless a step that it needs gives another result; and why."""

    step: str
    outcome: str
    why: str


class Judged(NamedTuple):
    """A step now: its receipt, what it would be done from and that one's digest; why it runs, empty if it is done."""

    before: Receipt | None
    basis: dict[str, Any]
    key: str
    why: str

    @property
    def changed(self) -> bool:
        """Whether it was begun from something else."""
        return self.before is not None and self.before.key != self.key


class Runner:
    """Runs a chain, or a selection of its steps. `invoke` runs one command line and returns its result.

    name: of the chain's MLflow run; without one it has none. Raises UsageError for a selection that the chain has not.
    """

    def __init__(self, chain: Chain, invoke: Invoke, selection: Selection = ALL, name: str | None = None):
        self.chain, self.invoke, self.selection, self.name = chain, invoke, selection, name
        self.earlier, self.chosen = selection.of(chain)
        self.state = State(chain.work)
        self.work = self.state.store.uri
        self.values: dict[str, Any] = {"work": self.work, "home": str(home())}
        self.digests: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Run or skip the chosen steps in order; returns all results that there are, by the steps' names.

        Raises the error of the step that failed, its name put before it.
        """
        with self.state.alone():
            self._take_earlier()
            with recorded(self.state, self.chain, self.name) if self.name else nullcontext() as record:
                for step in self.chosen:
                    self._take(step, self._run_or_skip(step, record))
        return {step.name: self.values[step.name] for step in self.chain.steps if step.name in self.values}

    def plan(self) -> list[Planned]:
        """What `run` would do. Nothing is written, locked or recorded."""
        self._take_earlier()
        planned: dict[str, Planned] = {}
        for step in self.chosen:
            planned[step.name] = self._foresee(step, planned)
        return list(planned.values())

    def summary(self) -> list[str]:
        """The chain's closing lines, filled in; without those of steps that aren't done."""
        return [self._fill(line) for line in self.chain.summary if {*names(line)} <= self.values.keys()]

    def _take_earlier(self) -> None:
        """Take earlier steps as they are, changed or not. Raises UserError where one that is needed isn't done."""
        for step in self.earlier:
            receipt = self.state.receipt(step.name)
            if receipt and receipt.done:
                self._take(step, receipt)
        needed = {name for step in self.chosen for name in step.all_needs()}
        for step in self.earlier:
            if step.name in needed and (step.name not in self.values or self._gone(step)):
                raise UserError(
                    f"{self.selection} {self.selection.name}: it needs step '{step.name}', which is not done; "
                    f"`--from {step.name}` begins there"
                )

    def _take(self, step: ChainStep, receipt: Receipt) -> None:
        """Make a step's result known to those after it."""
        self.values[step.name] = receipt.result
        self.seconds[step.name] = receipt.seconds
        # With the result: a step that was done anew, its output lost, may have made something else.
        self.digests[step.name] = digest([receipt.key, receipt.result])

    def _judge(self, step: ChainStep) -> Judged:
        before, now = self.state.receipt(step.name), self._basis(step)
        judged = Judged(before, now, digest(now), "")
        if self.selection.force:
            why = "--force"
        elif before is None:
            why = "not done yet"
        elif judged.changed:
            why = basis.differences(before.basis, now)
        elif not before.done:
            why = "it was stopped before its end, and goes on"
        else:
            gone = self._gone(step)
            why = f"what it made is gone: {', '.join(gone)}" if gone else ""
        return judged._replace(why=why)

    def _foresee(self, step: ChainStep, planned: dict[str, Planned]) -> Planned:
        """`_judge` without the results of steps that are to run."""
        needs = [planned[name] for name in step.all_needs() if name in planned]
        if self.selection.force or not self.state.receipt(step.name):
            return Planned(step.name, "run", "--force" if self.selection.force else "not done yet")
        if waited := [need.step for need in needs if need.step not in self.values]:
            return Planned(step.name, "run", f"needs step {', '.join(waited)}, which reruns")
        before, _, key, why = self._judge(step)
        assert before
        if before.done and before.key == key:  # if it runs, since what it made is gone, it should give the same again
            self._take(step, before)
        if why:
            return Planned(step.name, "run", why)
        if unsure := [need.step for need in needs if need.outcome != "skip"]:
            return Planned(step.name, "maybe", f"needs step {', '.join(unsure)}: skipped if that gives the same again")
        return Planned(step.name, "skip", _done(before))

    def _basis(self, step: ChainStep) -> dict[str, Any]:
        """All that decides what a step makes, in plain JSON types."""
        words = {line: self._words(line) for line in (*step.run, *step.after)}
        found = {
            "run": step.run,
            "after": step.after,
            "configs": {line: basis.settings(filled) for line, filled in words.items()},
            "code": {_command(words[line]): code.of(words[line]) for line in step.run},
            "inputs": {place: content(self._fill(place)) for place in step.inputs},
            "needs": {name: self.digests[name] for name in step.all_needs()},
        }
        return json.loads(json.dumps(found, default=str))

    def _gone(self, step: ChainStep) -> list[str]:
        return [place for place in map(self._fill, step.makes) if not exists(place)]

    def _run_or_skip(self, step: ChainStep, record: Record | None) -> Receipt:
        """The step's receipt, once it is done. What becomes of it is recorded."""
        judged = self._judge(step)
        start, outcome, receipt = time.monotonic(), "stopped", judged.before
        try:
            if receipt and not judged.why:
                console.say(f"[dim]-- {step.name}: {_done(receipt)}, skipped[/]")
                outcome = "skipped"
            else:
                receipt = self._execute(step, judged)
                outcome = "ran"
            return receipt
        except Exception:
            outcome = "failed"
            raise
        finally:
            if record:
                seconds = receipt.seconds if receipt and outcome == "skipped" else time.monotonic() - start
                record.step(step.name, outcome, judged.why or "done before", seconds, judged.key)

    def _execute(self, step: ChainStep, judged: Judged) -> Receipt:
        start = time.monotonic()
        if judged.before and not judged.before.done:
            self._after(step)  # what a killed step left running
        if judged.before:
            console.say(f"-- {step.name}: {escape(judged.why)}")
        if judged.changed or self.selection.force:
            self._remove(step)
        receipt = Receipt(key=judged.key, basis=judged.basis, anew=self._anew(step, judged))
        result = self._run_lines(step, receipt)
        done = {"done": True, "result": result, "seconds": time.monotonic() - start, "anew": {}}
        return self.state.keep(step.name, receipt.model_copy(update=done))

    def _anew(self, step: ChainStep, judged: Judged) -> dict[str, str]:
        """The trainings that are not to go on with a run of theirs, since other code began it, or by wish."""
        before, now = judged.before, judged.basis["code"]
        trainings = {line: _command(words) for line in step.run if (words := self._words(line))[0] == "train"}
        if self.selection.force or (before and not before.basis):
            return dict.fromkeys(trainings, "")
        if before is None:
            return {}
        known = now | before.basis["code"]  # a command that is new to the step has left nothing
        kept = {line: run for line, run in before.anew.items() if line in trainings}
        return kept | {line: "" for line, command in trainings.items() if known[command] != now[command]}

    def _run_lines(self, step: ChainStep, receipt: Receipt) -> dict[str, Any]:
        self.state.keep(step.name, receipt)
        result: dict[str, Any] = {}
        try:
            for line in step.run:
                words = self._words(line)
                if line in receipt.anew and not any(word.startswith("--resume") for word in words):
                    found = self._run_to_resume(words)
                    anew = receipt.anew | {line: receipt.anew[line] or found}
                    receipt = self.state.keep(step.name, receipt.model_copy(update={"anew": anew}))
                    words += ["--resume", "never"] if found == anew[line] else []  # else it had begun, and was stopped
                result |= self._run_line(step, words)
        finally:
            failed = self._after(step)
        if failed:
            raise failed
        return result

    def _run_to_resume(self, words: list[str]) -> str:
        """The run that a training would go on with, as its dry run says."""
        with console.out.capture():
            found = self.invoke([*words, "--dry-run"])
        return found["run"] if found["resumes"] else "none"

    def _after(self, step: ChainStep) -> Exception | None:
        """Run all `after` lines, each whatever came of the others; returns the first failure."""
        failures = []
        for line in step.after:
            try:
                self._run_line(step, self._words(line))
            except Exception as error:
                console.say(f"-- {escape(str(error))}")
                failures.append(error)
        return failures[0] if failures else None

    def _remove(self, step: ChainStep) -> None:
        removed = [place for place in map(self._fill, step.makes) if self.state.remove(place)]
        if removed:
            console.say(f"-- {step.name}: what it made before is removed: {escape(', '.join(removed))}")

    def _run_line(self, step: ChainStep, words: list[str]) -> dict[str, Any]:
        self.state.check()
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


def _command(words: list[str]) -> str:
    return " ".join(words[:2])


def _done(receipt: Receipt) -> str:
    return f"done before ({receipt.seconds:.0f} s)"
