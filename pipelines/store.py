"""A folder on a local disk or on any fsspec filesystem (S3, GCS, memory...), where no file is ever half-written."""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from osdface.config import home
from osdface.errors import UserError
from osdface.files import aside, replace_folder, sync

Reference = str | os.PathLike[str]
STORAGE = "OSDFACE_STORAGE"
CLIENTS = ("botocore", "aiobotocore", "aiohttp", "google", "azure", "gcsfs", "adlfs")  # of remote filesystems


class Store:
    """Files by name ("shards/part-00000.parquet") under one root.

    Every method raises OSError where the filesystem fails, FileNotFoundError for a name that is not there. Pickles as
    its reference; credentials and endpoints come from the environment, as fsspec's filesystems read them.
    """

    def __init__(self, reference: Reference):
        self.uri = os.fspath(reference)
        if "://" in self.uri:
            with _plain_errors():
                self.fs, root = fsspec.core.url_to_fs(self.uri, use_listings_cache=False)
            self.root = root.rstrip("/")
        else:
            self.fs, self.root = LocalFileSystem(), os.fspath(Path(self.uri).absolute())
        self.local = Path(self.root) if isinstance(self.fs, LocalFileSystem) else None
        if self.local:
            self.uri = self.root  # workers may stand elsewhere

    def __reduce__(self) -> tuple:
        return Store, (self.uri,)

    def __str__(self) -> str:
        return self.uri

    def path(self, name: str) -> str:
        """The filesystem's own path of a name; "" is the root."""
        return f"{self.root}/{name}" if name else self.root

    def label(self, name: str) -> str:
        """The name as people see it in messages."""
        return f"{self.uri.rstrip('/')}/{name}" if name else self.uri

    def read(self, name: str) -> bytes:
        with _plain_errors():
            return self.fs.cat_file(self.path(name))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """A seekable file, for reading."""
        with _plain_errors(), self.fs.open(self.path(name), "rb") as file:
            yield file

    def exists(self, name: str = "") -> bool:
        with _plain_errors():
            return self.fs.exists(self.path(name))

    def names(self, folder: str = "") -> list[str]:
        """What lies directly in a folder, hidden names as well; nothing where there is no such folder."""
        with _plain_errors():
            try:
                if self.local:  # fsspec lists a file as if it were a folder of itself
                    return sorted(path.name for path in (self.local / folder).iterdir())
                paths = [path.rstrip("/") for path in self.fs.ls(self.path(folder), detail=False)]
                # an empty object may stand for the folder itself, as web consoles make them
                return sorted(path.rpartition("/")[2] for path in paths if path != self.path(folder))
            except FileNotFoundError:
                return []

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each file directly in a folder."""
        with _plain_errors():
            try:
                entries = self.fs.ls(self.path(folder), detail=True)
            except FileNotFoundError:
                return {}
        files = {e["name"].rpartition("/")[2]: int(e["size"]) for e in entries if e["type"] == "file"}
        return {name: size for name, size in files.items() if name}  # without the folder's own entry

    def put(self, name: str, data: bytes) -> None:
        """Write or replace a file whole."""
        if self.local:
            with self.scratch(name) as path:
                path.write_bytes(data)
                self.commit(path, name)
            return
        with _plain_errors():
            self.fs.pipe_file(self.path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file whole if none of that name exists; whether it did not. One caller of many gets True."""
        try:
            if not self.local:
                with _plain_errors():
                    self.fs.pipe_file(self.path(name), data, mode="create")
                return True
            with self.scratch(name) as path:
                path.write_bytes(data)
                sync(path)
                os.link(path, self.path(name))
            return True
        except OSError:  # clients have several names for "it exists"
            if self.exists(name):
                return False
            raise

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A local path to write a large file to before `commit` gives it its name; gone afterwards."""
        if self.local:
            path = aside(self.local / name)
            path = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")  # threads of a process write as well
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "file"

    def commit(self, path: Path, name: str) -> None:
        """Put a file from `scratch` in place, whole: on a disk by a rename, in an object store by one upload."""
        if self.local:
            sync(path)
            path.replace(self.path(name))
            return
        with _plain_errors():
            self.fs.put_file(str(path), self.path(name))

    @contextlib.contextmanager
    def folder(self, name: str, receipt: str) -> Iterator[Path]:
        """A new local folder to fill, put in place at the block's end unless it raises.

        On a disk all at once, by a rename; in an object store file by file, the one named `receipt` last: whoever asks
        for that one takes no half of a folder.
        """
        if self.local:
            temporary = aside(self.local / name)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            try:
                yield temporary
                replace_folder(temporary, self.local / name)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            return
        with tempfile.TemporaryDirectory() as made:
            yield Path(made)
            files = [path.relative_to(made).as_posix() for path in Path(made).rglob("*") if path.is_file()]
            for file in sorted(files, key=lambda file: file == receipt):
                self.commit(Path(made, file), f"{name}/{file}" if name else file)

    def fetch(self, name: str, folder: Path) -> Path:
        """Copy a folder with all in it into a local one, which may be there. Raises OSError for a file cut short."""
        if self.local:
            return Path(shutil.copytree(self.local / name, folder, dirs_exist_ok=True))
        for file, size in self.tree(name).items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            with _plain_errors():
                self.fs.get_file(self.path(f"{name}/{file}" if name else file), str(path))
            if path.stat().st_size != size:
                raise OSError(5, f"{file}: {path.stat().st_size} of {size} bytes came")
        return folder

    @contextlib.contextmanager
    def on_disk(self, name: str = "") -> Iterator[Path]:
        """A folder as one of this machine: itself, or a copy for as long as the block lasts."""
        if self.local:
            yield self.local / name
            return
        with tempfile.TemporaryDirectory() as copy:
            yield self.fetch(name, Path(copy))

    def tree(self, folder: str = "") -> dict[str, int]:
        """Bytes of each file in a folder and in those below it, by name under the folder."""
        with _plain_errors():
            found = self.fs.find(self.path(folder), detail=True)
        start = len(self.path(folder)) + 1
        return {path[start:]: int(entry["size"]) for path, entry in sorted(found.items()) if path[start:]}

    def modified(self, name: str) -> float:
        """When a file was last written, in seconds since 1970."""
        with _plain_errors():
            return self.fs.modified(self.path(name)).timestamp()

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it; nothing where it is not there."""
        with _plain_errors(), contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(name), recursive=True)


