"""One writer at a time for a folder on any filesystem: a lease with fencing.

Each holder creates `lease-N.json`, N one above the last, on condition that none exists; the highest N holds. It beats:
`beat-N` is rewritten every few seconds. A lease whose process is gone (same machine), or that misses its beats
(gone elsewhere, or stopped), is taken over. Whoever writes for a holder asks `check` just before, so that an orphan of
a dead job cannot commit.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

from osdface.errors import UserError
from pipelines.store import Store

FOLDER = ".receipts"
PATIENCE = 15.0  # seconds without a beat after which a holder counts as dead
BEAT = 3.0


@contextlib.contextmanager
def hold(store: Store, instead: str = "give another --out") -> Iterator[str]:
    """Hold the folder's lease; yields the token that `check` takes.

    Raises UserError naming the holder if a living one has it, after at most PATIENCE seconds, and what to do instead of
    waiting for it.
    """
    token = uuid.uuid4().hex
    number = _acquire(store, token, instead)
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(store, number, over), daemon=True)
    thread.start()
    try:
        yield token
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError):  # then it lapses by itself
            _release(store, number, token)


def check(store: Store, token: str) -> None:
    """Raise UserError unless `token` still holds the folder."""
    if not _holds(store, token):
        raise UserError(f"{store}: another job has taken this output over; this one stops without writing to it")


def _holds(store: Store, token: str) -> bool:
    held = _highest(store)
    return held is not None and held[1].get("token") == token


def held(store: Store) -> bool:
    """Whether a living job has the folder; takes PATIENCE seconds where that must be found out by waiting."""
    found = _highest(store)
    return found is not None and not _dead(store, *found)


def _acquire(store: Store, token: str, instead: str) -> int:
    mine = {"token": token, "host": _host(), "pid": os.getpid(), "since": time.time()}
    while True:
        held = _highest(store)
        if held and held[1].get("token") == token:  # a request that was sent twice: the second one lost to the first
            return held[0]
        number = held[0] + 1 if held else 1
        if held and not _dead(store, *held):
            who = held[1]
            raise UserError(
                f"{store}: another job writes to it (process {who.get('pid')} on {who.get('host', '').split('/')[0]}); "
                f"wait for it, or {instead}"
            )
        if store.create(f"{FOLDER}/lease-{number}.json", json.dumps(mine).encode()):
            for name in store.names(FOLDER):
                if (_number(name) or number) < number or name.startswith(".beat-"):  # what killed ones half-wrote
                    store.remove(f"{FOLDER}/{name}")
            return number


def _release(store: Store, number: int, token: str) -> None:
    """Give the lease up, unless it was taken over: numbers begin anew then, and this one may be another job's."""
    held = _read(store, number)
    if held is None or held.get("token") == token:
        store.remove(f"{FOLDER}/beat-{number}")
        store.remove(f"{FOLDER}/lease-{number}.json")


def _highest(store: Store) -> tuple[int, dict] | None:
    numbers = [n for name in store.names(FOLDER) if name.startswith("lease-") and (n := _number(name)) is not None]
    if not numbers:
        return None
    held = _read(store, max(numbers))
    return None if held is None else (max(numbers), held)


def _read(store: Store, number: int) -> dict | None:
    """What a lease says; None where it was given up just now."""
    try:
        return json.loads(store.read(f"{FOLDER}/lease-{number}.json"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _number(name: str) -> int | None:
    kind, _, rest = name.partition("-")
    digits = rest.removesuffix(".json")
    return int(digits) if kind in ("lease", "beat") and digits.isdigit() else None


def _dead(store: Store, number: int, holder: dict) -> bool:
    """Whether the holder is gone: at once where its process can be looked for, else by waiting for a beat."""
    if holder.get("host") == _host() and not _lives(holder):
        return True
    before, until = _pulse(store, number), time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(BEAT / 4)
        if _pulse(store, number) != before:
            return False
    return True


def _lives(holder: dict) -> bool:
    """Whether the process that took a lease on this machine is there still: not another of its number, no zombie."""
    try:
        process = psutil.Process(holder["pid"])
        return process.create_time() <= holder["since"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _pulse(store: Store, number: int) -> bytes:
    try:
        return store.read(f"{FOLDER}/beat-{number}")
    except FileNotFoundError:
        return b""


def _beat(store: Store, number: int, over: threading.Event) -> None:
    while True:
        with contextlib.suppress(OSError):  # a disk that fails for long loses the lease, as it should
            store.put(f"{FOLDER}/beat-{number}", str(time.time()).encode())
        if over.wait(BEAT):
            return


def _host() -> str:
    """This machine and its process namespace: in another container the same number is another process."""
    try:
        return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()
