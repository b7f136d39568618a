"""Files and folders, on this machine or behind any URL that fsspec opens."""

import contextlib
import errno
import functools
import glob
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec
from fsspec.core import url_to_fs

from osdface.errors import UserError
from osdface.imagefile import ImageError

BLOCK = 2**18  # bytes read ahead from a remote archive: its headers lie far apart


class Entry(NamedTuple):
    """A file of a source: its name there, where `read` finds it, and why it is a reject already ("" if it is none).

    group: identity of the person. split: the source's own. landmarks: JSON of 68 points. "" where not known.
    """

    name: str
    at: str = ""
    reason: str = ""
    group: str = ""
    split: str = ""
    landmarks: str = ""


class Place(NamedTuple):
    """A file or folder: an absolute path here (root ""), or a path in the file system that the URL `root` opens.

    A path here may hold any bytes, escaped as Python does. Methods raise OSError for what is missing or forbidden, and
    UserError where a remote store cannot be asked.
    """

    root: str
    path: str

    @property
    def url(self) -> str:
        """How a person would write it."""
        return _files(self.root).unstrip_protocol(self.path) if self.root else escaped(self.path)

    def child(self, name: str) -> "Place":
        """The file or folder of that name, relative to this one."""
        return self._replace(path=f"{self.path.rstrip('/')}/{name}" if self.path else name)

    def kind(self) -> str:
        """What is there: "file", "folder", or "" for nothing and for devices and the like."""
        if not self.root:  # with these, a name that no file can have is just not there
            folder, file = os.path.isdir(self.path), os.path.isfile(self.path)  # noqa: PTH112, PTH113
            return "folder" if folder else "file" if file else ""
        with self._plainly():
            _files(self.root).invalidate_cache()
            folder, file = _files(self.root).isdir(self.path), _files(self.root).isfile(self.path)
            return "folder" if folder else "file" if file else ""

    def matching(self) -> list["Place"]:
        """What the wildcards in the path match."""
        with self._plainly():
            found = _files(self.root).glob(self.path) if self.root else glob.glob(self.path, recursive=True)  # noqa: PTH207
        return [self._replace(path=str(path)) for path in found]

    def stamp(self) -> str:
        """Changes when the file here is replaced; remote ones are taken not to change."""
        if self.root:
            return ""
        status = Path(self.path).stat()
        return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"

    def open(self) -> BinaryIO:
        """A seekable stream."""
        with self._plainly():
            return _files(self.root).open(self.path, block_size=BLOCK) if self.root else open(self.path, "rb")

    def read(self, limit: int, start: int = 0) -> bytes:
        """At most `limit` bytes from `start` on."""
        with self._plainly():
            if self.root:
                return _files(self.root).cat_file(self.path, start=start, end=start + limit)
            with open(self.path, "rb") as stream:
                stream.seek(start)
                return stream.read(limit)

    def size(self) -> int:
        """In bytes; -1 where a server does not say."""
        with self._plainly():
            size = _files(self.root).size(self.path) if self.root else Path(self.path).stat().st_size
            return -1 if size is None else size

    def tree(self, skip: str = "") -> Iterator[tuple[str, "Place", str]]:
        """Every file below this folder: its relative name, itself, and why it cannot be read ("" if it can).

        skip: an absolute path here that is passed over.
        """
        if not self.root:
            return _walk(self, skip)
        with self._plainly():
            _files(self.root).invalidate_cache()
            found = _files(self.root).find(self.path)
        prefix = self.path.rstrip("/") + "/" if self.path else ""
        return ((path.removeprefix(prefix), self._replace(path=path), "") for path in found)

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, PermissionError) as error:  # remote ones often lack the plain words
            code = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EACCES
            raise type(error)(code, os.strerror(code), self.url) from None
        except Exception as error:  # every store has its own kinds
            if not self.root and isinstance(error, OSError):
                raise
            raise UserError(f"{self.url}: cannot be read ({_first_line(error)})") from None


def locate(uri: str) -> Place:
    """The place that a path or URL names, whether or not something is there. Raises UserError for an unusable URL."""
    uri = uri.removeprefix("file://")
    if ("://" not in uri and "::" not in uri) or os.path.lexists(uri):
        return Place("", os.path.abspath(uri))  # noqa: PTH100
    try:
        return Place(uri, url_to_fs(uri)[1])
    except Exception as error:  # unknown protocols, and whatever a chain's first link raises
        raise UserError(f"{uri}: cannot be opened ({_first_line(error)})") from None


def missing(uri: str) -> UserError:
    """What a source that is not there is refused with."""
    return UserError(f"{uri}: nothing is there; give a folder, archive, list or URL of pictures that exists")


def file(place: Place, limit: int) -> bytes:
    """A whole file. Raises ImageError over `limit` bytes, from the size alone where that is known."""
    if place.size() > limit:
        raise too_large(place.size(), limit)
    data = place.read(limit + 1)
    if len(data) > limit:
        raise too_large(len(data), limit)
    return data


def too_large(size: int, limit: int) -> ImageError:
    """What a file of `size` bytes or more is refused with."""
    return ImageError("too_large", f"{size} bytes are more than {limit}")


def locator(kind: str, *where: Any) -> str:
    """What `read` understands, as text: plain ASCII, whatever bytes a name holds."""
    return json.dumps([kind, *where])


def escaped(name: str) -> str:
    """A name with the bytes that are not UTF-8 written out: \\xff."""
    return os.fsencode(name).decode(errors="backslashreplace")


@functools.lru_cache(maxsize=16)
def _files(root: str) -> fsspec.AbstractFileSystem:
    return url_to_fs(root)[0]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _walk(top: Place, skip: str) -> Iterator[tuple[str, Place, str]]:
    """Links are followed, but not into a folder that they lie in."""
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(top.path),))]
    while waiting:
        folder, above = waiting.pop()
        here = top.child(folder) if folder else top
        try:
            with os.scandir(here.path) as scan:
                found = list(scan)
        except OSError as error:
            if not folder:
                raise
            yield folder, here, f"cannot be listed ({error.strerror})"
            continue
        for entry in found:
            name, place = f"{folder}/{entry.name}".lstrip("/"), Place("", entry.path)
            real = os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1]}/{entry.name}"
            reason = _fault(entry)
            if reason or not entry.is_dir():
                if real != skip:
                    yield name, place, reason
            elif real in above:
                yield name, place, "is a link to a folder that it lies in"
            elif real != skip:
                waiting.append((name, (*above, real)))


def _fault(entry: os.DirEntry) -> str:
    try:
        mode = entry.stat().st_mode
    except FileNotFoundError:
        return "is a broken link"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if stat.S_ISDIR(mode) or stat.S_ISREG(mode) else "is no regular file"
