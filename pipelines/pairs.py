"""The pair dataset on disk: schema, manifest, digest, verification, and reading it for training.

DATASET/
  manifest.json            written last: a dataset without it is unfinished
  rejects.parquet          source_uri, reason
  shards/part-00000.parquet ...
  .receipts/               of finished shards: what synthesis continues from
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from degradations.recipe import Recipe
from osdface.config import Strict, digest
from osdface.errors import UserError
from osdface.files import sha256
from osdface.imagefile import read_image

if TYPE_CHECKING:  # imported where a tensor is made: synthesis and verification start without it
    from torch import Tensor

FORMAT_VERSION: Final = 1
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
REJECTS = pa.schema([("source_uri", pa.string()), ("reason", pa.string())])
Format = Literal["png", "jpeg"]


class Spec(Strict):
    """What a dataset is made of, apart from where its sources lie: everything that its digest covers."""

    recipe: Recipe
    seed: int
    variants: int
    size: int
    hq_format: Format
    lq_format: Format
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
    return digest({name: row[name] for name in SCHEMA.names} | pictures)


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


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """A dataset's Parquet file, opened for reading. Raises UserError naming one that is missing, torn or another."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run the dataset's `osdface data synth` again to restore it") from None
    except (OSError, pa.ArrowException) as error:
        fault = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({fault}); delete it and run the synth again") from None


class Verified(NamedTuple):
    """What `verify` found in order."""

    digest: str
    shards: int
    rows: int
    replayed: int


