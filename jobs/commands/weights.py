"""osdface weights: the third-party files, which of them are here, and putting one into its place."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from jobs import console
from osdface.errors import UserError

if TYPE_CHECKING:
    from osdface.weights import Status

app = typer.Typer(help="Third-party weight files: what is here, what an absence switches off, adding one.")

DIGITS = 8  # of a digest, on the screen
DIGESTS = {
    "ok": "[green]ok[/]", "mismatch": "[red]another file[/]", "unknown": "no digest published",
    "not checked": "not checked",
}  # fmt: skip


def list_() -> dict[str, Any]:
    """List every file: name, licence, where it is looked for, and what its absence switches off."""
    return _told(check=False)


console.command(app, "list", "osdface weights list")(list_)


def check() -> dict[str, Any]:
    """Compare the files that are here with their published digests, and read each as what it claims to be."""
    from osdface import weightfile

    result = _told(check=True)
    if faults := weightfile.faults():
        raise UserError("; ".join(faults.values()))
    return result


console.command(app, "check", "osdface weights check")(check)


def add(
    file: Annotated[Path, typer.Argument(help="The file, under whatever name it was published.")],
    name: Annotated[
        str | None, typer.Option("--as", help="What it is, by the name that `list` has, where its own does not say.")
    ] = None,
) -> dict[str, Any]:
    """Copy a file to where it is looked for, after it is recognised by digest or name and read as what it claims."""
    from osdface import weightfile

    added = weightfile.add(file, name)._asdict()
    console.table(added)
    return added


console.command(app, "add", "osdface weights add vgg16-397923af.pth")(add)


def _told(check: bool) -> dict[str, Any]:
    from osdface import weights

    files = weights.status(check)
    tables(files)
    return {"weights": [status._asdict() for status in files]}


def tables(files: "list[Status]") -> None:
    """Show which files are here, which are not, what that switches off, and where they are looked for."""
    here = _table("Third-party weights that are here", "name", "file", "sha256", "licence", "at")
    absent = _table("Third-party weights that are not here", "name", "file", "sha256", "switches off", "so")
    places: dict[Path, None] = {}  # in order, each once
    for status in files:
        if status.path:
            here.add_row(status.name, status.file, DIGESTS[status.digest], status.licence, escape(str(status.path)))
        else:
            digest = f"{status.expected[:DIGITS]}..." if status.expected else DIGESTS["unknown"]
            absent.add_row(status.name, status.file, digest, status.switches_off, status.otherwise)
            places |= dict.fromkeys(status.looked_in)
    for table in (here, absent):
        if table.row_count:
            console.show(table)
    if places:
        console.say("All else works without them; `osdface weights add FILE` adds one. Looked for, in this order, in:")
        for place in places:
            console.say(f"  {escape(str(place))}")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
