"""A chain's own MLflow run, whose children are the runs that its steps begin."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from jobs import console
from jobs.chain.file import Chain
from jobs.chain.state import RUN, State
from osdface.errors import UserError

if TYPE_CHECKING:
    from pipelines.tracking import Run


class Record:
    """What becomes of each step, noted in the chain's run."""

    def __init__(self, run: "Run", state: State, steps: dict[str, dict[str, Any]]):
        self.run, self.state, self.steps = run, state, steps

    def step(self, name: str, outcome: str, why: str, seconds: float, key: str) -> None:
        """A step that ran, was skipped, failed or was stopped. seconds: that it took when it was done."""
        known = self.steps.get(name, {})
        if outcome == "skipped" and (known.get("outcome"), known.get("key")) == ("ran", key):
            return  # before this run of the chain was stopped and gone on with
        self.steps[name] = {"outcome": outcome, "why": why, "seconds": round(seconds, 1), "key": key}
        self.note()
        self.run.tag({f"step.{name}": outcome})
        self.run.metrics({f"seconds/{name}": seconds}, 0)
        self.file("steps.json", self.steps)

    def note(self, ended: bool = False) -> None:
        """Note the run beside the receipts: a chain that was stopped goes on with it."""
        self.state.write(RUN, {"run_id": self.run.id, "ended": ended, "steps": self.steps})

    def file(self, name: str, value: Any) -> None:
        """Log a value as a JSON file."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_text(json.dumps(value, indent=2))
            self.run.artifact(path)


@contextlib.contextmanager
def recorded(state: State, chain: Chain, name: str) -> Iterator[Record | None]:
    """Begin the chain's run, or go on with that of a chain that was stopped; runs begun in the block are its children.

    A chain goes on without one where the tracking server does not answer, or MLflow isn't installed.
    """
    noted = state.read(RUN) or {}
    before = {} if noted.get("ended") else noted
    record = None
    with contextlib.ExitStack() as held:
        try:
            from pipelines import tracking

            begun = tracking.run("chain", name, {"work": state.store.uri}, None, "", {}, before.get("run_id"))
            run = held.enter_context(begun)
            record = Record(run, state, before.get("steps", {}) if run.id == before.get("run_id") else {})
            held.enter_context(tracking.parent(run))
        except (UserError, ImportError) as error:
            console.say(f"[dim]-- no MLflow run of the chain as a whole: {escape(str(error))}[/]")
        if record:
            record.note()
            record.file("chain.json", chain.model_dump())
        yield record
    if record:
        record.note(ended=True)