def verify(folder: Path, replay: int = 8) -> Verified:
    """Check every shard's bytes and rows, rejects, counts and digest, and `replay` rows from their own columns.

    Raises UserError naming the first file or row at fault.
    """
    folder, manifest = Path(folder), read_manifest(folder)
    strays = {path.name for path in (folder / "shards").glob("[!._]*")} - {shard.name for shard in manifest.shards}
    if strays:
        raise UserError(f"{folder / 'shards' / min(strays)}: readers see it, but the manifest does not; remove it")
    total = max(sum(shard.rows for shard in manifest.shards), 1)
    replay = min(replay, total)
    seen = replayed = 0
    for shard in manifest.shards:
        seen += shard.rows
        path = folder / "shards" / shard.name
        for row in _verified(path, shard, replay * seen // total - replayed):  # its share of them
            _replay(path, row, manifest.spec)
            replayed += 1
    if dataset_digest(manifest.spec, [shard.content for shard in manifest.shards]) != manifest.digest:
        raise UserError(f"{folder}/manifest.json: its digest is not that of its spec and shards; was it edited?")
    with open_parquet(folder / "rejects.parquet") as file:
        counts = count(manifest.shards, manifest.spec, file.metadata.num_rows)
    if counts != manifest.counts:
        raise UserError(f"{folder}/manifest.json: its counts are not those of its shards and rejects; was it edited?")
    return Verified(manifest.digest, len(manifest.shards), manifest.counts.rows, replayed)


def _verified(path: Path, shard: Shard, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a shard that is what the manifest says."""
    digests: list[str] = []
    splits: list[str] = []
    first: list[dict[str, Any]] = []
    with open_parquet(path) as file:
        hashed = sha256(path)  # before any row: reading damaged bytes can end in every kind of error
        if hashed != shard.sha256:
            raise UserError(f"{path}: its bytes differ from the manifest's sha256; delete it and run the synth again")
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                digests.append(row_digest(row))
                splits.append(row["split"])
                if len(first) < count:
                    first.append(row)
    if describe(path, hashed, digests, splits) != shard:
        raise UserError(f"{path}: its rows differ from what manifest.json says of them; was it edited?")
    return first


def describe(path: Path, hashed: str, row_digests: Sequence[str], splits: Sequence[str]) -> Shard:
    """What the manifest says of the shard at `path` whose bytes' sha256 is `hashed`."""
    return Shard(
        name=path.name,
        rows=len(row_digests),
        bytes=path.stat().st_size,
        sha256=hashed,
        content=digest(list(row_digests)),
        splits={name: splits.count(name) for name in sorted(set(splits))},
    )


def count(shards: Sequence[Shard], spec: Spec, rejects: int) -> Counts:
    """A dataset's counts, from those of its shards."""
    rows = sum(shard.rows for shard in shards)
    splits = {name: sum(shard.splits.get(name, 0) for shard in shards) for name in ("train", "val", "test")}
    return Counts(sources=rows // spec.variants, rows=rows, rejects=rejects, splits=splits)


def _replay(path: Path, row: dict[str, Any], spec: Spec) -> None:
    from degradations.degrade import replay as replay_trace  # here, since Albumentations is slow to import

    lq = replay_trace(read_image(row["hq"]), json.loads(row["trace"]))
    stored = read_image(encode(lq, spec.lq_format))  # a JPEG of it is what the row keeps
    if not np.array_equal(stored, read_image(row["lq"])):
        raise UserError(f"{path}: row {row['key']} does not replay; compare library versions with its manifest's")


def encode(image: np.ndarray, format: Format) -> bytes:
    """(H, W, 3) uint8 RGB to PNG (lossless) or JPEG at quality 95."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, 3] if format == "png" else [cv2.IMWRITE_JPEG_QUALITY, 95]
    return cv2.imencode(f".{format}", np.ascontiguousarray(image[..., ::-1]), options)[1].tobytes()


class PairDataset:
    """One split of a pair dataset, as a map-style dataset of PyTorch.

    An item is {"key": str, "hq": tensor, "lq": tensor}: float32 (3, H, W) in [-1, 1]. Row groups are read as they are
    needed and `kept_groups` of them kept; `groups` lists the positions that each holds. Raises UserError for a folder
    that is no finished dataset, or a shard that cannot be read.
    """

    def __init__(self, folder: Path, split: str, kept_groups: int = 64):
        self.folder = Path(folder)
        self.rows: list[tuple[Path, int, int]] = []  # shard, row group, row in it
        self.groups: list[list[int]] = []
        for shard in read_manifest(folder).shards:
            self._index(self.folder / "shards" / shard.name, split)
        self._group = functools.lru_cache(kept_groups)(self._read_group)

    def _index(self, path: Path, split: str) -> None:
        with open_parquet(path) as file:
            for group in range(file.num_row_groups):
                splits = file.read_row_group(group, columns=["split"]).column(0).to_pylist()
                members = [row for row, name in enumerate(splits) if name == split]
                if members:
                    self.groups.append(list(range(len(self.rows), len(self.rows) + len(members))))
                    self.rows += [(path, group, row) for row in members]

    def _read_group(self, path: Path, group: int) -> list[dict[str, Any]]:
        with open_parquet(path) as file:
            return file.read_row_group(group, columns=["key", "hq", "lq"]).to_pylist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, group, row = self.rows[index]
        stored = self._group(path, group)[row]
        return {"key": stored["key"], "hq": _tensor(stored["hq"]), "lq": _tensor(stored["lq"])}

    def batch(self, indices: Iterable[int]) -> dict[str, Any]:
        """Rows stacked: {"key": list of str, "hq": tensor, "lq": tensor}, the tensors (B, 3, H, W) in [-1, 1]."""
        import torch

        items = [self[index] for index in indices]
        stacked = {name: torch.stack([item[name] for item in items]) for name in ("hq", "lq")}
        return {"key": [item["key"] for item in items], **stacked}


def _tensor(data: bytes) -> "Tensor":
    import torch

    return torch.from_numpy(read_image(data).copy()).permute(2, 0, 1).float() / 127.5 - 1


class ShuffledBatches:
    """The order in which a dataset is trained on: a pure function of (seed, step), whatever the number of ranks.

    Each epoch permutes the row groups, then the rows within windows of `window` groups, so that reading stays local
    and memory bounded; the last partial batch of an epoch is dropped. Rank r takes its slice of every global batch of
    `size` rows. Raises UserError where the split has too few rows for one batch.
    """

    def __init__(self, data: PairDataset, size: int, seed: int, rank: int = 0, world: int = 1, window: int = 32):
        if len(data) < size:
            raise UserError(f"{data.folder}: its split has {len(data)} pairs, fewer than a batch of {size}")
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
