"""Zip archives: random access by member, the directory read once for each process."""

import functools
import stat
import zipfile
from collections.abc import Iterator

from osdface.errors import UserError
from osdface.imagefile import ImageError
from pipelines.sources.places import Entry, Place, locator, too_large

ENCRYPTED = 0x1  # of a member's flags


def entries(archive: Place) -> Iterator[Entry]:
    """Every member that is no folder. Raises UserError for a damaged archive."""
    for number, info in enumerate(_opened(archive, archive.stamp()).infolist()):
        if not info.is_dir():
            reason = _fault(info)
            yield Entry(info.filename, "" if reason else locator("zip", *archive, number), reason)


def member(archive: Place, number: int, limit: int) -> bytes:
    """The bytes of a member. Raises ImageError over `limit` or where they are damaged."""
    opened = _opened(archive, archive.stamp())
    if number >= len(opened.infolist()):
        raise UserError(f"{archive.url}: changed since it was listed; run the same command again")
    info = opened.infolist()[number]
    if info.file_size > limit:
        raise too_large(info.file_size, limit)
    try:
        with opened.open(info) as stream:
            return stream.read(info.file_size)
    except OSError:
        raise
    except Exception as error:  # the decompressors have their own kinds
        raise ImageError("unreadable", f"is damaged in its archive ({error})") from None


@functools.lru_cache(maxsize=4)
def _opened(archive: Place, stamp: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive.open())
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"{archive.url}: cannot be read as a zip ({error}); fetch or make it again") from None


def _fault(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & ENCRYPTED:
        return "is encrypted in its archive"
    return "is a link in its archive" if stat.S_ISLNK(info.external_attr >> 16) else ""
