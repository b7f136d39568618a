"""What becomes of a dataset later: made again or with another recipe, more pictures, fewer pictures."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from osdface.errors import UsageError, UserError
from osdface.files import sha256
from pipelines import cluster, lease
from pipelines.pairs.manifest import (
    SHARDS,
    Manifest,
    Removed,
    Shard,
    Spec,
    checked_manifest,
    describe,
    open_parquet,
    read_manifest,
)
from pipelines.pairs.schema import ROW_GROUP, RowNote, note
from pipelines.sources import Source
from pipelines.store import Reference, Store
from pipelines.synthesize import plan
from pipelines.synthesize.build import Added, complete, difference, finish, manifest_of, of_addition
from pipelines.synthesize.config import Work
from pipelines.synthesize.folder import (
    claimed,
    read_rejects,
    refuse_others,
    tidy,
    write_card,
    write_manifest,
    write_rejects,
    writing,
)
from pipelines.synthesize.ingest import ingest, listed
from pipelines.synthesize.shards import Job, open_writer, receipt_name

PRESENT, REMOVED = "is in the dataset already", "was removed from the dataset"
Progress = Callable[..., None]


def regenerate(
    folder: Reference,
    out: Reference,
    changes: dict[str, Any],
    work: Work,
    progress: Progress | None = None,
    address: str | None = None,
) -> Manifest:
    """Make a dataset again from its manifest and sources; `changes` are fields of its Spec (recipe, seed, variants).

    Without changes the digest is the same as before; `out` may then be the dataset itself, whose lost files are mended.
    With changes it is a derived dataset that names its parent. Raises UserError where the sources hold other pictures
    than then, or where this installation's libraries make other ones.
    """
    parent = checked_manifest(folder)
    spec = Spec.model_validate(parent.spec.model_dump() | changes)
    store, derived = Store(out), spec != parent.spec
    if derived and store.root == Store(folder).root:
        raise UsageError("a derived dataset needs a folder of its own: give another --out")
    refuse_others(store, spec)
    listings = [listed(addition.sources, store) for addition in parent.additions]
    cluster.connect(address)
    cluster.require_cpus(work.workers * work.cpus_per_worker)
    removed = [entry.model_copy(update={"rows": 0}) for entry in parent.removed] if derived else parent.removed
    with claimed(store, spec) as token:
        if not derived and store.root == Store(folder).root:
            _require_unchanged(store, parent)
        added: list[Added] = []
        known = {entry.sha256: REMOVED for entry in parent.removed} if derived else {}
        for number, (addition, files) in enumerate(zip(parent.additions, listings, strict=True)):
            job = Job(store, spec, addition.sources, work, token)
            pictures, rejects = ingest(files, job.spec, work, known, progress)
            if not derived:
                _require_same(job, Store(folder), parent, number, pictures)
            planned = plan.shards(pictures, spec, job.places, addition.limit, of_addition(removed, number))
            first = sum(len(part.shards) for part in added)
            whole_plan = plan.shards(pictures, spec, job.places, addition.limit)
            added.append(complete(job, planned, whole_plan, rejects, len(files), addition.limit, first, progress))
            known |= dict.fromkeys(_hashes(store, added[-1].shards), PRESENT)
            known |= {entry.sha256: REMOVED for entry in of_addition(removed, number)}
        beside: dict[str, Any] = {"removed": removed}
        if derived:
            beside |= {"parent": parent.digest, "made_by": "regenerate"}
        else:
            beside |= {"parent": parent.parent, "made_by": parent.made_by}
        return finish(job, added, None if derived else parent, **beside)


def _require_same(job: Job, store: Store, parent: Manifest, number: int, pictures: list[dict[str, Any]]) -> None:
    """Raise UserError if the sources hold other pictures than the dataset in `store` was made of.

    Of which some were removed, they may be gone from the sources too.
    """
    addition = parent.additions[number]
    planned = plan.shards(pictures, job.spec, job.places, addition.limit)
    if plan.identity_of(job.spec, planned) != addition.plan and not of_addition(parent.removed, number):
        places = ", ".join(source.uri for source in addition.sources)
        raise UserError(
            f"{places}: holds other pictures than when the dataset was made"
            f"{difference(store, parent, number, planned)}, so it cannot be made again"
        )


def extend(
    folder: Reference,
    places: list[Source],
    work: Work,
    limit: int | None = None,
    progress: Progress | None = None,
    address: str | None = None,
) -> Manifest:
    """Add the pictures of more sources, in shards of their own; the old shards stay untouched.

    The new digest names the old one as its parent. Pictures that the dataset has, or that were removed from it, are
    rejects. Returns the old manifest if there is nothing new.
    """
    store, manifest = Store(folder), checked_manifest(folder)
    files = listed(places, store)
    cluster.connect(address)
    cluster.require_cpus(work.workers * work.cpus_per_worker)
    with claimed(store, manifest.spec) as token:
        _require_unchanged(store, manifest)
        job = Job(store, manifest.spec, places, work, token)
        known = dict.fromkeys(_hashes(store, manifest.shards), PRESENT)
        known |= {entry.sha256: REMOVED for entry in manifest.removed}
        pictures, rejects = ingest(files, job.spec, work, known, progress)
        planned = plan.shards(pictures, job.spec, places, limit)
        if not planned:
            return manifest
        added = complete(job, planned, planned, rejects, len(files), limit, len(manifest.shards), progress)
        number = len(manifest.additions)
        old = read_rejects(store, number)
        new = [reject | {"addition": number} for reject in added.rejects]
        extended = manifest_of(
            manifest.spec,
            [*manifest.additions, added.addition],
            [*manifest.shards, *added.shards],
            len(old) + len(new),
            removed=manifest.removed,
            parent=manifest.digest,
            made_by="extend",
        )
        _replace(job.store, token, extended, old + new)
        return extended


def remove(folder: Reference, hashes: Sequence[str]) -> Manifest:
    """Take pictures out, by the sha256 of their sources: their rows, and the bytes of the shards that held them.

    The new digest names the old one as its parent; only the hashes stay, so that no later run brings them back. Shards
    without them stay untouched. Raises UserError for a hash that the dataset does not have, or if nothing would be
    left.
    """
    store, manifest = Store(folder), checked_manifest(folder)
    wanted = _wanted(store, manifest, hashes)
    with claimed(store, manifest.spec) as token:
        _require_unchanged(store, manifest)
        if not wanted:  # an earlier run may have been cut off before it threw the old shards away
            tidy(store, manifest.shards)
            return manifest
        shards, gone, names = [], [], set()
        for number, shard in enumerate(manifest.shards):
            taken = _rows_of(store, shard, wanted)
            shards.append(_without(store, token, number, shard, wanted) if taken else shard)
            names |= {row["source_uri"] for row in taken}
            for hashed, rows in itertools.groupby(taken, lambda row: row["source_sha256"]):
                entry = Removed(sha256=hashed, addition=_addition(manifest, number), rows=len(list(rows)))
                gone.append(entry)
        rejects = [row for row in read_rejects(store, len(manifest.additions)) if not _mentions(row, names)]
        smaller = manifest_of(
            manifest.spec, manifest.additions, shards, len(rejects), removed=[*manifest.removed, *_joined(gone)],
            parent=manifest.digest, made_by="remove",
        )  # fmt: skip
        _replace(store, token, smaller, rejects)
        return smaller


def would_remove(folder: Reference, hashes: Sequence[str]) -> dict[str, int]:
    """What `remove` would take out and write anew. Raises UserError as it would."""
    store, manifest = Store(folder), checked_manifest(folder)
    wanted = _wanted(store, manifest, hashes)
    taken = {shard.name: _rows_of(store, shard, wanted) for shard in manifest.shards}
    touched = [shard for shard in manifest.shards if taken[shard.name]]
    return {
        "pictures": len(wanted),
        "rows": sum(map(len, taken.values())),
        "shards": len(touched),
        "bytes_written_anew": sum(shard.bytes for shard in touched),
    }


def _wanted(store: Store, manifest: Manifest, hashes: Sequence[str]) -> set[str]:
    """Those that are not gone already."""
    wanted = set(hashes) - {entry.sha256 for entry in manifest.removed}
    present = _hashes(store, manifest.shards)
    if unknown := wanted - present:
        raise UserError(f"{store}: has no picture whose source_sha256 is {min(unknown)}")
    if wanted == present:
        raise UserError(f"{store}: these are all its pictures; delete the folder instead")
    return wanted


def _rows_of(store: Store, shard: Shard, hashes: set[str]) -> list[dict[str, Any]]:
    return [row for row in _notes(store, shard) if row["source_sha256"] in hashes]


def _joined(entries: list[Removed]) -> list[Removed]:
    """A picture's rows may lie in two shards."""
    rows: dict[tuple[str, int], int] = {}
    for entry in entries:
        rows[entry.sha256, entry.addition] = rows.get((entry.sha256, entry.addition), 0) + entry.rows
    return [Removed(sha256=hashed, addition=addition, rows=n) for (hashed, addition), n in rows.items()]


