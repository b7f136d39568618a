"""The pair dataset on disk: schema, manifest, digest, verification, and reading it for training.

DATASET/
  manifest.json            written last: a dataset without it is unfinished
  rejects.parquet          source_uri, reason
  shards/part-00000.parquet ...
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from torch.utils.data import Dataset

from degradations.recipe import Recipe
from osdface.config import Strict, digest
from osdface.errors import UserError
from osdface.files import sha256
from osdface.imagefile import read_image

FORMAT_VERSION = 1
ROW_GROUP = 16  # rows: small, since training reads them in shuffled order
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source_uri", pa.string()),
        ("source_sha256", pa.string()),
        ("variant", pa.int32()),
        ("split", pa.string()),
        ("hq", pa.binary()),
        ("lq", pa.binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("trace", pa.string()),
        ("recipe_digest", pa.string()),
    ]
)


class Spec(Strict):
    """What a dataset is made of, apart from where its sources lie: everything that its digest covers."""

    recipe: Recipe
    seed: int
    variants: int
    size: int
    hq_format: str
    lq_format: str
    val: float
    test: float
    shard_rows: int


class Shard(Strict):
    """One Parquet file: its bytes' sha256, and its rows' digest, which no library version changes."""

    name: str
    rows: int
    bytes: int
    sha256: str
    content: str
    splits: dict[str, int]


class Counts(Strict):
    """sources: distinct pictures used; rows: pairs; rejects: files that are no pair; splits: rows by split."""

    sources: int
    rows: int
    rejects: int
    splits: dict[str, int]


class Manifest(Strict):
    """manifest.json. `digest` is the dataset's; what follows `counts` stands beside it, not in it.

    plan: digest of the spec and of the pictures that the sources held, by which a run knows its own output.
    """

    format_version: Literal[1] = FORMAT_VERSION
    digest: str
    spec: Spec
    shards: list[Shard]
    counts: Counts
    plan: str
    sources: list[str]
    versions: dict[str, str]
    created: str


def row_digest(row: dict[str, Any]) -> str:
    """sha256 over everything of a row that a reader sees."""
    pictures = {name: hashlib.sha256(row[name]).hexdigest() for name in ("hq", "lq")}
    names = ("key", "source_uri", "source_sha256", "variant", "split", "trace", "recipe_digest")
    return digest({name: row[name] for name in names} | pictures)


def content_digest(row_digests: Sequence[str]) -> str:
    """A shard's digest: that of its rows' digests in order."""
    return digest(list(row_digests))


def dataset_digest(spec: Spec, contents: Sequence[str]) -> str:
    """The dataset's digest: of format, spec and shard contents; equal for any number of workers and restarts."""
    return digest({"format_version": FORMAT_VERSION, "spec": spec.model_dump(mode="json"), "shards": list(contents)})


def read_manifest(folder: Path) -> Manifest:
    """manifest.json of a dataset. Raises UserError if there is none (unfinished), or it is damaged."""
    path = Path(folder) / "manifest.json"
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such dataset; make one with `osdface data synth`")
    if not path.is_file():
        raise UserError(f"{folder}: no manifest.json, so not a finished dataset; run its `osdface data synth` again")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"])
        raise UserError(f"{path}: damaged or of another format ({field}: {fault['msg']})") from None


class Verified(NamedTuple):
    """What `verify` found in order."""

    digest: str
    shards: int
    rows: int
    replayed: int


def verify(folder: Path, replay: int = 8) -> Verified:
    """Check every shard's bytes and rows, the dataset's digest, and `replay` rows from their own columns.

    Raises UserError naming the first shard or row at fault.
    """
    folder, manifest = Path(folder), read_manifest(folder)
    per_shard = -(-replay // max(len(manifest.shards), 1))
    replayed = 0
    for shard in manifest.shards:
        path = folder / "shards" / shard.name
        if not path.is_file():
            raise UserError(f"{path}: missing; run the dataset's `osdface data synth` again to restore it")
        if sha256(path) != shard.sha256:
            raise UserError(f"{path}: its bytes differ from the manifest's sha256; delete it and run synth again")
        rows = list(_rows(path))
        if content_digest([row_digest(row) for row in rows]) != shard.content:
            raise UserError(f"{path}: its rows differ from the manifest's digest of them; was manifest.json edited?")
        for row in rows[: min(per_shard, replay - replayed)]:
            _replay(path, row)
            replayed += 1
    expected = dataset_digest(manifest.spec, [shard.content for shard in manifest.shards])
    if expected != manifest.digest:
        raise UserError(f"{folder}/manifest.json: its digest is not that of its spec and shards; was it edited?")
    return Verified(manifest.digest, len(manifest.shards), manifest.counts.rows, replayed)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).to_pylist()


