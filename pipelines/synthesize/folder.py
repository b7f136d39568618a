"""The folder that a dataset is made in: whose it is, what lies in it that belongs to nobody, what is written last.

OUT/.receipts holds spec.json, which claims the folder, and a receipt for each finished shard: what a killed run made,
and whole shards of a dataset that lost others, are kept.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from osdface.errors import UserError
from pipelines import lease
from pipelines.pairs.card import CARD, card
from pipelines.pairs.manifest import (
    MANIFEST,
    RECEIPTS,
    REJECTS_FILE,
    SHARDS,
    Manifest,
    Shard,
    Spec,
    open_parquet,
    parquet_bytes,
    read_manifest,
)
from pipelines.pairs.schema import REJECTS
from pipelines.store import Store, is_scratch
from pipelines.synthesize.shards import receipt_name

CLAIM = f"{RECEIPTS}/spec.json"
Row = dict[str, Any]


def refuse_others(store: Store, spec: Spec) -> None:
    """Raise UserError if the folder holds anything but this spec's dataset, finished or not."""
    try:
        if store.exists(MANIFEST):
            held = read_manifest(store).spec
        elif store.exists(SHARDS) and store.exists(CLAIM):
            held = Spec.model_validate_json(store.read(CLAIM))
        elif set(store.names()) - {RECEIPTS}:
            raise UserError(f"{store}: holds files that are no dataset; give an empty or new folder as --out")
        else:
            return
    except ValidationError:
        raise UserError(f"{store.label(CLAIM)}: damaged; remove {store} or give another --out") from None
    except OSError as error:
        raise UserError(f"{store}: cannot be read ({error.strerror}); give another --out") from None
    if held != spec:
        differing = [name for name in Spec.model_fields if getattr(held, name) != getattr(spec, name)]
        raise UserError(
            f"{store}: holds another dataset (it differs in {', '.join(differing)}); give another --out or remove it"
        )


@contextlib.contextmanager
def claimed(store: Store, spec: Spec) -> Iterator[str]:
    """Hold the folder for this spec; yields the lease's token. Raises UserError where it cannot be written."""
    held = contextlib.ExitStack()
    with held:
        try:
            token = held.enter_context(lease.hold(store))
            claim = json.dumps(spec.model_dump(mode="json"), indent=2).encode()
            if not store.create(CLAIM, claim) and store.read(CLAIM) != claim:
                store.put(CLAIM, claim)
        except OSError as error:
            raise UserError(f"{store}: cannot be written ({error.strerror or error}); give another --out") from None
        yield token


def withdraw(store: Store) -> None:
    """Leave nothing of a run that made no row."""
    with contextlib.suppress(OSError):
        for name in (SHARDS, RECEIPTS):
            store.remove(name)
        if store.local:
            store.local.rmdir()


def whole(store: Store, manifest: Manifest) -> bool:
    """Whether all files are there at full size; what their bytes are, `verify` finds out."""
    sizes = store.sizes(SHARDS)
    return store.exists(REJECTS_FILE) and all(sizes.get(shard.name) == shard.bytes for shard in manifest.shards)


def tidy(store: Store, shards: Sequence[Shard]) -> None:
    """Remove what killed runs left half-written, and shards and receipts of an earlier plan that had more."""
    names = {shard.name for shard in shards}
    for name in store.names(SHARDS):
        if "part-" in name and name not in names:
            store.remove(f"{SHARDS}/{name}")
    receipts = {receipt_name(number) for number in range(len(shards))}
    for name in store.names(RECEIPTS):
        if is_scratch(name) or (name.startswith("part-") and f"{RECEIPTS}/{name}" not in receipts):
            store.remove(f"{RECEIPTS}/{name}")
    for name in store.names():
        if is_scratch(name):
            store.remove(name)


@contextlib.contextmanager
def writing(store: Store) -> Iterator[None]:
    """Raises UserError for a filesystem that refuses what is written to it here."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{store}: cannot be written ({reason}); make room and run the same command again") from None


def read_rejects(store: Store, additions: int) -> list[Row]:
    """The rejects of a dataset's first `additions`: more rows are of one that was cut off."""
    with open_parquet(store, REJECTS_FILE) as file:
        return [row for row in file.read().to_pylist() if row["addition"] < additions]


def write_rejects(store: Store, rejects: list[Row]) -> None:
    """Write rejects.parquet, in an order of its own."""
    ordered = sorted(rejects, key=lambda row: (row["addition"], row["source_uri"], row["reason"]))
    store.put(REJECTS_FILE, parquet_bytes(pa.Table.from_pylist(ordered, REJECTS)))


def write_card(store: Store, manifest: Manifest) -> None:
    """Write README.md, which dataset hubs show and read."""
    store.put(CARD, card(manifest).encode())


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Write manifest.json: from now on the dataset is finished."""
    store.put(MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=2).encode())
