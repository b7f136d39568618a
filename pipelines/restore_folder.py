"""`osdface restore`: one picture, or all of a folder or archive, each to a file of the same name.

OUT of a folder has, beside the pictures, `report.json` and `report.csv`, and the journal by which the next run knows
what is finished: a picture whose bytes, and whose order, are the same is not restored again.
"""

import contextlib
import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from osdface import pictureout
from osdface.errors import UsageError, UserError
from pipelines import photographs, sources
from pipelines.photographs import Order, Row, Task
from pipelines.sources import places

JOURNAL, REPORT, TABLE = ".restored.jsonl", "report.json", "report.csv"
OWN = {JOURNAL, REPORT, TABLE}
Run = Callable[[list[Task], Order], Iterator[Row]]


def here(tasks: list[Task], order: Order) -> Iterator[Row]:
    """Rows of tasks, by one model in this process."""
    return photographs.run(tasks, order, photographs.load(order))


def one(picture: Path, out: Path, order: Order, run: Run = here) -> Row:
    """Restore one picture to `out`: a file, or the folder where it keeps its name. Returns its row.

    Raises UserError for what is no picture or cannot be written, UsageError for a format that isn't written.
    """
    target = _named(out / picture.name) if out.is_dir() or not out.suffix else out
    if not pictureout.is_written(target):
        raise UsageError(f"{out}: pictures are written as {', '.join(pictureout.FORMATS)}; give such a name")
    if _same(picture, target):
        raise UserError(f"{target}: is the picture itself, which would be lost; give another --out")
    (row,) = run([Task(str(picture), places.locator("file", *places.locate(str(picture))), target)], order)
    if row["status"] == "failed":
        raise UserError(row["reason"] if row["reason"].startswith(str(target)) else f"{picture}: {row['reason']}")
    return row


def folder(
    source: Path, out: Path, order: Order, run: Run = here, progress: Callable[..., None] | None = None
) -> dict[str, Any]:
    """Restore every picture of a folder or archive below `out`. Returns the report, its rows by name under `pictures`.

    What cannot be restored has a row that says why. Raises UserError for a source that is missing, empty, damaged or
    cannot be listed, and for an `out` that holds it or cannot be written.
    """
    _apart(source, out)
    digest = order.digest()
    rows, tasks = _tasks(source, out, _journal(out, digest))
    total = len(rows) + len(tasks)
    with _appending(out / JOURNAL) as note:
        for row in run(tasks, order):
            rows.append(row)
            if row["status"] != "failed" and not row.get("resumed"):
                note({"order": digest, **row})
            if progress:
                progress("restore", len(rows), total)
    return _report(out, order, digest, sorted(rows, key=lambda row: row["input"]))


def _tasks(source: Path, out: Path, earlier: dict[str, Row]) -> tuple[list[Row], list[Task]]:
    """Rows of what cannot even be tried, and the others."""
    refused, tasks, taken = [], [], set[Path]()
    found = sources.files(sources.Source(uri=str(source)), 0, skip=str(out.resolve()))
    for file in sorted(found, key=lambda file: file["source_uri"]):
        name, target = file["source_uri"], _named(out / file["source_uri"])
        task = Task(name, file["at"], target, earlier.get(name))
        parts = PurePosixPath(name).parts
        reason = file["reason"]
        if not reason and (name.startswith("/") or ".." in parts or (target.name in OWN and len(parts) == 1)):
            reason = "has a name that cannot be used below --out"
        elif not reason and target in taken:
            reason = "has the name of another"
        taken.add(target)
        if reason:
            refused.append(photographs.failed(task, reason))
        else:
            tasks.append(task)
    return refused, tasks


def _named(target: Path) -> Path:
    """With another suffix where the format isn't written: added, since `a.bmp` may lie beside `a.png`."""
    return target if pictureout.is_written(target) else target.with_name(f"{target.name}.png")


def _apart(source: Path, out: Path) -> None:
    """Raise UserError where pictures would be written over those that are read, or `out` cannot be a folder."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; of a folder's pictures, --out is a folder")
    if source.is_dir() and (out.resolve() == source.resolve() or out.resolve() in source.resolve().parents):
        raise UserError(f"{out}: holds the pictures themselves, which would be lost; give another --out")


def _same(one: Path, other: Path) -> bool:
    return other.exists() and other.samefile(one)


def _journal(out: Path, digest: str) -> dict[str, Row]:
    """What earlier runs of this order made, by name. A line that was cut off, with its run, is passed over."""
    finished = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (out / JOURNAL).read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                if row.pop("order") == digest:
                    finished[row["input"]] = row
    return finished


@contextlib.contextmanager
def _appending(path: Path) -> Iterator[Callable[[Row], None]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be written ({error.strerror}); give another --out") from None

    def note(row: Row) -> None:
        file.write(json.dumps(row) + "\n")
        file.flush()

    with file:
        file.seek(max(0, file.tell() - 1))
        if file.read() not in ("", "\n"):
            file.write("\n")  # ends the line that an earlier run could not
        yield note


def _report(out: Path, order: Order, digest: str, rows: list[Row]) -> dict[str, Any]:
    counts = Counter(row["status"] for row in rows)
    report = {
        "out": str(out),
        "order": order.model_dump(mode="json"),
        "digest": digest,
        **{status: counts[status] for status in ("restored", "copied", "skipped", "failed")},
        "resumed": sum(row.get("resumed", False) for row in rows),
        "faces": sum(face["restored"] for row in rows for face in row["faces"]),
        "pictures": rows,
    }
    photographs.write(out / REPORT, json.dumps(report, indent=2).encode())
    photographs.write(out / TABLE, _table(rows).encode())
    return report


def _table(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["input", "output", "status", "reason", "found", "restored"])
    for row in rows:
        made = sum(face["restored"] for face in row["faces"])
        table.writerow([row["input"], row["output"], row["status"], row["reason"], len(row["faces"]), made])
    return text.getvalue()
