"""Whether a dataset is what its manifest says: bytes, rows, counts, digest, and rows replayed from their traces."""

import json
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from osdface.errors import UserError
from osdface.imagefile import read_image
from pipelines.pairs.manifest import (
    REJECTS_FILE,
    SHARDS,
    Manifest,
    Shard,
    checked_manifest,
    count,
    describe,
    open_parquet,
    read_manifest,
)
from pipelines.pairs.origin import Originals
from pipelines.pairs.schema import RowNote, as_stored, note
from pipelines.store import Reference, Store, sha256_of

Progress = Callable[[str, int, int], None]


class Verified(NamedTuple):
    """What `verify` found in order."""

    digest: str
    shards: int
    rows: int
    replayed: int


def verify(folder: Reference, replay: int = 8, progress: Progress | None = None) -> Verified:
    """Check every shard's bytes and rows, rejects, counts and digest, and `replay` rows from their traces.

    Raises UserError naming the first file or row at fault, and the libraries that differ where a row does not replay.
    """
    store = Store(folder)
    manifest = read_manifest(store)
    named = {shard.name for shard in manifest.shards}
    if strays := {name for name in store.names(SHARDS) if name[0] not in "._"} - named:
        raise UserError(f"{store.label(SHARDS)}/{min(strays)}: readers see it, but the manifest does not; remove it")
    originals = Originals(manifest)
    total = max(sum(shard.rows for shard in manifest.shards), 1)
    replay = min(replay, total)
    seen = replayed = 0
    for index, shard in enumerate(manifest.shards):
        seen += shard.rows
        for row in _verified(store, shard, replay * seen // total - replayed):  # its share of them
            _replay(store.label(f"{SHARDS}/{shard.name}"), row, manifest, originals)
            replayed += 1
        if progress:
            progress("verified", index + 1, len(manifest.shards))
    _check_totals(store, manifest)
    return Verified(manifest.digest, len(manifest.shards), manifest.counts.rows, replayed)


def _check_totals(store: Store, manifest: Manifest) -> None:
    checked_manifest(store)
    with open_parquet(store, REJECTS_FILE) as file:
        additions = file.read(columns=["addition"]).column(0).to_pylist()
    rejects = sum(number < len(manifest.additions) for number in additions)  # more: of one that was cut off
    if count(manifest.shards, rejects) != manifest.counts:
        raise UserError(f"{store}/manifest.json: its counts are not those of its shards and rejects; was it edited?")


def _verified(store: Store, shard: Shard, wanted: int) -> list[dict[str, Any]]:
    """The first `wanted` rows of a shard that is what the manifest says."""
    name = f"{SHARDS}/{shard.name}"
    notes: list[RowNote] = []
    first: list[dict[str, Any]] = []
    with open_parquet(store, name) as file:
        hashed, size = sha256_of(store, name)  # before any row: reading damaged bytes can end in every kind of error
        if hashed != shard.sha256:
            raise UserError(
                f"{store.label(name)}: its bytes differ from the manifest's sha256; delete it and run the synth again"
            )
        for row in _rows(file):
            notes.append(note(row))
            if len(first) < wanted:
                first.append(row)
    if describe(shard.name, size, hashed, notes) != shard:
        raise UserError(f"{store.label(name)}: its rows differ from what manifest.json says of them; was it edited?")
    return first


def _rows(file: Any) -> Iterator[dict[str, Any]]:
    for group in range(file.num_row_groups):
        yield from file.read_row_group(group).to_pylist()


def _replay(path: str, row: dict[str, Any], manifest: Manifest, originals: Originals) -> None:
    from degradations.degrade import replay as replay_trace  # here, since Albumentations is slow to import

    hq = originals.hq(row)
    if row["lq"] is None:  # virtual: that its source is there unchanged is all there is to see
        return
    if not np.array_equal(
        as_stored(replay_trace(hq, json.loads(row["trace"])), manifest.spec.lq_format), read_image(row["lq"])
    ):
        differing = ", ".join(_differing(manifest.versions)) or "no library version; another processor's rounding?"
        raise UserError(f"{path}: row {row['key']} does not replay; what differs from its manifest: {differing}")


def _differing(versions: dict[str, str]) -> Iterator[str]:
    for name, recorded in versions.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "missing"
        if installed != recorded:
            yield f"{name} {installed}, not {recorded}"
