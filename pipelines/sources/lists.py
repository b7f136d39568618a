"""A file that lists pictures, one a line: paths (relative ones to the list's folder) or URLs."""

import csv
import json
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from osdface.errors import UserError
from pipelines.sources.places import Entry, Place, locate, locator

NAMES = ("file_name", "path", "url", "uri")  # keys of a line of JSON, or heads of a column


def entries(listing: Place) -> Iterator[Entry]:
    """One for each line; what a line names may be missing. Raises UserError for lines of another form."""
    text = listing.read(listing.size()).decode("utf-8-sig", "surrogateescape")  # names are bytes: some are no UTF-8
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        pairs = list(_pairs(listing.path, lines))
    except (ValueError, KeyError, TypeError, csv.Error, RecursionError) as error:
        raise UserError(f"{listing.url}: not a list of pictures, one a line ({error!r}); mend it") from None
    for name, group in pairs:
        yield _entry(listing, name, group)


def _pairs(name: str, lines: list[str]) -> Iterator[tuple[str, str]]:
    """Name and group of each line."""
    if name.endswith(".jsonl"):
        yield from (_named(row) if isinstance(row := json.loads(line), dict) else (str(row), "") for line in lines)
    elif name.endswith(".csv") and set(next(csv.reader(lines), [])) & set(NAMES):
        yield from (_named(row) for row in csv.DictReader(lines))
    elif name.endswith(".csv"):
        yield from ((row[0], "") for row in csv.reader(lines))
    else:
        yield from ((line, "") for line in lines)


def _named(row: dict) -> tuple[str, str]:
    return str(row[next((key for key in NAMES if key in row), NAMES[0])]), str(row.get("group") or "")


def _entry(listing: Place, line: str, group: str) -> Entry:
    """A URL's name leaves out what may be secret: user, password and query."""
    parent = listing._replace(path=listing.path.rpartition("/")[0])
    try:
        os.fsencode(line)  # JSON can hold what no name can
        if "://" in line:
            parts = urlsplit(line)
            name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
            return Entry(name, locator("file", *locate(line)), group=group)
        place = locate(line) if line.startswith("/") else parent.child(line)
        reason = "" if place.root or place.kind() == "file" else "is not there, or no file"
        return Entry(line, "" if reason else locator("file", *place), reason, group)
    except (ValueError, UserError) as error:  # a name that no file can have, a protocol that nobody knows
        return Entry(line.encode(errors="backslashreplace").decode(), reason=f"cannot be a name ({error})", group=group)