def storage(name: str) -> Store:
    """A folder of what outlives a machine: under $OSDFACE_STORAGE, which all nodes reach, else under $OSDFACE_HOME.

    Raises UserError for a URL that no filesystem here knows.
    """
    place = os.environ.get(STORAGE) or os.fspath(home())
    try:
        return Store(f"{place.rstrip('/')}/{name}")
    except OSError as error:
        raise UserError(f"{STORAGE} {place}: cannot be used ({error.strerror}); give a folder or URL") from None


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Remote filesystems raise their clients' own kinds: an OSError whose strerror says what happened."""
    try:
        yield
    except OSError as error:
        if error.strerror or not error.args:
            raise
        kind = type(error) if type(error).__module__ == "builtins" else OSError  # clients' own take other arguments
        raise kind(5, _first_line(error)) from error
    except (ImportError, ValueError) as error:
        raise OSError(5, _first_line(error)) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in CLIENTS:
            raise
        raise OSError(5, _first_line(error)) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def is_scratch(name: str) -> bool:
    """Whether a name is one that `scratch` gives on a disk, in another process: if that is gone, it was killed."""
    parts = name.rsplit(".", 2)
    return (
        name.startswith(".") and len(parts) == 3 and parts[1].isdigit() and parts[1] != str(os.getpid())
        and re.fullmatch("[0-9a-f]{8}", parts[2]) is not None
    )  # fmt: skip


def sha256_of(store: Store, name: str) -> tuple[str, int]:
    """sha256 (hex) and size of a file."""
    with store.open(name) as file:
        hashed = hashlib.file_digest(file, "sha256").hexdigest()
        return hashed, file.seek(0, 2)
