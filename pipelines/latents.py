"""What stage 2's frozen parts make of a dataset's pairs, computed once: HQ and LQ latents, and the prompt's codes.

CACHE/
  latents.json    what it was made from; written last: a cache without it is unfinished
  shards/NAME     one for each of the dataset's shards, with its rows in its row groups: `key`, and float32 tensors

A pair of 512 px with the published architecture takes 0.35 MB. A row's LQ picture is a function of its key in stored
and in virtual datasets alike, so every kind of dataset may have a cache.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from osdface.config import Strict, digest, resolved
from osdface.errors import UserError
from pipelines.pairs.manifest import SHARDS, Manifest, open_parquet, read_manifest
from pipelines.pairs.origin import Originals
from pipelines.pairs.reading import NEEDED, PairDataset, as_tensor
from pipelines.store import Reference, Store, storage
from pipelines.training import TrainConfig

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

FORMAT_VERSION: Final = 1
FOLDER = "latents"  # of the storage
NOTE, MARK = "latents.json", b"osdface.latents"
TENSORS = ("hq_latent", "lq_mean", "lq_std", "codes")
TOGETHER = 4  # pairs that go through the encoders at once
Progress = Callable[..., None]


class Key(Strict):
    """latents.json: what a cache's tensors depend on. vae, prompt: of the frozen parts' weights and settings."""

    format_version: Literal[1] = FORMAT_VERSION
    dataset: str
    vae: str
    prompt: str
    size: int
    twins: float = 1.0
    dtype: Literal["float32"] = "float32"


class Encoders(NamedTuple):
    """A generator's frozen encoders. embedder: the prompt's frozen part, (B, 3, H, W) in [-1, 1] -> (B, n, d)."""

    vae: "AutoencoderKL"
    embedder: nn.Module

    @torch.no_grad()
    def tensors(self, hq: Tensor, lq: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> "hq_latent" (the mode), "lq_mean", "lq_std": (B, 4, h, w), scaled; "codes"."""
        scale = self.vae.config.scaling_factor
        posterior = self.vae.encode(lq).latent_dist
        latents = (self.vae.encode(hq).latent_dist.mode(), posterior.mean, posterior.std)
        return dict(zip(TENSORS, (*(z * scale for z in latents), self.embedder(lq)), strict=True))

    def key(self, manifest: Manifest, twins: float = 1.0) -> Key:
        shape = getattr(self.embedder, "shape", None)
        kind = [type(self.embedder).__name__, getattr(self.embedder, "kind", None), shape and resolved(shape)]
        vae = digest([fingerprint(self.vae), self.vae.config.scaling_factor])
        prompt = digest([fingerprint(self.embedder), kind])
        return Key(dataset=manifest.digest, vae=vae, prompt=prompt, size=manifest.spec.size, twins=twins)


Build = Callable[[], Encoders]  # travels to other processes: a module's function, or functools.partial of one


def fingerprint(module: nn.Module) -> str:
    """sha256 over the names, shapes and values of a module's tensors."""
    hashed = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        hashed.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()


def given(batch: dict[str, Any], noise: Tensor | None) -> dict[str, Tensor]:
    """`codes` and `z` for `OneStepGenerator.forward`, from a batch of CachedPairs; of another batch nothing.

    noise: standard normal, of the latents' shape, for a sample of the LQ latent; None for its mode.
    """
    if "codes" not in batch:
        return {}
    mean, std = batch["lq_mean"], batch["lq_std"]
    return {"codes": batch["codes"], "z": mean if noise is None else mean + std * noise.to(mean)}


