"""Reading pairs for training: one split as PyTorch's map-style dataset, and the order in which it is trained on."""

import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from osdface.errors import UserError
from pipelines.pairs.manifest import SHARDS, open_parquet, read_manifest
from pipelines.pairs.origin import Originals
from pipelines.store import Reference, Store

if TYPE_CHECKING:  # imported where a tensor is made: synthesis and verification start without it
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")
NEEDED = ["key", "source_uri", "source_sha256", "variant", "hq", "lq", "target", "target_sha256"]


class PairDataset:
    """One split of a pair dataset, stored, referring to its sources, or virtual.

    An item is {"key": str, "hq": tensor, "lq": tensor}: float32 (3, H, W) in [-1, 1]; "hq" is the target where a
    picture has a twin and is among the share `twins` that aims at it. Row groups are read as they are needed and
    `kept_groups` of them kept; `groups` lists the positions that each holds. Works with
    `torch.utils.data.DataLoader`. Raises UserError for a folder that is no finished dataset, or a shard or source that
    cannot be read.
    """

    def __init__(
        self, folder: Reference, split: str, kept_groups: int = 64, columns: Sequence[str] = NEEDED, twins: float = 1.0
    ):
        self.store = Store(folder)
        self.columns = list(columns)
        manifest = read_manifest(self.store)
        self.originals = Originals(manifest, twins)
        self.rows: list[tuple[str, int, int]] = []  # shard, row group, row in it
        self.groups: list[list[int]] = []
        for shard in manifest.shards:
            self._index(f"{SHARDS}/{shard.name}", split)
        self._kept = kept_groups

    @functools.cached_property
    def _group(self) -> Any:
        return functools.lru_cache(self._kept)(self._read_group)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_group"}

    def _index(self, name: str, split: str) -> None:
        with open_parquet(self.store, name) as file:
            for group in range(file.num_row_groups):
                splits = file.read_row_group(group, columns=["split"]).column(0).to_pylist()
                members = [row for row, found in enumerate(splits) if found == split]
                if members:
                    self.groups.append(list(range(len(self.rows), len(self.rows) + len(members))))
                    self.rows += [(name, group, row) for row in members]

    def _read_group(self, name: str, group: int) -> list[dict[str, Any]]:
        with open_parquet(self.store, name) as file:
            return file.read_row_group(group, columns=self.columns).to_pylist()

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> dict[str, Any]:
        """A row as it is stored: of `columns`, which are NEEDED and perhaps more."""
        name, group, row = self.rows[index]
        return self._group(name, group)[row]

    def __getitem__(self, index: int) -> dict[str, Any]:
        stored = self.row(index)
        pictures = self.originals.pictures(stored)
        return {"key": stored["key"], "hq": as_tensor(pictures.target), "lq": as_tensor(pictures.lq)}

    def batch(self, indices: Iterable[int]) -> dict[str, Any]:
        """Rows stacked: {"key": list of str, "hq": tensor, "lq": tensor}, the tensors (B, 3, H, W) in [-1, 1]."""
        import torch

        items = [self[index] for index in indices]
        stacked = {name: torch.stack([item[name] for item in items]) for name in items[0] if name != "key"}
        return {"key": [item["key"] for item in items], **stacked}


def as_tensor(image: np.ndarray) -> "Tensor":
    """(H, W, 3) uint8 -> float32 (3, H, W) in [-1, 1]."""
    import torch

    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 127.5 - 1


class ShuffledBatches:
    """The order in which a dataset is trained on: a pure function of (seed, epoch, step).

    Each epoch permutes the row groups, then the rows within windows of `window` groups, so that reading stays local
    and memory bounded. Batches of `size` rows run on over the epochs' borders: each epoch has every row exactly once.
    Raises UserError where the split has too few rows for one batch.
    """

    def __init__(self, data: PairDataset, size: int, seed: int, window: int = 32):
        if len(data) < size:
            raise UserError(f"{data.store}: its split has {len(data)} pairs, fewer than a batch of {size}")
        self.data, self.size, self.seed, self.window = data, size, seed, window
        self.per_epoch = len(data) / size
        self.order = functools.lru_cache(2)(self._order)

    def _order(self, epoch: int) -> list[int]:
        """All rows of an epoch."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        groups = rng.permutation(len(self.data.groups))
        rows: list[int] = []
        for start in range(0, len(groups), self.window):
            members = [row for group in groups[start : start + self.window] for row in self.data.groups[group]]
            rows += rng.permutation(members).tolist()
        return rows

    def batch(self, step: int) -> list[int]:
        """The rows of a step's global batch, the first step being 0."""
        epoch, first = divmod(step * self.size, len(self.data))
        rows = self.order(epoch)[first : first + self.size]
        return rows + self.order(epoch + 1)[: self.size - len(rows)]

    def part(self, step: int, part: int, parts: int) -> list[int]:
        """One of the equal slices that a batch is shared in, over workers and micro-batches."""
        return self.batch(step)[part * self.size // parts : (part + 1) * self.size // parts]


def ahead(read: Callable[[T], R], wanted: Iterable[T], threads: int) -> Generator[R]:
    """What `read` gives for each of `wanted`, in order, made by `threads` as the caller works on what came before.

    An error of `read` is raised where its result is due. At most two results for each thread wait.
    """
    with ThreadPoolExecutor(threads, "reading") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for one in wanted:
                waiting.append(pool.submit(read, one))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
