"""Which rows each shard holds: a pure function of the pictures' hashes, wherever they lie and whoever asks."""

from collections.abc import Sequence
from typing import Any

from osdface.config import digest
from pipelines.pairs.manifest import Removed, Spec
from pipelines.sources import Source
from pipelines.synthesize.config import Split, unit

Row = dict[str, Any]
KEPT = ("source_uri", "target_uri", "target_sha256", "landmarks")
WHERE = ("source", "at", "target_at")  # of a planned row: how to reach its files, which its identity leaves out


def shards(
    pictures: Sequence[Row], spec: Spec, places: Sequence[Source], limit: int | None, removed: Sequence[Removed] = ()
) -> list[list[Row]]:
    """The planned rows of every shard: sorted by key, cut every `shard_rows`.

    Removed pictures still take their place in the cutting, so that the others' shards stay as they were.
    """
    gone = {entry.sha256: entry.rows for entry in removed}
    by_hash = {picture["sha256"]: picture for picture in pictures}
    chosen = sorted(by_hash.keys() | gone.keys())[:limit]
    split = Split(val=spec.val, test=spec.test)
    slots: list[Row | None] = []
    for hashed in chosen:
        if hashed in gone:
            slots += [None] * gone[hashed]
        else:
            slots += _rows(by_hash[hashed], spec, places, split)
    cut = [slots[start : start + spec.shard_rows] for start in range(0, len(slots), spec.shard_rows)]
    return [[row for row in shard if row is not None] for shard in cut]


def _rows(picture: Row, spec: Spec, places: Sequence[Source], split: Split) -> list[Row]:
    shared = {name: picture[name] for name in (*KEPT, *WHERE)} | {"source_sha256": picture["sha256"]}
    shared["split"] = picture["split"] or split.of(picture["group"] or picture["sha256"])
    wanted = spec.variants * places[picture["source"]].weight
    whole = int(wanted)
    variants = whole + (unit("weight " + picture["sha256"]) < wanted - whole)  # a share of a row is a row's chance
    return [shared | {"variant": variant} for variant in range(variants)]


def identity(spec: Spec, rows: Sequence[Row]) -> str:
    """Digest of a shard's planned rows, wherever the pictures lie: by it a run knows its own output."""
    kept = [{name: value for name, value in row.items() if name not in WHERE} for row in rows]
    return digest({"spec": spec.model_dump(mode="json"), "rows": kept})


def identity_of(spec: Spec, planned: Sequence[Sequence[Row]]) -> str:
    """Digest of a whole addition's planned rows."""
    return digest([identity(spec, rows) for rows in planned])