def _mentions(reject: dict[str, Any], names: set[str]) -> bool:
    return reject["kind"] == "duplicate" and reject["reason"].removeprefix("same bytes as ") in names


def _addition(manifest: Manifest, shard: int) -> int:
    ends = itertools.accumulate(addition.shards for addition in manifest.additions)
    return next(number for number, end in enumerate(ends) if shard < end)


def _replace(store: Store, token: str, manifest: Manifest, rejects: list[dict[str, Any]]) -> None:
    """Put a changed dataset's manifest in place of the old one; until then the old one holds."""
    lease.check(store, token)
    with writing(store):
        write_rejects(store, rejects)
        write_card(store, manifest)
        write_manifest(store, manifest)
        tidy(store, manifest.shards)


def _require_unchanged(store: Store, manifest: Manifest) -> None:
    """What was read before the folder was held may be old by now."""
    if read_manifest(store) != manifest:
        raise UserError(f"{store}: another job changed it meanwhile; run the same command again")


def _hashes(store: Store, shards: Sequence[Shard]) -> set[str]:
    return {row["source_sha256"] for shard in shards for row in _notes(store, shard)}


def _notes(store: Store, shard: Shard) -> list[dict[str, Any]]:
    with open_parquet(store, f"{SHARDS}/{shard.name}") as file:
        return file.read(columns=["source_sha256", "source_uri"]).to_pylist()


def _without(store: Store, token: str, number: int, shard: Shard, hashes: set[str]) -> Shard:
    """A shard written anew without these pictures, under its own name. Its receipt goes: it tells of the old one."""
    notes: list[RowNote] = []
    with writing(store), store.scratch(f"{SHARDS}/{shard.name}") as path:
        with open_writer(path) as writer:
            for group in _groups(store, shard, hashes):
                notes += map(note, group)
                writer.write_table(pa.Table.from_pylist(group, writer.schema))
        hashed, size = sha256(path), path.stat().st_size
        name = f"part-{number:05d}-{hashed[:12]}.parquet"
        lease.check(store, token)
        store.commit(path, f"{SHARDS}/{name}")
    store.remove(receipt_name(number))
    return describe(name, size, hashed, notes)


def _groups(store: Store, shard: Shard, hashes: set[str]) -> Iterator[list[dict[str, Any]]]:
    with open_parquet(store, f"{SHARDS}/{shard.name}") as file:
        kept = (
            row
            for group in range(file.num_row_groups)
            for row in file.read_row_group(group).to_pylist()
            if row["source_sha256"] not in hashes
        )
        while group := list(itertools.islice(kept, ROW_GROUP)):
            yield group
