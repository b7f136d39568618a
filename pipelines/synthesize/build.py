"""A dataset, from a configuration to its manifest: claim the folder, make what is missing, write the manifest last.

OUT/.receipts holds spec.json, which claims the folder, and a receipt for each finished shard: what a killed run made,
and whole shards of a dataset that lost others, are kept.
"""

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import ValidationError

from degradations.recipe import RecipeError
from degradations.recipe import load as load_recipe
from osdface.errors import UserError
from pipelines import cluster, lease
from pipelines.pairs.card import CARD, card
from pipelines.pairs.manifest import (
    MANIFEST,
    RECEIPTS,
    REJECTS_FILE,
    SHARDS,
    Addition,
    Manifest,
    Removed,
    Shard,
    Spec,
    checked_manifest,
    count,
    dataset_digest,
    open_parquet,
    parquet_bytes,
    read_manifest,
)
from pipelines.pairs.schema import REJECTS
from pipelines.sources import Source
from pipelines.store import Store, is_scratch
from pipelines.synthesize import plan
from pipelines.synthesize.config import SynthConfig, Work
from pipelines.synthesize.ingest import ingest, listed, stop_early
from pipelines.synthesize.shards import Job, make, receipt_name

CLAIM = f"{RECEIPTS}/spec.json"
LIBRARIES = ("opencv-python-headless", "numpy", "pyarrow", "pillow", "albumentations", "ray")
Progress = Callable[..., None]
Row = dict[str, Any]


class Added(NamedTuple):
    """What one addition brought."""

    addition: Addition
    shards: list[Shard]
    rejects: list[Row]


def synthesize(config: SynthConfig, progress: Progress | None = None, address: str | None = None) -> Manifest:
    """Make, resume, mend or find finished the dataset that `config` describes, on the Ray cluster at `address`.

    The same spec and pictures give the same digest, whatever the workers and interruptions. Raises UserError for
    missing or empty sources, sources without a readable picture, an output that holds something else or cannot be
    written; whatever was finished before stays.
    """
    try:
        spec = config.spec(load_recipe(config.recipe))
    except RecipeError as error:
        raise UserError(str(error)) from None
    store = Store(config.out)
    files = listed(config.sources, store)
    refuse_others(store, spec)
    resumed = store.exists(SHARDS)
    cluster.connect(address)
    cluster.require_cpus(config.workers * config.cpus_per_worker)
    try:
        with claimed(store, spec) as token:
            finished = checked_manifest(store) if store.exists(MANIFEST) else None
            job = Job(store, spec, config.sources, work_of(config), token)
            return _first(job, files, config.limit, finished, progress)
    except NothingReadable:
        if not resumed:
            _withdraw(store)
        raise


class NothingReadable(UserError):
    """The sources have no readable picture."""


def work_of(config: Work) -> Work:
    """How the work is done, without what is to be made."""
    return Work.model_validate(config.model_dump(include=set(Work.model_fields)))


def _first(
    job: Job, files: list[Row], limit: int | None, finished: Manifest | None, progress: Progress | None
) -> Manifest:
    """A dataset's first addition, which may be there already."""
    pictures, rejects = ingest(files, job.spec, job.work, {}, progress)
    removed = finished.removed if finished else []
    planned = plan.shards(pictures, job.spec, job.places, limit, of_addition(removed, 0))
    whole_plan = plan.shards(pictures, job.spec, job.places, limit)
    if finished:
        if finished.additions[0].plan != plan.identity_of(job.spec, whole_plan):
            raise UserError(
                f"{job.store}: was made from other pictures than the sources hold now"
                f"{difference(job.store, finished, 0, whole_plan)}; give another --out or remove it"
            )
        if whole(job.store, finished):
            return finished
        if len(finished.additions) > 1 or removed:
            raise UserError(
                f"{job.store}: lost files since it was changed; mend it with `osdface data regenerate {job.store} "
                f"--out {job.store}`"
            )
    added = complete(job, planned, whole_plan, rejects, len(files), limit, 0, progress)
    if not any(shard.rows for shard in added.shards):
        first = "; ".join(f"{reject['source_uri']}: {reject['reason']}" for reject in added.rejects[:3])
        raise NothingReadable(f"{job.places[0].uri}: none of its {len(files)} files is a readable picture ({first})")
    return finish(job, [added], finished=finished)


def difference(store: Store, finished: Manifest, number: int, planned: list[list[Row]]) -> str:
    """The first picture of a dataset's addition that its sources hold otherwise now, as " (NAME has other bytes)"."""
    gone = {entry.sha256 for entry in finished.removed}
    now = {row["source_uri"]: row["source_sha256"] for rows in planned for row in rows}
    with contextlib.suppress(UserError):  # a file is lost as well: then nobody knows
        then = _hashes_by_name(store, finished, number)
        damaged = {row["source_uri"] for row in read_rejects(store, number + 1)}  # planned, but not to be decoded
        for name in sorted(then | now):
            if name not in now:
                return f" ({name} is gone)"
            if name in then and then[name] != now[name]:
                return f" ({name} has other bytes)"
            if name not in then and name not in damaged and now[name] not in gone:
                return f" ({name} is new)"
    return ""


