"""A dataset, from a configuration to its manifest: claim the folder, make what is missing, write the manifest last."""

import contextlib
import datetime
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

from degradations.recipe import RecipeError
from degradations.recipe import load as load_recipe
from osdface.errors import UserError
from pipelines import cluster, lease
from pipelines.pairs.manifest import (
    MANIFEST,
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
)
from pipelines.sources import Source
from pipelines.store import Store
from pipelines.synthesize import plan
from pipelines.synthesize.config import SynthConfig, Work
from pipelines.synthesize.folder import (
    claimed,
    read_rejects,
    refuse_others,
    tidy,
    whole,
    withdraw,
    write_card,
    write_manifest,
    write_rejects,
    writing,
)
from pipelines.synthesize.ingest import ingest, listed, stop_early
from pipelines.synthesize.shards import Job, make

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
    store, spec, files = begun(config, address)
    resumed = store.exists(SHARDS)
    try:
        with claimed(store, spec) as token:
            finished = checked_manifest(store) if store.exists(MANIFEST) else None
            job = Job(store, spec, config.sources, work_of(config), token)
            return _first(job, files, config.limit, finished, progress)
    except NothingReadable:
        if not resumed:
            withdraw(store)
        raise


def begun(config: SynthConfig, address: str | None) -> tuple[Store, Spec, list[Row]]:
    """The output, what it is to be, and the sources' files, on a cluster that can do it. Raises UserError if not."""
    try:
        spec = config.spec(load_recipe(config.recipe))
    except RecipeError as error:
        raise UserError(str(error)) from None
    store = Store(config.out)
    files = listed(config.sources, store)
    refuse_others(store, spec)
    cluster.connect(address)
    cluster.require_cpus(config.workers * config.cpus_per_worker)
    return store, spec, files


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
