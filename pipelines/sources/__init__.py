"""Where pictures come from: every file of a folder, archive, set of shards, list or URL; its bytes again by locator.

Nothing is unpacked and nothing is decoded here. `files` runs once, where a job is planned; `read` runs anywhere.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field

from osdface.config import Strict
from osdface.errors import UserError
from pipelines.sources import ffhq, lists, places, tars, webdataset, zips
from pipelines.sources.places import Entry, Place, escaped, locate, locator, missing
from pipelines.sources.shards import is_pattern

Kind = Literal["auto", "folder", "zip", "tar", "webdataset", "parquet", "list", "ffhq"]
SIDECAR = "metadata.jsonl"  # Hugging Face's imagefolder layout; may give each picture a `group`
# What operating systems leave, beside AppleDouble files; and what `faces make` notes beside its pictures.
SYSTEM = {".DS_Store", "Thumbs.db", "desktop.ini", ".faces.json"}
LARGEST = 2**28  # bytes of a sidecar
BY_SUFFIX: dict[str, Kind] = {
    ".zip": "zip", ".tar": "tar", ".parquet": "parquet", ".txt": "list", ".csv": "list", ".jsonl": "list",
    ".gz": "tar", ".tgz": "tar", ".bz2": "tar", ".xz": "tar", ".zst": "tar",  # which says what to do about them
}  # fmt: skip
PICTURES = {
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif", ".avif", ".heic", ".jp2"
}  # fmt: skip


class Source(Strict):
    """Pictures to make pairs of.

    uri: a folder, zip, tar, Parquet file or folder, WebDataset shards (`x-{000..009}.tar`, `x-*.tar`), a list of paths
    and URLs (.txt, .csv, .jsonl), FFHQ's folder, or any URL that fsspec opens.
    licence: its name, for the manifest. weight: share among the sources, relative to theirs.
    target: uri of a twin, whose file of the same relative name is the picture to aim at. column: of a Parquet file.
    """

    uri: str = Field(min_length=1)
    kind: Kind = "auto"
    licence: str = ""
    weight: float = Field(default=1.0, gt=0)
    target: str | None = None
    column: str | None = None


def files(source: Source, index: int, skip: str = "") -> Iterator[dict[str, Any]]:
    """One flat row of text and numbers for every file of the source but sidecars, in any order.

    source: `index`. source_uri: its name in the source. at: what `read` takes. group: identity, or "". split: the
    source's own, or "". landmarks: JSON, or "". target_uri, target_at: the twin's. reason: why it is a reject, or "".
    skip: an absolute path here that is passed over (the output, where it lies in the source).

    Raises UserError for a source that is missing, empty, or itself damaged.
    """
    try:
        yield from _files(source, index, skip)
    except OSError as error:
        raise UserError(f"{source.uri}: cannot be read ({error.strerror or error})") from None


def _files(source: Source, index: int, skip: str) -> Iterator[dict[str, Any]]:
    twin = _Twin(source) if source.target else None
    empty = True
    for entry in _entries(source, skip):
        empty = False
        target, reason = twin.of(entry.name) if twin else (Entry(""), "")
        yield {
            "source": index,
            "source_uri": escaped(entry.name),
            "at": entry.at,
            "group": entry.group,
            "split": entry.split,
            "landmarks": entry.landmarks,
            "target_uri": escaped(target.name),
            "target_at": target.at,
            "reason": entry.reason or reason,
        }
    if empty:
        raise UserError(f"{source.uri}: is empty; put pictures in it, or make some with `osdface faces make`")


def read(at: str, limit: int) -> bytes:
    """The encoded bytes of a file, from its locator.

    Raises ImageError for more than `limit` bytes, or bytes that its archive holds damaged; OSError for a file that is
    gone or forbidden; UserError for an archive that is damaged, or a store that cannot be reached.
    """
    kind, root, path, *where = json.loads(at)
    return READERS[kind](Place(root, path), *where, limit)


def _row(*where: Any) -> bytes:
    from pipelines.sources import parquets  # pyarrow, which only `osdface[train]` brings

    return parquets.row(*where)


READERS: dict[str, Callable[..., bytes]] = {
    "file": places.file, "zip": zips.member, "tar": tars.member, "parquet": _row
}  # fmt: skip


def _entries(source: Source, skip: str = "") -> Iterator[Entry]:
    """Every file but what operating systems leave, and the sidecar, whose groups are given to the others."""
    place, kind = locate(source.uri), _kind(source)
    if kind == "webdataset":
        found = webdataset.entries(source.uri)
    elif kind == "parquet":
        from pipelines.sources import parquets

        found = parquets.entries(source.uri, source.column)
    elif not place.kind():
        raise missing(source.uri)
    elif kind == "list":
        found = lists.entries(place)
    elif kind == "ffhq":
        found = ffhq.entries(place)
    elif kind == "zip":
        found = _grouped(zips.entries(place))
    elif kind == "tar":
        found = _grouped(tars.entries(place))
    else:
        found = _grouped(_folder(place, skip))
    return (entry for entry in found if not _of_system(entry.name))


def _kind(source: Source) -> Kind:
    """What an "auto" source is, from its name; for a folder, from the names of what it holds."""
    place = locate(source.uri)
    if source.kind != "auto":
        return source.kind
    if is_pattern(source.uri):
        return "parquet" if source.uri.endswith(".parquet") else "webdataset"
    what = place.kind()
    if what != "file":
        return _kind_of_folder(place) if what else "folder"
    suffix = PurePosixPath(place.path).suffix.lower()
    if suffix not in BY_SUFFIX:
        raise UserError(
            f"{source.uri}: no folder, {', '.join(BY_SUFFIX)}; if it is one of them, give the source's `kind`"
        )
    return BY_SUFFIX[suffix]


def _kind_of_folder(place: Place) -> Kind:
    """Shards, if it holds some and not a single picture."""
    if place.child(ffhq.DESCRIPTION).kind():
        return "ffhq"
    suffixes = set()
    for name, _, _ in place.tree():
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in PICTURES:
            return "folder"
        suffixes.add(suffix)
    return "parquet" if ".parquet" in suffixes else "webdataset" if ".tar" in suffixes else "folder"


def _folder(place: Place, skip: str) -> Iterator[Entry]:
    for name, found, reason in place.tree(skip):
        yield Entry(name, "" if reason else locator("file", *found), reason)


def _of_system(name: str) -> bool:
    *folders, last = name.split("/")
    return last in SYSTEM or last.startswith("._") or "__MACOSX" in folders


def _grouped(found: Iterator[Entry]) -> Iterator[Entry]:
    """The others, with the groups of the sidecar: it may come last, in a tar."""
    entries = list(found)
    sidecar = next((entry for entry in entries if entry.name == SIDECAR and entry.at), None)
    groups = _groups(sidecar.at) if sidecar else {}
    for entry in entries:
        if entry is not sidecar:
            yield entry._replace(group=groups.get(escaped(entry.name), ""))


def _groups(sidecar: str) -> dict[str, str]:
    try:
        rows = [json.loads(line) for line in read(sidecar, LARGEST).decode().splitlines() if line.strip()]
        return {row["file_name"]: str(row["group"]) if "group" in row else "" for row in rows}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{SIDECAR}: not lines of JSON with a file_name each ({error}); mend or remove it") from None


class _Twin:
    """The files of the source's target, by name and by name without extension (by number, for FFHQ)."""

    def __init__(self, source: Source):
        self._stem = ffhq.number if _kind(source) == "ffhq" else _stem
        self._names: dict[str, Entry] = {}
        self._stems: dict[str, list[Entry]] = {}
        for entry in _entries(Source(uri=source.target or "")):
            self._names[entry.name] = entry
            self._stems.setdefault(self._stem(entry.name), []).append(entry)

    def of(self, name: str) -> tuple[Entry, str]:
        """The target of a file, and why it has none."""
        exact = self._names.get(name)
        found = [exact] if exact else self._stems.get(self._stem(name), [])
        if len(found) != 1:
            return Entry(""), "has several targets" if found else "has no target"
        return found[0], f"its target {found[0].reason}" if found[0].reason else ""


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + PurePosixPath(last).stem
