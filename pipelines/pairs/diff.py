"""What differs between two datasets: their specs, and their rows by key."""

import hashlib
from typing import Any

from pipelines.pairs.manifest import SHARDS, Spec, open_parquet, read_manifest
from pipelines.pairs.schema import PICTURES, SCHEMA
from pipelines.store import Reference, Store

EXAMPLES = 3


def diff(first: Reference, second: Reference) -> dict[str, Any]:
    """{"same": bool, "digests", "spec": {field: [first, second]}, "rows": {...counts and examples}}.

    `differ` counts, by column, the rows of the same key that have another value there.
    """
    a, b = Store(first), Store(second)
    specs = read_manifest(a).spec, read_manifest(b).spec
    digests = read_manifest(a).digest, read_manifest(b).digest
    rows_a, rows_b = _rows(a), _rows(b)
    common = sorted(rows_a.keys() & rows_b.keys())
    differing: dict[str, list[str]] = {}
    for key in common:
        for name, x, y in zip(SCHEMA.names, rows_a[key], rows_b[key], strict=True):
            if x != y:
                differing.setdefault(name, []).append(key)
    return {
        "same": digests[0] == digests[1],
        "digests": list(digests),
        "spec": _differing_fields(*specs),
        "only_first": len(rows_a) - len(common),
        "only_second": len(rows_b) - len(common),
        "common": len(common),
        "differ": {name: len(keys) for name, keys in differing.items()},
        "examples": {name: keys[:EXAMPLES] for name, keys in differing.items()},
    }


def _differing_fields(first: Spec, second: Spec) -> dict[str, list[Any]]:
    x, y = first.model_dump(mode="json"), second.model_dump(mode="json")
    x["recipe"], y["recipe"] = (f"{spec.recipe.name} {spec.recipe.digest[:12]}" for spec in (first, second))
    return {name: [x[name], y[name]] for name in x if x[name] != y[name]}


def _rows(store: Store) -> dict[str, tuple]:
    found = {}
    for shard in read_manifest(store).shards:
        with open_parquet(store, f"{SHARDS}/{shard.name}") as file:
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group).to_pylist():
                    found[row["key"]] = tuple(_short(name, row[name]) for name in SCHEMA.names)
    return found


def _short(name: str, value: Any) -> Any:
    return hashlib.sha256(value).digest() if name in PICTURES and value is not None else value