def _hashes_by_name(store: Store, finished: Manifest, number: int) -> dict[str, str]:
    found: dict[str, str] = {}
    first = sum(addition.shards for addition in finished.additions[:number])
    for shard in finished.shards[first : first + finished.additions[number].shards]:
        with open_parquet(store, f"{SHARDS}/{shard.name}") as file:
            columns = file.read(columns=["source_uri", "source_sha256"])
        found |= dict(zip(columns[0].to_pylist(), columns[1].to_pylist(), strict=True))
    return found


def of_addition(removed: Sequence[Removed], number: int) -> list[Removed]:
    """The removed pictures that had come with an addition."""
    return [entry for entry in removed if entry.addition == number]


def complete(
    job: Job,
    planned: list[list[Row]],
    whole_plan: list[list[Row]],
    rejects: list[Row],
    files: int,
    limit: int | None,
    first: int,
    progress: Progress | None,
) -> Added:
    """Make what is missing of an addition whose shards' numbers begin at `first`.

    whole_plan: what was planned before pictures were removed, which the addition is known by. files: how many there
    were, of which `rejects` are no pictures to use.
    """
    receipts = make(job, planned, first, partial(stop_early, rejects, files, job.work), progress)
    rejects = rejects + [reject for receipt in receipts for reject in receipt.rejects]
    addition = Addition(
        sources=absolute(job.places),
        limit=limit,
        plan=plan.identity_of(job.spec, whole_plan),
        shards=len(planned),
    )
    return Added(addition, [receipt.shard for receipt in receipts], rejects)


def absolute(places: Sequence[Source]) -> list[Source]:
    """The sources as any later command finds them, wherever it is started."""
    return [
        place.model_copy(update={"uri": Store(place.uri).uri, "target": place.target and Store(place.target).uri})
        for place in places
    ]


def finish(job: Job, added: Sequence[Added], finished: Manifest | None = None, **beside: Any) -> Manifest:
    """Write rejects and manifest of a dataset that consists of `added`, and remove what belongs to neither.

    `finished`: what the manifest said before, if files were mended that it names. `beside`: fields that stand beside
    the digest.
    """
    shards = [shard for part in added for shard in part.shards]
    rejects = [reject | {"addition": n} for n, part in enumerate(added) for reject in part.rejects]
    manifest = manifest_of(job.spec, [part.addition for part in added], shards, len(rejects), **beside)
    if finished and manifest.digest != finished.digest:
        others = ", or its sources hold other pictures than then" if finished.removed else ""  # which no plan tells
        raise UserError(
            f"{job.store}: its missing shards come out different with this installation's library versions{others}; "
            "make the dataset anew with another --out"
        )
    lease.check(job.store, job.token)
    with writing(job.store):
        tidy(job.store, shards)
        write_rejects(job.store, rejects)
        write_card(job.store, manifest)
        write_manifest(job.store, manifest)
    return manifest


@contextlib.contextmanager
def writing(store: Store) -> Iterator[None]:
    """Raises UserError for a filesystem that refuses what is written to it here."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{store}: cannot be written ({reason}); make room and run the same command again") from None


def manifest_of(spec: Spec, additions: list[Addition], shards: list[Shard], rejects: int, **beside: Any) -> Manifest:
    """The manifest of these shards, made by this installation now."""
    return Manifest(
        digest=dataset_digest(spec, [shard.content for shard in shards]),
        spec=spec,
        shards=shards,
        counts=count(shards, rejects),
        additions=additions,
        licences=sorted({source.licence for addition in additions for source in addition.sources if source.licence}),
        versions={name: version(name) for name in LIBRARIES},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **beside,
    )


def write_card(store: Store, manifest: Manifest) -> None:
    """Write README.md, which dataset hubs show and read."""
    store.put(CARD, card(manifest).encode())


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Write manifest.json: from now on the dataset is finished."""
    store.put(MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=2).encode())


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


def _withdraw(store: Store) -> None:
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


def read_rejects(store: Store, additions: int) -> list[Row]:
    """The rejects of a dataset's first `additions`: more rows are of one that was cut off."""
    with open_parquet(store, REJECTS_FILE) as file:
        return [row for row in file.read().to_pylist() if row["addition"] < additions]


def write_rejects(store: Store, rejects: list[Row]) -> None:
    """Write rejects.parquet, in an order of its own."""
    ordered = sorted(rejects, key=lambda row: (row["addition"], row["source_uri"], row["reason"]))
    store.put(REJECTS_FILE, parquet_bytes(pa.Table.from_pylist(ordered, REJECTS)))
