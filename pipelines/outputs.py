"""A training's output: put in place with its receipt last, on a disk or at a URL, and copied to whoever reads it."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from osdface.config import digest, home
from osdface.errors import UserError
from osdface.files import aside, replace_folder, write_json
from pipelines.store import Reference, Store

OUTPUT = "output"  # the folder of a stage's output, in a training's last checkpoint
RECEIPT = "training.json"  # beside every output: what run made it from what
BEGUN = ".training.json"  # at a URL: the digest of the run whose output is being uploaded


def receipt(folder: Reference) -> dict[str, Any]:
    """What `place` noted beside an output: stage, digest, run_id, runs, dataset_digest, seconds of training.

    Empty for foreign folders.
    """
    try:
        return json.loads(Store(folder).read(RECEIPT))
    except (FileNotFoundError, NotADirectoryError):
        return {}


def begun(out: Store) -> str:
    """The digest of the run that was killed as it uploaded its output; "" where none was."""
    try:
        return "" if out.local else out.read(BEGUN).decode()
    except FileNotFoundError:
        return ""


def place(checkpoint: Reference, out: Reference, note: dict[str, Any]) -> None:
    """Put the output that a checkpoint holds where it belongs. note: with the run's digest."""
    store = Store(out)
    if not store.local:  # an upload that is cut off is this run's to repeat
        store.put(BEGUN, note["digest"].encode())
    with store.folder("", receipt=RECEIPT) as folder:
        Store(checkpoint).fetch(OUTPUT, folder)
        write_json(folder / RECEIPT, note | {"finished": time.time()})
    if not store.local:
        store.remove(BEGUN)


def here(reference: Reference) -> Path:
    """A folder on this machine: itself, or for a URL its copy under $OSDFACE_HOME, downloaded where it isn't there.

    Raises UserError for a URL where nothing is, or only what a killed upload left, or that does not answer.
    """
    try:
        store = Store(reference)
        return store.local or _copy(store)
    except OSError as error:
        raise UserError(f"{reference}: cannot be fetched ({error.strerror or error})") from error


def _copy(store: Store) -> Path:
    names = store.tree()
    if not names:
        raise UserError(f"{store}: nothing is there")
    if BEGUN in names and RECEIPT not in names:
        raise UserError(f"{store}: its upload was cut off; run the training that makes it again")
    held = {name: [size, store.modified(name)] for name, size in names.items() if name != BEGUN}
    folder = home() / "fetched" / digest(held)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            temporary = aside(folder)
            shutil.rmtree(temporary, ignore_errors=True)
            replace_folder(store.fetch("", temporary), folder)
    return folder