def make(
    config: TrainConfig,
    build: Build,
    progress: Progress | None = None,
    address: str | None = None,
    place: Reference | None = None,
) -> str:
    """Make, continue or find finished the cache for a configuration's dataset; returns where it is.

    place: else `latents/DIGEST` of the storage. On `config.workers` actors of the Ray cluster at `address`, with the
    CPUs, GPUs and threads of a training worker; in this process where that is 0. Raises UserError where `place` holds
    anything else, or cannot be written.
    """
    data = Store(config.folder)
    manifest, encoders = read_manifest(data), build()
    key = encoders.key(manifest, config.twins)
    mark = digest(resolved(key))
    cache = Store(place) if place else storage(f"{FOLDER}/{mark}")
    _refuse_others(cache, key)
    missing = [shard for shard in manifest.shards if not _kept(cache, shard.name, mark)]
    if not missing and cache.exists(NOTE):
        return cache.uri
    job = Job(data, cache, mark, max(config.threads, 1), config.gpus_per_worker > 0, config.twins)
    total, done = manifest.counts.rows, manifest.counts.rows - sum(shard.rows for shard in missing)
    spread = _here(job, encoders) if not config.workers else _on_ray(job, build, config, address)
    rows = {shard.name: shard.rows for shard in missing}
    for name, fault in spread(list(rows)):
        if fault:
            raise UserError(fault)
        done += rows[name]
        if progress:
            progress("latents", done, total, {})
    try:
        cache.put(NOTE, key.model_dump_json(indent=2).encode())
    except OSError as error:
        raise UserError(f"{cache.label(NOTE)}: cannot be written ({error.strerror or error}); make room") from None
    return cache.uri


class Job(NamedTuple):
    """What the making of a cache's shards needs to know; goes to every actor. mark: the key's digest, in each shard."""

    data: Store
    cache: Store
    mark: str
    threads: int
    gpu: bool
    twins: float


class Actor:
    """Makes shards by name with encoders of its own; says of each what went wrong, or ""."""

    def __init__(self, job: Job, build: Build):
        torch.set_num_threads(job.threads)
        self.job, self.encoders = job, build()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        names = [str(name) for name in batch["name"]]
        return {"name": names, "fault": [_attempt(self.job, self.encoders, name)[1] for name in names]}


def _here(job: Job, encoders: Encoders) -> Callable[[list[str]], Iterator[tuple[str, str]]]:
    return lambda names: (_attempt(job, encoders, name) for name in names)


def _on_ray(
    job: Job, build: Build, config: TrainConfig, address: str | None
) -> Callable[[list[str]], Iterator[tuple[str, str]]]:
    import ray.data

    from pipelines import cluster

    cluster.connect(address)
    cluster.require_cpus(config.workers * config.cpus_per_worker)

    def run(names: list[str]) -> Iterator[tuple[str, str]]:
        tasks = ray.data.from_items([{"name": name} for name in names], override_num_blocks=max(1, len(names)))
        made = tasks.map_batches(
            Actor,
            batch_size=1,
            fn_constructor_args=(job, build),
            compute=ray.data.ActorPoolStrategy(size=max(1, min(config.workers, len(names)))),
            num_cpus=config.cpus_per_worker,
            num_gpus=config.gpus_per_worker,
        )
        for row in made.iter_rows() if names else ():
            yield row["name"], row["fault"]

    return run


def _attempt(job: Job, encoders: Encoders, name: str) -> tuple[str, str]:
    """Make one shard; a fault of the surroundings is returned as a sentence, not raised."""
    device = torch.device("cuda" if job.gpu else "cpu")
    try:
        _write(job, Encoders(encoders.vae.to(device), encoders.embedder.to(device)), name, device)
        return name, ""
    except UserError as error:
        return name, str(error)
    except OSError as error:
        where = job.cache.label(f"{SHARDS}/{name}")
        return name, f"{where}: cannot be written ({error.strerror or error}); make room and run the same command again"


def _write(job: Job, encoders: Encoders, name: str, device: torch.device) -> None:
    originals = Originals(read_manifest(job.data), job.twins)
    with open_parquet(job.data, f"{SHARDS}/{name}") as file, job.cache.scratch(f"{SHARDS}/{name}") as path:
        writer = None
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=NEEDED).to_pylist()
            tensors = _encoded(encoders, originals, rows, device)
            schema = _schema(tensors, job.mark)
            writer = writer or pq.ParquetWriter(path, schema, compression="none", use_dictionary=False)
            columns = [_column(tensors[field.name]) for field in schema if field.name != "key"]
            writer.write_table(pa.Table.from_arrays([pa.array([row["key"] for row in rows]), *columns], schema=schema))
        if writer:
            writer.close()
            job.cache.commit(path, f"{SHARDS}/{name}")


def _encoded(
    encoders: Encoders, originals: Originals, rows: list[dict[str, Any]], device: torch.device
) -> dict[str, np.ndarray]:
    parts = []
    for start in range(0, len(rows), TOGETHER):
        pictures = [originals.pictures(row) for row in rows[start : start + TOGETHER]]
        sides = ([of.target for of in pictures], [of.lq for of in pictures])
        parts.append(
            encoders.tensors(*(torch.stack([as_tensor(image) for image in side]).to(device) for side in sides))
        )
    return {name: torch.cat([part[name] for part in parts]).float().cpu().numpy() for name in TENSORS}