def _replay(path: Path, row: dict[str, Any]) -> None:
    from degradations.degrade import replay as replay_trace  # here, since Albumentations is slow to import

    lq = replay_trace(read_image(row["hq"]), json.loads(row["trace"]))
    if not np.array_equal(lq, read_image(row["lq"])):
        raise UserError(f"{path}: row {row['key']} does not replay; compare library versions with its manifest's")


class PairDataset(Dataset):
    """One split of a pair dataset; `batch` gives pictures as float tensors (B, 3, H, W) in [-1, 1].

    Row groups are read as they are needed and a bounded number is kept. `groups` lists the positions of each.
    """

    def __init__(self, folder: Path, split: str, kept_groups: int = 64):
        self.folder = Path(folder)
        self.rows: list[tuple[int, int, int]] = []  # shard, row group, row in it
        self.groups: list[list[int]] = []
        self.names = [shard.name for shard in read_manifest(folder).shards]
        for shard, name in enumerate(self.names):
            try:
                self._index(shard, self.folder / "shards" / name, split)
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{self.folder / 'shards' / name}: cannot be read ({error})") from None
        self._group = functools.lru_cache(kept_groups)(self._read_group)

    def _index(self, shard: int, path: Path, split: str) -> None:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                splits = file.read_row_group(group, columns=["split"]).column(0).to_pylist()
                members = [row for row, name in enumerate(splits) if name == split]
                if members:
                    self.groups.append(list(range(len(self.rows), len(self.rows) + len(members))))
                    self.rows += [(shard, group, row) for row in members]

    def _read_group(self, shard: int, group: int) -> list[dict[str, Any]]:
        with pq.ParquetFile(self.folder / "shards" / self.names[shard]) as file:
            return file.read_row_group(group, columns=["key", "hq", "lq"]).to_pylist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, group, row = self.rows[index]
        stored = self._group(shard, group)[row]
        return {"key": stored["key"], "hq": _tensor(stored["hq"]), "lq": _tensor(stored["lq"])}

    def batch(self, indices: Iterable[int]) -> dict[str, Any]:
        """Rows stacked: {"key": list of str, "hq": tensor, "lq": tensor}."""
        items = [self[index] for index in indices]
        stacked = {name: torch.stack([item[name] for item in items]) for name in ("hq", "lq")}
        return {"key": [item["key"] for item in items], **stacked}


def _tensor(data: bytes) -> torch.Tensor:
    return torch.from_numpy(read_image(data).copy()).permute(2, 0, 1).float() / 127.5 - 1


class ShuffledBatches:
    """The order in which a dataset is trained on: a pure function of (seed, step), whatever the number of ranks.

    Each epoch permutes the row groups, then the rows within windows of `window` groups, so that reading stays local
    and memory bounded; the last partial batch of an epoch is dropped. Rank r takes its slice of every global batch.
    """

    def __init__(self, data: PairDataset, size: int, seed: int, rank: int = 0, world: int = 1, window: int = 32):
        self.data, self.size, self.seed, self.window = data, size, seed, window
        self.share = slice(rank * size // world, (rank + 1) * size // world)
        self.per_epoch = len(data) // size

    def order(self, epoch: int) -> list[int]:
        """All rows of an epoch."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        groups = rng.permutation(len(self.data.groups))
        rows: list[int] = []
        for start in range(0, len(groups), self.window):
            members = [row for group in groups[start : start + self.window] for row in self.data.groups[group]]
            rows += rng.permutation(members).tolist()
        return rows

    def from_step(self, step: int = 0) -> Iterator[list[int]]:
        """This rank's rows of every batch from `step` on, epoch after epoch, without end."""
        epoch, first = divmod(step, self.per_epoch)
        while True:
            order = self.order(epoch)
            for index in range(first, self.per_epoch):
                yield order[index * self.size : (index + 1) * self.size][self.share]
            epoch, first = epoch + 1, 0
