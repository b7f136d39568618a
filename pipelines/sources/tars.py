"""Plain tar archives: an index of headers, then any member by its offset."""

import tarfile
from collections.abc import Iterator

from osdface.errors import UserError
from pipelines.sources.places import Entry, Place, locator, too_large

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
END = bytes(tarfile.BLOCKSIZE)


def entries(archive: Place) -> Iterator[Entry]:
    """Every member that is no folder. Raises UserError for a compressed, damaged or cut archive."""
    with archive.open() as stream:
        if stream.read(6).startswith(COMPRESSED):
            raise UserError(f"{archive.url}: a compressed tar gives no access to single files; decompress or unpack it")
        stream.seek(0)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                    if not info.isdir():
                        reason = _fault(info)
                        at = "" if reason else locator("tar", *archive, info.offset_data, info.size)
                        yield Entry(info.name.removeprefix("./"), at, reason)
        except tarfile.TarError as error:
            raise UserError(f"{archive.url}: cannot be read as a tar ({error}); fetch or make it again") from None
        stream.seek(tar.offset)  # a header that is cut or damaged ends the reading without a word
        if stream.read(len(END)) != END:
            raise UserError(f"{archive.url}: is cut off or damaged at byte {tar.offset}; fetch or make it again")


def member(archive: Place, offset: int, size: int, limit: int) -> bytes:
    """The bytes of a member. Raises ImageError over `limit`."""
    if size > limit:
        raise too_large(size, limit)
    return archive.read(size, offset)


def _fault(info: tarfile.TarInfo) -> str:
    if info.islnk() or info.issym():
        return "is a link in its archive"
    if info.issparse():
        return "is stored with holes in its archive"
    return "" if info.isreg() else "is no regular file"
