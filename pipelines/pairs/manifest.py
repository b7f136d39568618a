"""manifest.json: what a dataset is made of, what its digest covers, and where it came from."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BeforeValidator, ValidationError

from degradations.recipe import Recipe
from osdface.config import Strict, digest
from osdface.errors import UserError
from pipelines.pairs.schema import Format, RowNote
from pipelines.prepare import Fit
from pipelines.sources import Source
from pipelines.store import Reference, Store

FORMAT_VERSION: Final = 2
SPLITS = ("train", "val", "test")
MANIFEST, REJECTS_FILE, SHARDS, RECEIPTS = "manifest.json", "rejects.parquet", "shards", ".receipts"

# A folder, or a URL of any fsspec filesystem.
Location = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]


Keep = Literal["hq", "reference", "virtual"]


class Spec(Strict):
    """What a dataset is made of, apart from its pictures: with the rows, everything that its digest covers.

    size: pixels of a side. fit, crop: `pipelines.prepare`. store: what rows hold: both pictures ("hq"), LQ and the
    source's name and hash ("reference"), or these alone ("virtual": a reader degrades as it reads). val, test: shares
    of the pictures.
    """

    recipe: Recipe
    seed: int
    variants: int
    size: int
    fit: Fit
    crop: Literal["none", "face"]
    hq_format: Format
    lq_format: Format
    store: Keep
    val: float
    test: float
    shard_rows: int


class Shard(Strict):
    """One Parquet file: its bytes' sha256, and its rows' digest, which no library version changes.

    sources: pictures whose first variant lies in it.
    """

    name: str
    rows: int
    sources: int
    bytes: int
    sha256: str
    content: str
    splits: dict[str, int]


class Addition(Strict):
    """Pictures that came into the dataset together: where they lay, and how many shards they made.

    limit: how many pictures were taken at most, by order of hash. plan: digest of its planned rows, by which a run
    knows its own output. shards: how many of the manifest's, in its order.
    """

    sources: list[Source]
    limit: int | None = None
    plan: str
    shards: int


class Removed(Strict):
    """A picture that was taken out again: only its hash stays, so that no later run brings it back.

    addition, rows: where it stood, and how many rows it had, since that decides which shards the others lie in.
    """

    sha256: str
    addition: int
    rows: int


class Counts(Strict):
    """sources: distinct pictures used; rows: pairs; rejects: files that are no pair; splits: rows by split."""

    sources: int
    rows: int
    rejects: int
    splits: dict[str, int]


class Manifest(Strict):
    """`digest` is the dataset's; what follows `counts` stands beside it, not in it.

    parent: the digest of the dataset that this one was made from, and `made_by` how.
    """

    format_version: Literal[2] = FORMAT_VERSION
    digest: str
    spec: Spec
    shards: list[Shard]
    counts: Counts
    additions: list[Addition]
    removed: list[Removed] = []
    parent: str | None = None
    made_by: Literal["synth", "regenerate", "extend", "remove"] = "synth"
    licences: list[str] = []
    versions: dict[str, str]
    created: str


def dataset_digest(spec: Spec, contents: Sequence[str]) -> str:
    """The dataset's digest: of format, spec and shard contents; equal for any number of workers and restarts."""
    return digest({"format_version": FORMAT_VERSION, "spec": spec.model_dump(mode="json"), "shards": list(contents)})


def read_manifest(folder: Reference | Store) -> Manifest:
    """manifest.json of a dataset. Raises UserError if there is none (unfinished), or it is damaged."""
    store = folder if isinstance(folder, Store) else Store(folder)
    try:
        return Manifest.model_validate_json(store.read(MANIFEST))
    except FileNotFoundError:
        if store.names():
            sentence = "no manifest.json, so not a finished dataset; run its `osdface data synth` again"
        else:
            sentence = "no such dataset; make one with `osdface data synth`"
        raise UserError(f"{store}: {sentence}") from None
    except OSError as error:
        raise UserError(f"{store.label(MANIFEST)}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"])
        raise UserError(f"{store.label(MANIFEST)}: damaged or of another format ({field}: {fault['msg']})") from None


def checked_manifest(folder: Reference | Store) -> Manifest:
    """manifest.json of a dataset that is to be kept or changed. Raises UserError also if it does not fit itself."""
    store = folder if isinstance(folder, Store) else Store(folder)
    manifest = read_manifest(store)
    fault = ""
    if dataset_digest(manifest.spec, [shard.content for shard in manifest.shards]) != manifest.digest:
        fault = "its digest is not that of its spec and shards"
    elif count(manifest.shards, manifest.counts.rejects) != manifest.counts:
        fault = "its counts are not those of its shards and rejects"
    if fault:
        anew = ", or delete it and run the dataset's `osdface data synth` again" if manifest.made_by == "synth" else ""
        raise UserError(f"{store.label(MANIFEST)}: {fault}; was it edited? put the original back{anew}")
    return manifest


@contextlib.contextmanager
def open_parquet(store: Store, name: str) -> Iterator[pq.ParquetFile]:
    """A dataset's Parquet file, opened for reading. Raises UserError naming one that is missing, torn or another."""
    label = store.label(name)
    try:
        with store.open(name) as raw, pq.ParquetFile(raw) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{label}: missing; run the dataset's `osdface data synth` again to restore it") from None
    except (OSError, pa.ArrowException) as error:
        fault = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{label}: cannot be read ({fault}); delete it and run the synth again") from None


def describe(name: str, size: int, hashed: str, rows: Sequence[RowNote]) -> Shard:
    """What the manifest says of a shard of `size` bytes whose sha256 is `hashed`."""
    splits = [row.split for row in rows]
    return Shard(
        name=name,
        rows=len(rows),
        sources=sum(row.variant == 0 for row in rows),
        bytes=size,
        sha256=hashed,
        content=digest([row.digest for row in rows]),
        splits={split: splits.count(split) for split in sorted(set(splits))},
    )


def count(shards: Sequence[Shard], rejects: int) -> Counts:
    """A dataset's counts, from those of its shards."""
    return Counts(
        sources=sum(shard.sources for shard in shards),
        rows=sum(shard.rows for shard in shards),
        rejects=rejects,
        splits={name: sum(shard.splits.get(name, 0) for shard in shards) for name in SPLITS},
    )


def parquet_bytes(table: pa.Table) -> bytes:
    """A small table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
