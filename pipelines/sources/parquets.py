"""Parquet files with a column of encoded pictures: rows read one at a time, in order where they are asked in order."""

import contextlib
import functools
import threading
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from osdface.errors import UserError
from osdface.imagefile import ImageError
from pipelines.sources.places import Entry, Place, locator, too_large
from pipelines.sources.shards import shards

BESIDE = ("README.md", ".gitattributes", "_SUCCESS", "_metadata", "_common_metadata")  # what tools lay beside the files
PAGE = 2**20  # bytes of a row group read at a time


def entries(uri: str, column: str | None) -> Iterator[Entry]:
    """Every row of every file, named by its path in the row, or else by its number in the file."""
    for name, place, reason in shards(uri, ".parquet"):
        if name.rpartition("/")[2] in BESIDE or name.endswith(".json"):
            continue
        if reason:
            yield Entry(name, reason=reason)
            continue
        for row in _rows(place, column):
            yield row._replace(name=f"{name}/{row.name}".lstrip("/"))


def row(file: Place, column: str, group: int, number: int, limit: int) -> bytes:
    """The picture in a row of a row group. Raises ImageError over `limit` bytes or where there are none."""
    value = _cursor(file, file.stamp(), column, group).value(number)
    if value is None:
        raise ImageError("empty", "has no bytes in its row")
    if value.size > limit:
        raise too_large(value.size, limit)
    return value.to_pybytes()


def _rows(file: Place, column: str | None) -> Iterator[Entry]:
    with _intact(file):
        opened = _opened(file, file.stamp())
        picture, path = _picture(file, opened.schema_arrow, column)
        wanted = [name for name in (path, "group") if name in _leaves(opened.schema_arrow)]
        number = 0
        for group in range(opened.num_row_groups):
            table = opened.read_row_group(group, columns=wanted).flatten()
            nothing = [None] * opened.metadata.row_group(group).num_rows
            paths, groups = (table[name].to_pylist() if name in wanted else nothing for name in (path, "group"))
            for k in range(len(nothing)):
                at = locator("parquet", *file, picture, group, k)
                yield Entry(paths[k] or str(number), at, group="" if groups[k] is None else str(groups[k]))
                number += 1


def _picture(file: Place, schema: pa.Schema, column: str | None) -> tuple[str, str]:
    """The leaf that holds the bytes, and the one that may hold each picture's path."""
    found = {field.name: field.type for field in schema if _is_picture(field.type)}
    chosen = column or ("image" if len(found) > 1 else next(iter(found), ""))
    if chosen not in found:
        having = "pictures in " + ", ".join(found) if found else f"only {', '.join(schema.names)}"
        raise UserError(f"{file.url}: has {having}; name the column that holds them as the source's `column`")
    return (f"{chosen}.bytes", f"{chosen}.path") if pa.types.is_struct(found[chosen]) else (chosen, "")


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_picture(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _leaves(schema: pa.Schema) -> list[str]:
    return schema.names + [leaf.name for field in schema for leaf in field.flatten()]


class _Cursor:
    """Walks down one row group, a row at a time, and starts again for a row above: memory holds a page or two."""

    def __init__(self, file: Place, stamp: str, column: str, group: int):
        self._file, self._column, self._group = file, column, group
        self._opened, self._lock = _opened(file, stamp), threading.Lock()
        self._restart()

    def _restart(self) -> None:
        self._rows = self._opened.iter_batches(1, [self._group], [self._column], use_threads=False)
        self._at, self._value = -1, None

    def value(self, number: int) -> pa.Buffer | None:
        with self._lock, _intact(self._file):
            if number < self._at:
                self._restart()
            while self._at < number:
                column = next(self._rows).column(0)
                self._value = (column.field("bytes") if pa.types.is_struct(column.type) else column)[0].as_buffer()
                self._at += 1
            return self._value


@functools.lru_cache(maxsize=4)
def _cursor(file: Place, stamp: str, column: str, group: int) -> _Cursor:
    return _Cursor(file, stamp, column, group)


@functools.lru_cache(maxsize=4)
def _opened(file: Place, stamp: str) -> pq.ParquetFile:
    with _intact(file):
        return pq.ParquetFile(file.open() if file.root else file.path, pre_buffer=False, buffer_size=PAGE)


@contextlib.contextmanager
def _intact(file: Place) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, StopIteration) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        first = (str(error) or "a row is missing").splitlines()[0]
        raise UserError(f"{file.url}: cannot be read as Parquet ({first}); fetch or make it again") from None
