"""What nothing refers to any more: found in the storage and in datasets, and removed on request.

Nothing is taken that a living lease holds, or that was written a short while ago: its job may not have noted it yet.
"""

import contextlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mlflow.entities import Run, ViewType
from pydantic import ValidationError

from osdface.config import home
from osdface.errors import UserError
from pipelines import latents, lease, runs, tracking
from pipelines.pairs.manifest import MANIFEST, RECEIPTS, SHARDS, read_manifest
from pipelines.store import Store, storage
from pipelines.synthesize.shards import Receipt

AGE = 24 * 3600.0  # seconds since the last write after which nobody is taken to be at it any more
KEEP = 1  # checkpoints of a finished run: the last one holds its output, and both choices of weights
TEMPORARY = re.compile(r"\..+\.\d+(\.[0-9a-f]{8})?")  # as osdface.files.aside and Store.scratch name them


class Orphan(NamedTuple):
    """A file or folder `name` in `place`. held: the folder whose lease its removal takes, if it has one."""

    kind: str
    place: str
    name: str
    bytes: int
    why: str
    held: str | None = None


class Found(NamedTuple):
    """orphans; and what was left alone, each with its reason."""

    orphans: list[Orphan]
    left: dict[str, str]


class Search:
    """One look at the storage, at the datasets that runs were made from, and at `places`, datasets of no run.

    Raises UserError where the tracking server or the storage does not answer: nobody knows then what is referred to.
    """

    def __init__(self, places: Sequence[str], age: float = AGE, keep: int = KEEP):
        self.before, self.keep = time.time() - age, keep
        self.records = _records()
        known = {run.data.tags.get(f"{tracking.TAG}dataset", "") for run in self.records.values()}
        self.datasets = sorted({Store(place).uri for place in {*places, *known} if place})
        self.places = {Store(place).uri for place in places}
        self.left: dict[str, str] = {}

    def found(self) -> Found:
        """Everything that may go."""
        try:
            orphans = [*self._runs(), *self._latents(), *self._indexes(), *self._cached_models()]
            for root in {storage("").uri, Store(home()).uri}:
                orphans += self._temporaries(Store(root))
        except OSError as error:
            raise UserError(f"{storage('')}: cannot be read ({error.strerror or error})") from error
        for uri in self.datasets:
            try:
                orphans += self._dataset(Store(uri))
            except (OSError, UserError) as error:
                self.left[uri] = str(getattr(error, "strerror", None) or error)
        return Found(orphans, self.left)

    def _runs(self) -> Iterator[Orphan]:
        place = runs.place()
        names = place.names()
        notes = {name.removesuffix(".json") for name in names if name.endswith(".json")}
        yield from self._temporaries(place)
        for name in sorted(notes | {name for name in names if not name.startswith(".")} - {f"{n}.json" for n in notes}):
            run = Store(place.label(name))
            if self._held(run):
                continue
            record = self.records.get(runs.note_of(name).get("run_id", ""))
            if record and record.info.lifecycle_stage == "deleted":
                yield from self._all_of(run, "its run is deleted")
                yield from self._one("run", place, f"{name}.json", "its run is deleted", run.uri)
            elif name not in notes:
                yield from self._all_of(run, "no run of this name is noted")
            else:
                yield from self._checkpoints(run, name, bool(record and record.info.status == "FINISHED"))
                yield from self._temporaries(run, run.uri)

    def _all_of(self, run: Store, why: str) -> Iterator[Orphan]:
        for name in run.names():
            if name != lease.FOLDER:
                yield from self._one("checkpoint", run, name, why, run.uri)

    def _checkpoints(self, run: Store, name: str, finished: bool) -> Iterator[Orphan]:
        whole = [checkpoint.rpartition("/")[2] for checkpoint in runs.whole_checkpoints(name)]
        kept = whole[-max(self.keep, 1) :] if finished else whole
        for folder in run.names():
            if folder.startswith("checkpoint_") and folder not in kept and not folder.endswith(".json"):
                why = "its run is finished" if folder in whole else "never written to its end"
                yield from self._one("checkpoint", run, folder, why, run.uri)

    def _latents(self) -> Iterator[Orphan]:
        place = storage(latents.FOLDER)
        for name in place.names():
            if why := self._unused(Store(place.label(name))):
                yield from self._one("latents", place, name, why)

    def _unused(self, cache: Store) -> str:
        """Why no training can want a cache of latents; "" where one may."""
        users = [run for run in self._living() if run.data.params.get("latents") == cache.uri]
        if not users:
            return "no run refers to it"
        with contextlib.suppress(UserError):  # unfinished: the training that wants it goes on with it
            made_of = latents.read_key(cache).dataset
            users = [run for run in users if _digest(run.data.tags.get(f"{tracking.TAG}dataset", "")) == made_of]
            if not users:
                return "its dataset is gone"
        return "" if any(_has_start(run) for run in users) else "its base is gone"

    def _indexes(self) -> Iterator[Orphan]:
        place = storage("virtual")
        used = {run.data.tags.get(f"{tracking.TAG}dataset") for run in self._living()}
        for name in place.names():
            index = Store(place.label(name))
            if index.uri not in used | self.places and not self._held(index):
                yield from self._one("index", place, name, "no run refers to it", index.uri)

    def _cached_models(self) -> Iterator[Orphan]:
        place = Store(home() / "cache" / "models")
        made = tracking.client(tracking.uri())
        used = {v.tags.get(f"{tracking.TAG}bundle_digest") for v in made.search_model_versions(max_results=10_000)}
        for name in place.names():
            if re.fullmatch("[0-9a-f]{64}", name) and name not in used:
                yield from self._one("model", place, name, "no version refers to it")

    def _dataset(self, store: Store) -> Iterator[Orphan]:
        if not store.exists(RECEIPTS) and not store.exists(MANIFEST):
            if store.uri in self.places:
                self.left[store.uri] = "no dataset is there"
            return
        if self._held(store):
            return
        kept = _kept(store)
        for folder in (SHARDS, RECEIPTS):
            for name in store.names(folder):
                if name.startswith("part-") and f"{folder}/{name}" not in kept:
                    yield from self._one("shard", store, f"{folder}/{name}", "its dataset does not name it", store.uri)
            yield from self._temporaries(store, store.uri, folder)
        yield from self._temporaries(store, store.uri)

    def _temporaries(self, store: Store, held: str | None = None, folder: str = "") -> Iterator[Orphan]:
        for name in store.names(folder):
            if TEMPORARY.fullmatch(name) or name.startswith(".shared-"):
                path = f"{folder}/{name}" if folder else name
                yield from self._one("temporary", store, path, "left by a job that was killed", held)

    def _one(self, kind: str, store: Store, name: str, why: str, held: str | None = None) -> Iterator[Orphan]:
        """An orphan, unless it was written to of late."""
        files = store.tree(name) or {"": store.sizes(name.rpartition("/")[0]).get(name.rpartition("/")[2], 0)}
        paths = [f"{name}/{file}" if file else name for file in files]
        try:
            newest = max(store.modified(path) for path in paths)
        except (FileNotFoundError, IsADirectoryError):  # gone meanwhile, or a folder that nothing is in any more
            return
        if newest < self.before:
            yield Orphan(kind, store.uri, name, sum(files.values()), why, held)
        else:
            self.left[store.label(name)] = "written to of late"

    def _held(self, store: Store) -> bool:
        if not lease.held(store):
            return False
        self.left[store.uri] = "a running job holds it"
        return True

    def _living(self) -> list[Run]:
        return [run for run in self.records.values() if run.info.lifecycle_stage == "active"]


