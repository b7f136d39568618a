"""The table in the shape of the paper's: what was measured here, under rows that are quoted."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from osdface import config
from osdface.config import Strict

FILE = Path(__file__).parent / "paper.yaml"
ARROWS = {"lower": "↓", "higher": "↑"}
NAMES = {"lq": "input (LQ)", "restored": "restored", "against": "against"}


class Column(Strict):
    """better: its direction. ours: our metrics by the paper's protocol; the first one there is fills the column."""

    better: Literal["higher", "lower"]
    ours: list[str]


class Quoted(Strict):
    """A table of the paper. rows: by method, a value a column."""

    title: str
    columns: list[str]
    rows: dict[str, list[float | None]]


class Paper(Strict):
    """What is quoted."""

    columns: dict[str, Column]
    tables: dict[str, Quoted]


class Table(NamedTuple):
    """head: with arrows. rows: (name, cells, whether quoted). note: what the quoted rows are, and how they compare."""

    title: str
    head: list[str]
    rows: list[tuple[str, list[str], bool]]
    note: str

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "rows": [{"name": n, "cells": c, "quoted": q} for n, c, q in self.rows]}


def table(summary: dict[str, Any], which: str | None, references: bool, names: dict[str, str]) -> Table:
    """Of a summary. which: the test set's name; other pictures with references get table 1, others table 2's columns.

    names: of our rows, by what they are.
    """
    paper = config.load(Paper, FILE)
    quoted = paper.tables[which or ("celeba_test" if references else "wider_test")]
    metrics: dict[str, dict[str, float | None]] = summary["metrics"]
    there = {name for name, by in metrics.items() if any(value is not None for value in by.values())}
    used = [next((name for name in paper.columns[head].ours if name in there), None) for head in quoted.columns]
    ours = [
        (names.get(one) or NAMES[one], [_cell(metrics[name][one] if name else None) for name in used], False)
        for one in next(iter(metrics.values()))
    ]
    theirs = [(name, [_cell(value) for value in values], True) for name, values in quoted.rows.items()]
    shown = theirs if which or references else []
    return Table(
        quoted.title if which else "Pictures of your own, in the columns of the paper's " + quoted.title.split(",")[0],
        [f"{head} {ARROWS[paper.columns[head].better]}" for head in quoted.columns],
        [*shown, *ours],
        _note(quoted, which, used, bool(shown)),
    )


def _note(quoted: Quoted, which: str | None, used: list[str | None], shown: bool) -> str:
    ours = ", ".join(f"{head}: {name}" for head, name in zip(quoted.columns, used, strict=True) if name)
    said = f"Measured here: {ours or 'none of these'}."
    if not shown:
        return said
    where = "on this set" if which else f"on other pictures ({quoted.title}), so no comparison with those here"
    return f"Rows marked as quoted are the paper's own figures, {where}. {said}"


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:.3f}"
