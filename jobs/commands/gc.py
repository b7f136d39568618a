"""osdface gc: what nothing refers to any more."""

from typing import Annotated

import typer

from jobs import console

UNITS = {"h": 3600, "d": 86400}


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    console.command(app, "gc", "osdface gc")(gc)


def gc(
    places: Annotated[list[str] | None, typer.Argument(help="Datasets of no run, to be looked at as well.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove what is listed.")] = False,
    older_than: Annotated[str, typer.Option(help="Leave what was written to of late: hours or days, 6h or 2d.")] = "1d",
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints of a finished training that stay, the last ones.")] = 1,
) -> dict:
    """List what no manifest, run or version refers to any more in the storage; with --delete, remove it."""
    from rich.table import Table

    from pipelines import garbage

    found = garbage.Search(places or [], _seconds(older_than), keep).found()
    table = Table(box=None, pad_edge=False)
    for title in ("what", "where", "MiB", "why"):
        table.add_column(title, overflow="fold", justify="right" if title == "MiB" else "left")
    for orphan in found.orphans:
        table.add_row(orphan.kind, f"{orphan.place}/{orphan.name}", f"{orphan.bytes / 2**20:.1f}", orphan.why)
    if found.orphans:
        console.show(table)
    for place, why in found.left.items():
        console.say(f"{place}: left alone, {why}")
    removed = list(garbage.remove(found.orphans)) if delete else []
    total = sum(orphan.bytes for orphan in found.orphans)
    told = f"removed {len(removed)}" if delete else f"{len(found.orphans)} could go (--delete removes them)"
    console.say(f"{told}, {total / 2**20:.1f} MiB")
    return {
        "orphans": [orphan._asdict() for orphan in found.orphans],
        "left": found.left,
        "bytes": total,
        "deleted": delete,
    }


def _seconds(age: str) -> float:
    from osdface.errors import UsageError

    number, unit = age[:-1], age[-1:]
    if not number.isdigit() or unit not in UNITS:
        raise UsageError(f"--older-than {age}: write hours or days, such as 6h or 2d")
    return int(number) * UNITS[unit]
