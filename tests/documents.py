"""What README and docs/ hold that a test can try: command lines, names, tables."""

import itertools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FIRST = [ROOT / "docs" / "quickstart.md", ROOT / "README.md", ROOT / "CONTRIBUTING.md"]  # others use what these make
PAGES = [*FIRST, *sorted({*(ROOT / "docs").glob("*.md")} - {*FIRST})]
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


class Command(NamedTuple):
    """A command line of a page. whole: of a block, or of README's table; others may leave things out."""

    page: str
    line: str
    whole: bool

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)


def commands(program: str) -> list[Command]:
    """Every command line of a program, with its remarks taken off; each of a page once."""
    found: dict[Command, None] = {}
    for page in PAGES:
        text = page.read_text()
        blocks = "\n".join(FENCE.findall(text)).replace("\\\n", " ")
        lines = [(re.split(r"\s#|\s{2,}(?=[^-\s])", line)[0], True) for line in blocks.splitlines()]
        lines += [(span, page.name == "README.md") for span in SPAN.findall(FENCE.sub("", text))]
        for line, whole in lines:
            if line.startswith(f"{program} "):
                first, *others = line.split(" | ")  # commands of one group
                group = " ".join(first.split()[:2])
                for one in (first, *(f"{group} {other}" for other in others)):
                    found[Command(page.relative_to(ROOT).as_posix(), " ".join(one.split()), whole)] = None
    return list(found)


def rows(page: str) -> list[list[str]]:
    """The cells of all rows of a page's tables, without heads."""
    return table((ROOT / "docs" / page).read_text())


def table(text: str) -> list[list[str]]:
    """The same of a text."""
    lines = text.splitlines()
    bodies = [line for before, line in itertools.pairwise(lines) if line.startswith("| ") and before.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in bodies]
