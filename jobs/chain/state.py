"""Where a chain works: receipts of its steps, what they made, and the lock; on a disk or any fsspec filesystem."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from osdface.config import Strict, digest
from osdface.errors import UserError
from osdface.files import sha256
from pipelines.store import Store, storage

RUN = "run.json"  # the chain's own MLflow run, while it has not come to its end


class Receipt(Strict):
    """What is kept of a step. result, seconds: once it is done. basis: what `key` is the digest of.

    anew: command lines that are to begin anew, and the run of each that it is not to go on with, once it is known.
    """

    key: str
    done: bool = False
    result: dict[str, Any] = {}
    seconds: float = 0
    basis: dict[str, Any] = {}
    anew: dict[str, str] = {}


class State:
    """A chain's folder or URL. Nothing is made before something is written.

    Raises UserError naming the place where it cannot be read or written.
    """

    def __init__(self, work: str):
        with _reaching(work):
            self.store = Store(work.rstrip("/")) if "://" in work else storage(work)
        self._token: str | None = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Two runs of a chain would write into the same folders. Both kinds of lock end with their process."""
        with self._file_lock() if self.store.local else self._lease():
            yield

    @contextlib.contextmanager
    def _file_lock(self) -> Iterator[None]:
        path = self.store.local / ".lock"  # type: ignore[operator]  # asked by the only caller
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(path).acquire(timeout=0)
        except Timeout:
            raise UserError(f"{self.store}: another `osdface run` works there; wait until it has ended") from None
        with held:
            yield

    @contextlib.contextmanager
    def _lease(self) -> Iterator[None]:
        from pipelines import lease

        with contextlib.ExitStack() as held:
            with _reaching(self.store):
                self._token = held.enter_context(lease.hold(self.store, "give the chain another work:"))
            yield

    def check(self) -> None:
        """Raise UserError if another run has taken this one's lease over: it would write into that one's folders."""
        if self._token:
            from pipelines import lease

            with _reaching(self.store):
                lease.check(self.store, self._token)

    def read(self, name: str) -> dict[str, Any] | None:
        """What was noted under a name; None where it isn't there or is damaged."""
        with contextlib.suppress(FileNotFoundError, ValueError), _reaching(self.store):
            return json.loads(self.store.read(name))
        return None

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Note something under a name."""
        self.check()
        with _reaching(self.store):
            self.store.put(name, json.dumps(value, indent=2, default=str).encode())

    def remove(self, place: str) -> bool:
        """Remove what a step made, if it lies in the work folder; whether it does.

        Elsewhere a chain file's slip could cost somebody's data.
        """
        self.check()
        with _reaching(place):
            made = Store(place)
            if inside := self._holds(made):
                made.remove("")
        return inside

    def _holds(self, made: Store) -> bool:
        if made.local and self.store.local:
            return self.store.local.resolve() in made.local.resolve().parents
        same = type(made.fs) is type(self.store.fs) and made.root.startswith(f"{self.store.root}/")
        return same and not {".", ".."} & set(made.root.split("/"))

    def receipt(self, step: str) -> Receipt | None:
        """A step's receipt."""
        with contextlib.suppress(ValidationError):
            found = self.read(f"steps/{step}.json")
            return None if found is None else Receipt.model_validate(found)
        return None

    def keep(self, step: str, receipt: Receipt) -> Receipt:
        """Write a receipt; returns it as it will be read, in plain JSON types."""
        self.write(f"steps/{step}.json", receipt.model_dump())
        return Receipt.model_validate_json(json.dumps(receipt.model_dump(), default=str))


def exists(place: str) -> bool:
    """Whether a path or URL is there; a folder under a URL, if a file is: some servers keep the names of empty ones."""
    with _reaching(place):
        store = Store(place)
        if store.local:
            return store.exists()
        walked = (entry for *_, files in store.fs.walk(store.root, detail=True) for entry in files.values())
        return any(map(_is_file, walked))


def content(place: str) -> str:
    """Digest of a file, or of a folder's files and their names; under a URL, of what its store says of each.

    Raises UserError if there is nothing there.
    """
    if not exists(place):
        raise UserError(f"{place}: this input of the chain is not there")
    with _reaching(place):
        store = Store(place)
        if not store.local:
            found = store.fs.find(store.root, detail=True).values()
            return digest({e["name"].removeprefix(store.root): _version(e) for e in found if _is_file(e)})
        if store.local.is_file():
            return sha256(store.local)
        files = (file for file in sorted(store.local.rglob("*")) if file.is_file())
        return digest({str(file.relative_to(store.local)): sha256(file) for file in files})


def _is_file(entry: dict[str, Any]) -> bool:
    """Whether an entry of a listing is a file; an object whose name ends in a slash stands for a folder."""
    return entry["type"] == "file" and not entry["name"].endswith("/")


def _version(entry: dict[str, Any]) -> str:
    """What a listing says of a file's contents: an object store's tag of them, else everything."""
    return str(entry.get("ETag") or entry.get("etag") or sorted(entry.items()))


@contextlib.contextmanager
def _reaching(place: Any) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{place}: cannot be read or written ({reason}); the same command again continues") from None
