"""Planned shards -> Parquet files and receipts, a task each; what an earlier run finished is kept after a check."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from osdface.config import Strict
from osdface.errors import UserError
from osdface.files import sha256
from pipelines import lease
from pipelines.pairs.manifest import RECEIPTS, SHARDS, Shard, Spec, describe
from pipelines.pairs.schema import ROW_GROUP, SCHEMA, RowNote, note
from pipelines.sources import Source
from pipelines.store import Store, sha256_of
from pipelines.synthesize.config import Work
from pipelines.synthesize.ingest import spread
from pipelines.synthesize.plan import identity
from pipelines.synthesize.rows import pairs

SHARED = ["hq", "target"]  # variants of a picture have these in common: a dictionary stores them once
Progress = Callable[..., None]


class Receipt(Strict):
    """A shard that is finished. plan: the identity of its planned rows."""

    plan: str
    shard: Shard
    rejects: list[dict[str, str]]


@dataclass(frozen=True)
class Job:
    """What the making of shards needs to know; goes to every worker. token: of the lease on `store`."""

    store: Store
    spec: Spec
    places: list[Source]
    work: Work
    token: str


def make(
    job: Job, plan: list[list[dict[str, Any]]], first: int, judge: Callable[..., None], progress: Progress | None
) -> list[Receipt]:
    """The receipts of the planned shards, whose numbers begin at `first`: kept ones after a check, the rest made now.

    judge: takes `more`, the pictures that turned out damaged so far, and raises UserError where these are too many.
    Raises UserError for what makes going on senseless; finished shards stay.
    """
    kept = {i: receipt for i, rows in enumerate(plan) if (receipt := _kept(job, first + i, rows))}
    missing = [as_task(first + i, rows) for i, rows in enumerate(plan) if i not in kept]
    total, done = sum(map(len, plan)), sum(len(plan[i]) for i in kept)
    rejects = [reject for receipt in kept.values() for reject in receipt.rejects]
    judge(more=rejects)
    for result in spread(partial(make_shard, job=job), missing, len(missing), job.work):
        if result["fault"]:
            raise UserError(result["fault"])
        i = result["number"] - first
        kept[i] = Receipt.model_validate_json(result["receipt"])
        done += len(plan[i])
        rejects += kept[i].rejects
        judge(more=rejects)
        if progress:
            progress("pairs", done, total, {"rejects": len(rejects)})
    return [kept[i] for i in range(len(plan))]


def as_task(number: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What `make_shard` takes: flat, so that it travels as a row."""
    return {"number": number, "rows": json.dumps(rows)}


def _kept(job: Job, number: int, rows: list[dict[str, Any]]) -> Receipt | None:
    """The receipt of a shard that an earlier run finished, if shard and receipt are whole and of this plan."""
    try:
        receipt = Receipt.model_validate_json(job.store.read(receipt_name(number)))
        if receipt.plan != identity(job.spec, rows):
            return None
        return receipt if sha256_of(job.store, f"{SHARDS}/{receipt.shard.name}")[0] == receipt.shard.sha256 else None
    except (OSError, ValidationError):
        return None


def receipt_name(number: int) -> str:
    """The name of a shard's receipt."""
    return f"{RECEIPTS}/part-{number:05d}.json"


def make_shard(task: dict[str, Any], job: Job) -> dict[str, Any]:
    """Write one shard and its receipt; a fault of the surroundings is returned as a sentence, not raised."""
    cv2.setNumThreads(1)
    number = task["number"]
    result = {"number": number, "receipt": "", "fault": ""}
    try:
        return result | {"receipt": _write(job, number, json.loads(task["rows"])).model_dump_json()}
    except UserError as error:
        return result | {"fault": str(error)}
    except OSError as error:
        where = job.store.label(f"{SHARDS}/part-{number:05d}.parquet")
        fault = f"{where}: cannot be written ({error.strerror or error}); make room and run the same command again"
        return result | {"fault": fault}


def _write(job: Job, number: int, rows: list[dict[str, Any]]) -> Receipt:
    rejects: list[dict[str, Any]] = []
    notes: list[RowNote] = []
    with job.store.scratch(f"{SHARDS}/part-{number:05d}.parquet") as path:
        made = pairs(rows, job.spec, job.places, job.work, rejects)
        with open_writer(path) as writer:
            while group := list(itertools.islice(made, ROW_GROUP)):
                notes += map(note, group)
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
        hashed = sha256(path)
        name = f"part-{number:05d}.parquet" if job.store.local else f"part-{number:05d}-{hashed[:12]}.parquet"
        receipt = Receipt(
            plan=identity(job.spec, rows),
            shard=describe(name, path.stat().st_size, hashed, notes),
            rejects=rejects,
        )
        lease.check(job.store, job.token)
        job.store.commit(path, f"{SHARDS}/{name}")
    return _commit(job, number, rows, receipt)


def open_writer(path: Path) -> pq.ParquetWriter:
    """A writer of a shard: uncompressed, since pictures are, and without statistics of them."""
    return pq.ParquetWriter(
        path, SCHEMA, compression="none", use_dictionary=SHARED, dictionary_pagesize_limit=1 << 30,
        write_statistics=["key", "source_sha256", "variant", "split"],
    )  # fmt: skip


def _commit(job: Job, number: int, rows: list[dict[str, Any]], receipt: Receipt) -> Receipt:
    """Put the receipt where none is, or where only one of another plan or of a lost shard is."""
    name, data = receipt_name(number), receipt.model_dump_json().encode()
    if job.store.create(name, data):
        return receipt
    if earlier := _kept(job, number, rows):
        return earlier
    lease.check(job.store, job.token)
    job.store.put(name, data)
    return receipt