def _schema(tensors: dict[str, np.ndarray], mark: str) -> pa.Schema:
    """Shapes are in the fields' metadata; a kind of prompts whose codes are (0, 0) has no such column."""
    fields = [pa.field("key", pa.string())]
    fields += [
        pa.field(name, pa.binary(array[0].nbytes), metadata={"shape": ",".join(map(str, array.shape[1:]))})
        for name, array in tensors.items()
        if array[0].nbytes
    ]
    return pa.schema(fields, metadata={MARK: mark.encode()})


def _column(array: np.ndarray) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(array))
    return pa.Array.from_buffers(pa.binary(array[0].nbytes), len(array), [None, buffer])


def _refuse_others(cache: Store, key: Key) -> None:
    """Raise UserError where a folder is no cache, or one made with something else."""
    if foreign := [name for name in cache.names() if name not in (NOTE, SHARDS) and not name.startswith(".")]:
        raise UserError(f"{cache}: holds {foreign[0]}, so it is no cache of latents; give another folder or remove it")
    if cache.exists(NOTE) and read_key(cache) != key:
        raise UserError(f"{cache}: a cache of other data or weights; give another folder or remove it")


def _kept(cache: Store, name: str, mark: str) -> bool:
    """Whether a shard is there and whole. Raises UserError where it was made with something else."""
    try:
        with cache.open(f"{SHARDS}/{name}") as raw:
            found = (pq.read_schema(raw).metadata or {}).get(MARK)
    except (OSError, pa.ArrowException):
        return False
    if found != mark.encode():
        where = cache.label(f"{SHARDS}/{name}")
        raise UserError(f"{where}: made from other data or weights; give another folder or remove it")
    return True


def read_key(cache: Store) -> Key:
    """latents.json. Raises UserError where it is missing (unfinished) or damaged."""
    again = "the training that wants it makes it again"
    try:
        return Key.model_validate_json(cache.read(NOTE))
    except FileNotFoundError:
        raise UserError(f"{cache}: an unfinished cache of latents, or none; {again}") from None
    except (OSError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{cache.label(NOTE)}: cannot be read ({first}); remove {cache}, {again}") from None


class CachedPairs(PairDataset):
    """One split as PairDataset gives it, with TENSORS in every item and batch.

    Raises UserError for a cache that is unfinished, or not this dataset's.
    """

    def __init__(self, folder: Reference, split: str, cache: Reference, kept_groups: int = 64, twins: float = 1.0):
        super().__init__(folder, split, kept_groups, twins=twins)
        self.cache = Store(cache)
        key = read_key(self.cache)
        if (key.dataset, key.twins) != (self.originals.manifest.digest, twins):
            raise UserError(f"{self.cache}: made from another dataset than {self.store}, or share of twins; remove it")

    def _read_group(self, name: str, group: int) -> list[dict[str, Any]]:
        rows = super()._read_group(name, group)
        try:
            with self.cache.open(name) as raw, pq.ParquetFile(raw) as file:
                table = file.read_row_group(group)
        except (OSError, pa.ArrowException) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{self.cache.label(name)}: cannot be read ({first}); remove {self.cache}") from None
        if table["key"].to_pylist() != [row["key"] for row in rows]:
            raise UserError(f"{self.cache.label(name)}: has other rows than {self.store.label(name)}; remove it")
        tensors = {tensor: _tensors(table, tensor) for tensor in TENSORS}
        return [row | {"cached": {tensor: of[i] for tensor, of in tensors.items()}} for i, row in enumerate(rows)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, group, row = self.rows[index]
        return super().__getitem__(index) | self._group(name, group)[row]["cached"]


def _tensors(table: pa.Table, name: str) -> Tensor:
    if name not in table.column_names:
        return torch.zeros(len(table), 0, 0)
    shape = [int(side) for side in table.field(name).metadata[b"shape"].split(b",")]
    data = table[name].combine_chunks().buffers()[1]
    return torch.from_numpy(np.frombuffer(data, np.float32).reshape(len(table), *shape).copy())
