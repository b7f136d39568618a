"""One line of the table that decides over a version."""

from collections.abc import Sequence
from typing import NamedTuple

from osdface.errors import UserError


class Check(NamedTuple):
    """A gate, what was found, what it wants, whether that holds, and what to do or know."""

    gate: str
    found: str
    wanted: str
    passed: bool
    note: str = ""

    def sentence(self) -> str:
        """What is wrong, in short."""
        return f"{self.gate}: {self.found}, wanted {self.wanted}" + (f" ({self.note})" if self.note else "")


class Refused(UserError):
    """A version does not become the champion; `checks` are all that were made."""

    def __init__(self, message: str, checks: Sequence[Check]):
        super().__init__(message)
        self.checks = list(checks)
        self.details = {"checks": [check._asdict() for check in checks]}


def failed(checks: Sequence[Check]) -> list[Check]:
    """Those that do not hold."""
    return [check for check in checks if not check.passed]


def number(value: float | None) -> str:
    """A figure as tables show it."""
    return "not measured" if value is None else f"{value:.4g}"
