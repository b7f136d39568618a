"""A chain file: steps of commands, what they need and make."""

import re
import shlex
import string
from collections.abc import Iterator

from pydantic import model_validator

from osdface.config import Strict

GIVEN = ("work", "home")  # names that every line may use beside the steps'
NAME = re.compile(r"[A-Za-z][\w-]*")  # of a step: of its receipt as well


class ChainStep(Strict):
    """One step. Its lines may use {work}, {home}, and {STEP[key]} from the results of earlier steps.

    run: command lines without the leading `osdface`. after: command lines that run whatever happens. makes: paths or
    URLs that it leaves behind. inputs: files and folders from elsewhere whose contents count, by path or URL. needs:
    earlier steps whose results count; those that its lines name do anyway.
    """

    name: str
    needs: list[str] = []
    inputs: list[str] = []
    run: list[str]
    after: list[str] = []
    makes: list[str] = []

    def all_needs(self) -> list[str]:
        """The steps it needs, those named in its lines among them. Raises ValueError for a malformed line."""
        named = [name for line in (*self.run, *self.after, *self.inputs, *self.makes) for name in names(line)]
        return sorted({*self.needs, *named} - {*GIVEN})


class Chain(Strict):
    """A chain file: where it works, its steps, and lines to print at the end.

    work: a folder of the storage (`pipelines.store.storage`), or a URL that all nodes see; receipts lie there too.
    """

    work: str
    steps: list[ChainStep]
    summary: list[str] = []

    @model_validator(mode="after")
    def _refuse_unknown_steps(self) -> "Chain":
        """Before anything runs, since what an hour of training comes before should not be a misspelt name."""
        known: set[str] = set()
        for step in self.steps:
            if not NAME.fullmatch(step.name):
                raise ValueError(f"step '{step.name}': a name is a letter, then letters, digits, - and _")
            if step.name in known or step.name in GIVEN:
                raise ValueError(f"two things are named '{step.name}'; rename the step")
            for line in (*step.run, *step.after):
                if not shlex.split(line):
                    raise ValueError(f"step '{step.name}': an empty command line")
            if unknown := set(step.all_needs()) - known:
                raise ValueError(f"step '{step.name}' needs '{min(unknown)}', which is no earlier step")
            known.add(step.name)
        if unknown := {name for line in self.summary for name in names(line)} - known - {*GIVEN}:
            raise ValueError(f"summary: '{min(unknown)}' is no step")
        return self


def names(line: str) -> Iterator[str]:
    """What {NAME} and {NAME[key]} in a line refer to."""
    for _, field, _, _ in string.Formatter().parse(line):
        if field is not None:
            yield field.partition("[")[0]