def _records() -> dict[str, Run]:
    """All trainings that the tracking server knows, deleted ones as well, by id."""
    made = tracking.client(tracking.uri())
    found = [made.get_experiment_by_name(f"osdface/{stage}") for stage in runs.STAGES]
    ids = [experiment.experiment_id for experiment in found if experiment]
    records: dict[str, Run] = {}
    token = None
    while ids:
        page = made.search_runs(ids, run_view_type=ViewType.ALL, max_results=1000, page_token=token)
        records |= {run.info.run_id: run for run in page}
        if not (token := page.token):
            break
    return records


def _digest(place: str) -> str:
    """The digest of the dataset that lies somewhere now; "" where none does."""
    with contextlib.suppress(UserError, OSError):
        return read_manifest(place).digest if place else ""
    return ""


def _has_start(run: Run) -> bool:
    """Whether what a training started from is there still, as far as this machine can see."""
    params = run.data.params
    given = [params.get(f"fetch.{name}") or params.get(name) for name in ("init", "base")]
    places = [place for place in given if place and place != "null"]
    return any(Store(place).exists() for place in places) or not places


def _kept(store: Store) -> set[str]:
    """The shards and receipts that a dataset has: by its manifest, or, unfinished, by its receipts."""
    receipts = [f"{RECEIPTS}/{name}" for name in store.names(RECEIPTS) if name.startswith("part-")]
    if store.exists(MANIFEST):
        shards = [shard.name for shard in read_manifest(store).shards]
        receipts = [f"{RECEIPTS}/part-{number:05d}.json" for number in range(len(shards))]
    else:
        shards = [_shard(store, receipt) for receipt in receipts]
    return {*receipts, *(f"{SHARDS}/{name}" for name in shards)}


def _shard(store: Store, receipt: str) -> str:
    try:
        return Receipt.model_validate_json(store.read(receipt)).shard.name
    except ValidationError:
        raise UserError(f"{store.label(receipt)}: damaged; run the dataset's `osdface data synth` again") from None


def remove(orphans: Sequence[Orphan]) -> Iterator[Orphan]:
    """Remove them one by one, each under the lease of its folder; yields what is gone.

    Raises UserError where a job has begun there in the meantime, or where the storage refuses.
    """
    for orphan in orphans:
        store = Store(orphan.place)
        try:
            with lease.hold(Store(orphan.held), "run this again later") if orphan.held else contextlib.nullcontext():
                if orphan.kind == "checkpoint" and orphan.name != runs.SNAPSHOT:
                    _unlist(store, orphan.name)
                store.remove(orphan.name)
        except OSError as error:
            raise UserError(f"{store.label(orphan.name)}: cannot be removed ({error.strerror or error})") from error
        yield orphan


def _unlist(run: Store, checkpoint: str) -> None:
    """Take a checkpoint out of Ray Train's list, which refuses to go on with one that is gone."""
    try:
        listed: dict[str, Any] = json.loads(run.read(runs.SNAPSHOT))
    except FileNotFoundError:
        return
    pairs = zip(listed["checkpoint_results"], listed["checkpoint_report_indices"], strict=True)
    kept = [pair for pair in pairs if pair[0]["checkpoint_dir_name"] != checkpoint]
    listed["checkpoint_results"] = [result for result, _ in kept]
    listed["checkpoint_report_indices"] = [index for _, index in kept]
    if (listed.get("latest_checkpoint_result") or {}).get("checkpoint_dir_name") == checkpoint:
        listed["latest_checkpoint_result"] = None
    run.put(runs.SNAPSHOT, json.dumps(listed).encode())
