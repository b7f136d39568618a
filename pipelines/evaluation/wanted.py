"""What a user asks to be evaluated, and which wishes go together."""

from pathlib import Path
from typing import Literal

from osdface.config import Strict
from osdface.errors import UsageError
from pipelines.evaluation import sets
from pipelines.evaluation.pictures import REFERENCE, Matched, Pairs, Pictures

PLACES = ("data", "reference", "no_reference", "set")
# An option, those that it needs one of, those that it excludes.
RULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "data": (("model",), ("restored",)),
    "split": (("data",), ()),
    "reference": (("restored",), ("model",)),
    "restored": (("reference", "set"), ("model",)),
    "no_reference": ((), ("model", "restored")),
    "set": (("root",), ()),
    "root": (("set",), ()),
    "against": (("model",), ()),
    "require": (("against",), ()),
}


class Wanted(Strict):
    """Options of `osdface evaluate`, as it describes them; addresses of folders, archives or URLs.

    On one of a pair dataset (`data`), a named set in `root`, pictures with their references, or without. metrics: by
    name, None for all. workers: 1 is this process; None too, or as many as fit on the Ray cluster at `address`.
    """

    model: str | None = None
    against: str | None = None
    data: str | None = None
    split: Literal["train", "val", "test"] | None = None
    restored: str | None = None
    reference: str | None = None
    no_reference: str | None = None
    set: str | None = None
    root: str | None = None
    metrics: tuple[str, ...] | None = None
    require: str | None = None
    workers: int | None = None
    address: str | None = None

    def check(self) -> None:
        """Raise UsageError for wishes that do not go together."""
        given = [name for name in PLACES if self._has(name)]
        if len(given) != 1:
            these = ", ".join(map(_option, given)) or "none of them"
            raise UsageError(f"give one of {', '.join(map(_option, PLACES))}: which pictures to look at; here {these}")
        for name, (needs, excludes) in RULES.items():
            if not self._has(name):
                continue
            if needs and not any(map(self._has, needs)):
                raise UsageError(f"{_option(name)} goes with {' or '.join(map(_option, needs))}: give that too")
            if wrong := next(filter(self._has, excludes), None):
                raise UsageError(f"{_option(name)} does not go with {_option(wrong)}: leave one of them out")
        if self.require and self.metrics and self.require not in self.metrics:
            raise UsageError(f"--require {self.require}: is none of --metrics {','.join(self.metrics)}")

    def pictures(self) -> Pictures:
        """Those to look at. Raises UserError where they are not there, or not what they should be."""
        if self.data:
            return Pairs(self.data, self.split or "test")
        if self.set and self.root:
            return sets.load(self.set).pictures(self.root, self.restored)
        if self.no_reference:
            return Matched({"restored": self.no_reference})
        assert self.restored
        assert self.reference
        return Matched({"restored": self.restored, REFERENCE: self.reference})

    def name(self) -> str:
        """Of the run: the set's, the split's, or "pictures"."""
        return self.set or (self.split or "test" if self.data else "pictures")

    def alone(self) -> bool:
        """Whether this process does all of the work."""
        return self.address is None and self.workers in (None, 1)

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def from_options(metrics: str | None, **options: str | Path | int | None) -> Wanted:
    """Of the command line's own values."""
    chosen = tuple(name.strip() for name in metrics.split(",") if name.strip()) if metrics else None
    return Wanted(metrics=chosen, **options)  # type: ignore[arg-type]
