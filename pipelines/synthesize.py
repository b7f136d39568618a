"""Ray Data: folders of HQ pictures -> a dataset of dual-stage degraded pairs.

Two passes. The first hashes every file and checks its header; the driver then plans which rows each shard holds, from
the pictures' hashes alone. The second makes one shard a task: encoded bytes never travel between tasks, and a shard is
the unit of resuming. Everything is written aside and renamed; the manifest comes last.

OUT/.receipts holds spec.json, which claims the folder, and a receipt for each finished shard: what a killed run made,
and whole shards of a dataset that lost others, are kept.
"""

import contextlib
import datetime
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from pydantic import Field, ValidationError, field_validator, model_validator

from degradations.recipe import Recipe, RecipeError
from degradations.recipe import load as load_recipe
from osdface.config import Strict, digest
from osdface.errors import UserError
from osdface.files import aside, sha256, write_json
from osdface.imagefile import ImageError, open_header, read_image
from pipelines import cluster
from pipelines.pairs import (
    REJECTS,
    ROW_GROUP,
    SCHEMA,
    Format,
    Manifest,
    Shard,
    Spec,
    count,
    dataset_digest,
    describe,
    encode,
    read_manifest,
    row_digest,
)

SIDECAR = "metadata.jsonl"  # Hugging Face's imagefolder layout; may give each picture a `group`
SMALLEST = 16  # pixels of a side
LIBRARIES = ("opencv-python-headless", "numpy", "pyarrow", "pillow", "albumentations", "ray")

Progress = Callable[[str, int, int], None]
Reject = dict[str, str]  # source_uri, reason


class Split(Strict):
    """Shares of the pictures (by hash) that go to validation and test; the rest is for training."""

    val: float = Field(default=0.0, ge=0, le=1)
    test: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> "Split":
        if self.val + self.test > 1:
            raise ValueError(f"val {self.val:g} and test {self.test:g} are more than everything together")
        return self

    def of(self, identity: str) -> str:
        """The split of a picture, from the hash of its group or content."""
        position = int(hashlib.sha256(identity.encode()).hexdigest()[:12], 16) / 16**12
        return "test" if position < self.test else "val" if position < self.test + self.val else "train"


class SynthConfig(Strict):
    """Configuration of `osdface data synth`.

    size: pixels of a side. shard_rows: rows of a shard, which is also what a killed run has to make again at most.
    cpus_per_worker: what Ray reserves for each of `workers`. max_pixels: larger pictures are rejected unread.
    """

    sources: list[Path]
    out: Path
    recipe: str = "dual_sequential"
    seed: int = 0
    variants: int = Field(default=1, ge=1)
    size: int = Field(default=512, ge=16, le=4096)
    shard_rows: int = Field(default=256, ge=1)
    workers: int = Field(default=2, ge=1)
    cpus_per_worker: float = Field(default=0.5, gt=0)
    split: Split = Split()
    hq_format: Format = "png"
    lq_format: Format = "png"
    max_pixels: int = Field(default=100_000_000, ge=1)

    @field_validator("sources")
    @classmethod
    def _some(cls, sources: list[Path]) -> list[Path]:
        if not sources:
            raise ValueError("give one folder of pictures at least")
        return sources

    def spec(self, recipe: Recipe) -> Spec:
        """What the dataset's digest covers."""
        return Spec(
            recipe=recipe, seed=self.seed, variants=self.variants, size=self.size, hq_format=self.hq_format,
            lq_format=self.lq_format, val=self.split.val, test=self.split.test, shard_rows=self.shard_rows,
        )  # fmt: skip


class Receipt(Strict):
    """A shard that is finished: `plan` is the digest of the plan it belongs to."""

    plan: str
    shard: Shard
    rejects: list[Reject]


def synthesize(config: SynthConfig, progress: Progress | None = None, address: str | None = None) -> Manifest:
    """Make, resume, mend or find finished the dataset that `config` describes, on the Ray cluster at `address`.

    The same spec and pictures give the same digest, whatever the workers and interruptions. Raises UserError for
    missing or empty sources, sources without a readable picture, an output that holds something else or cannot be
    written; whatever was finished before stays.
    """
    try:
        recipe = load_recipe(config.recipe)
    except RecipeError as error:
        raise UserError(str(error)) from None
    config = config.model_copy(update={"out": config.out.absolute()})  # workers may stand elsewhere
    spec = config.spec(recipe)
    files = _list(config.sources, config.out)
    _refuse_others(config.out, spec)
    resumed = (config.out / "shards").exists()
    cluster.connect(address)
    cluster.require_cpus(config.workers * config.cpus_per_worker)
    if not resumed:
        _claim(config.out, spec)
    pictures, rejects = _ingest(files, config, progress)
    plan = _plan(pictures, config)
    identity = _identity(spec, plan)
    finished = _finished(config.out, identity)
    if finished and _whole(config.out, finished):
        return finished
    receipts = _make_shards(plan, config, recipe, identity, progress)
    rejects += [reject for receipt in receipts for reject in receipt.rejects]
    shards = [receipt.shard for receipt in receipts]
    if not any(shard.rows for shard in shards):
        if not resumed:
            _withdraw(config.out)
        first = "; ".join(f"{reject['source_uri']}: {reject['reason']}" for reject in rejects[:3])
        raise UserError(f"{config.sources[0]}: none of its {len(files)} files is a readable picture ({first})")
    manifest = _manifest(config, spec, identity, shards, len(rejects))
    if finished and manifest.digest != finished.digest:
        raise UserError(
            f"{config.out}: its missing shards come out different with this installation's library versions; "
            "make the dataset anew with another --out"
        )
    _tidy(config.out, shards)
    _write_rejects(config.out, rejects)
    write_json(config.out / "manifest.json", manifest.model_dump(mode="json"))
    return manifest


def _identity(spec: Spec, plan: list[list[dict[str, Any]]]) -> str:
    """Digest of the spec and the planned rows, wherever the pictures lie."""
    rows = [[{name: row[name] for name in row if name != "path"} for row in shard] for shard in plan]
    return digest({"spec": spec.model_dump(mode="json"), "plan": rows})


def _list(sources: list[Path], out: Path) -> list[dict[str, Any]]:
    """Every file under the sources but sidecars, hidden ones and our own: its path, its name in its source, its group.

    Paths travel as bytes and `source_uri` escapes what is not UTF-8, since a file may have any name.
    """
    files = []
    for source in sources:
        if not source.is_dir():
            raise UserError(f"{source}: no such folder of pictures")
        groups = _groups(source / SIDECAR)
        root = source.absolute()
        names = [path.relative_to(root) for path in root.rglob("*") if path.is_file() and not path.is_relative_to(out)]
        names = [name for name in names if name != Path(SIDECAR) and not any(p.startswith(".") for p in name.parts)]
        if not names:
            raise UserError(f"{source}: is empty; put pictures in it, or make some with `osdface faces make`")
        for name in names:
            uri = os.fsencode(name.as_posix()).decode(errors="backslashreplace")
            files.append({"path": os.fsencode(root / name), "source_uri": uri, "group": groups.get(uri, "")})
    return files


def _groups(sidecar: Path) -> dict[str, str]:
    if not sidecar.is_file():
        return {}
    try:
        entries = [json.loads(line) for line in sidecar.read_text().splitlines() if line.strip()]
        return {entry["file_name"]: str(entry["group"]) for entry in entries if "group" in entry}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{sidecar}: not lines of JSON with a file_name each ({error}); mend or remove it") from None


def _refuse_others(out: Path, spec: Spec) -> None:
    """Raise UserError if the folder holds anything but this spec's dataset, finished or not."""
    claim = out / ".receipts" / "spec.json"
    try:
        if (out / "manifest.json").exists():
            held = read_manifest(out).spec
        elif (out / "shards").exists() and claim.exists():
            held = Spec.model_validate_json(claim.read_bytes())
        elif out.exists() and any(path.name != ".receipts" for path in out.iterdir()):
            raise UserError(f"{out}: holds files that are no dataset; give an empty or new folder as --out")
        else:
            return
    except ValidationError:
        raise UserError(f"{claim}: damaged; remove {out} or give another --out") from None
    except OSError as error:
        raise UserError(f"{out}: cannot be read ({error.strerror}); give another --out") from None
    if held != spec:
        differing = [name for name in Spec.model_fields if getattr(held, name) != getattr(spec, name)]
        raise UserError(
            f"{out}: holds another dataset (it differs in {', '.join(differing)}); give another --out or remove it"
        )


def _claim(out: Path, spec: Spec) -> None:
    try:
        write_json(out / ".receipts" / "spec.json", spec.model_dump(mode="json"))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another --out") from None


def _withdraw(out: Path) -> None:
    """Leave nothing of a run that made no row."""
    for name in ("shards", ".receipts"):
        shutil.rmtree(out / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        out.rmdir()


def _ingest(
    files: list[dict[str, Any]], config: SynthConfig, progress: Progress | None
) -> tuple[list[dict[str, Any]], list[Reject]]:
    """Hash every file and check its header: pictures (distinct bytes), and rejects with their reasons."""
    inspected = []
    for row in _map(partial(_inspect, max_pixels=config.max_pixels), files, config.workers * 4, config):
        inspected.append(row)
        if progress:
            progress("inspected", len(inspected), len(files))
    pictures: dict[str, dict[str, Any]] = {}
    rejects = []
    # by name, and between equal names by what the dataset keeps: where the sources lie decides nothing
    for row in sorted(inspected, key=lambda row: (row["source_uri"], row["group"], row["path"])):
        if row["reason"]:
            rejects.append({"source_uri": row["source_uri"], "reason": row["reason"]})
        elif (twin := pictures.get(row["sha256"])) is not None:
            rejects.append({"source_uri": row["source_uri"], "reason": f"same bytes as {twin['source_uri']}"})
        else:
            pictures[row["sha256"]] = row
    return list(pictures.values()), rejects


def _map(
    function: Callable[[dict[str, Any]], dict[str, Any]], items: list[dict[str, Any]], tasks: int, config: SynthConfig
) -> Iterator[dict[str, Any]]:
    """The results in any order; `tasks` share the items, as many at a time as there are workers."""
    tasks = min(tasks, len(items))
    pool = ray.data.TaskPoolStrategy(size=min(config.workers, tasks))
    blocks = ray.data.from_items(items, override_num_blocks=tasks)
    return iter(blocks.map(function, num_cpus=config.cpus_per_worker, compute=pool).iter_rows())


def _inspect(file: dict[str, Any], max_pixels: int) -> dict[str, Any]:
    reason, hashed = "", ""
    try:
        data = Path(os.fsdecode(file["path"])).read_bytes()
        hashed = hashlib.sha256(data).hexdigest()
        image = open_header(data, "the file", max_pixels)
        if min(image.size) < SMALLEST:
            reason = f"{image.width}x{image.height} pixels are too few ({SMALLEST} at least)"
    except ImageError as error:
        reason = str(error).removeprefix("the file: ")
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    return file | {"sha256": hashed, "reason": reason}


def _plan(pictures: list[dict[str, Any]], config: SynthConfig) -> list[list[dict[str, Any]]]:
    """The rows of every shard: sorted by key, cut every `shard_rows`. A pure function of the pictures' hashes."""
    rows = [
        {
            "path": os.fsdecode(picture["path"]),
            "source_uri": picture["source_uri"],
            "source_sha256": picture["sha256"],
            "variant": variant,
            "split": config.split.of(picture["group"] or picture["sha256"]),
        }
        for picture in sorted(pictures, key=lambda picture: picture["sha256"])
        for variant in range(config.variants)
    ]
    return [rows[start : start + config.shard_rows] for start in range(0, len(rows), config.shard_rows)]


def _finished(out: Path, identity: str) -> Manifest | None:
    """The manifest, if there is one. Raises UserError if it was made from other pictures."""
    if not (out / "manifest.json").exists():
        return None
    manifest = read_manifest(out)
    if manifest.plan != identity:
        raise UserError(f"{out}: was made from other pictures than the sources hold now; give another --out")
    return manifest


def _whole(out: Path, manifest: Manifest) -> bool:
    """Whether all files are there at full size; what their bytes are, `verify` finds out."""
    sizes = {path.name: path.stat().st_size for path in (out / "shards").glob("*.parquet")}
    return (out / "rejects.parquet").exists() and all(sizes.get(s.name) == s.bytes for s in manifest.shards)


def _make_shards(
    plan: list[list[dict[str, Any]]], config: SynthConfig, recipe: Recipe, identity: str, progress: Progress | None
) -> list[Receipt]:
    """The receipts of all shards: kept ones after a check, the rest made now."""
    receipts = {i: kept for i in range(len(plan)) if (kept := _kept(config.out, i, identity))}
    missing = [{"index": i, "rows": json.dumps(plan[i])} for i in range(len(plan)) if i not in receipts]
    if missing:
        make = partial(_make_shard, config=config, recipe=recipe, identity=identity)
        total, done = sum(map(len, plan)), sum(len(plan[i]) for i in receipts)
        for row in _map(make, missing, len(missing), config):
            if row["fault"]:
                raise UserError(row["fault"])
            receipts[row["index"]] = Receipt.model_validate_json(row["receipt"])
            done += len(plan[row["index"]])
            if progress:
                progress("pairs", done, total)
    return [receipts[i] for i in range(len(plan))]


def _kept(out: Path, index: int, identity: str) -> Receipt | None:
    """The receipt of a shard that an earlier run finished, if shard and receipt are whole and of this plan."""
    try:
        receipt = Receipt.model_validate_json(_receipt(out, index).read_bytes())
        whole = receipt.plan == identity and sha256(out / "shards" / receipt.shard.name) == receipt.shard.sha256
        return receipt if whole else None
    except (OSError, ValidationError):
        return None


def _name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def _receipt(out: Path, index: int) -> Path:
    return out / ".receipts" / f"{_name(index)}.json"


def _make_shard(task: dict[str, Any], config: SynthConfig, recipe: Recipe, identity: str) -> dict[str, Any]:
    """Write one shard and its receipt; a fault of the surroundings is returned as a sentence, not raised."""
    cv2.setNumThreads(1)
    index: int = task["index"]
    path = config.out / "shards" / _name(index)
    temporary = aside(path)
    digests: list[str] = []
    splits: list[str] = []
    rejects: list[Reject] = []
    try:
        path.parent.mkdir(exist_ok=True)
        pairs = _pairs(json.loads(task["rows"]), config, recipe, rejects)
        with pq.ParquetWriter(temporary, SCHEMA, compression="none") as writer:  # pictures are compressed already
            while group := list(itertools.islice(pairs, ROW_GROUP)):
                digests += map(row_digest, group)
                splits += [row["split"] for row in group]
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
        temporary.replace(path)
        shard = describe(path, sha256(path), digests, splits)
        receipt = Receipt(plan=identity, shard=shard, rejects=rejects)
        write_json(_receipt(config.out, index), receipt.model_dump(mode="json"))
        return {"index": index, "receipt": receipt.model_dump_json(), "fault": ""}
    except UserError as error:
        fault = str(error)
    except OSError as error:
        fault = f"{path}: cannot be written ({error.strerror or error}); make room and run the same command again"
    temporary.unlink(missing_ok=True)
    return {"index": index, "receipt": "", "fault": fault}


def _pairs(
    rows: list[dict[str, Any]], config: SynthConfig, recipe: Recipe, rejects: list[Reject]
) -> Iterator[dict[str, Any]]:
    """The shard's rows. A picture that turns out damaged becomes a reject; one that changed since it was hashed is a
    UserError, for the digest must not depend on when a file was read."""
    from degradations.degrade import degrade  # here, in the worker, since Albumentations is slow to import

    for (path, uri, hashed), variants in itertools.groupby(rows, _source):
        data = _read_again(Path(path), hashed)
        first = next(variants)
        try:
            hq_bytes = encode(fit(read_image(data, "the file", config.max_pixels), config.size), config.hq_format)
        except ImageError as error:
            if first["variant"] == 0:  # its variants may lie in two shards
                rejects.append({"source_uri": uri, "reason": str(error).removeprefix("the file: ")})
            continue
        hq = read_image(hq_bytes)  # what a reader will see: LQ is made from it, so that a row replays from itself
        for row in itertools.chain([first], variants):
            lq, trace = degrade(hq, recipe, (config.seed, hashed, row["variant"]))
            yield {
                "key": f"{hashed}-{row['variant']:03d}",
                "source_uri": uri,
                "source_sha256": hashed,
                "variant": row["variant"],
                "split": row["split"],
                "hq": hq_bytes,
                "lq": encode(lq, config.lq_format),
                "height": hq.shape[0],
                "width": hq.shape[1],
                "trace": json.dumps(trace),
                "recipe_digest": recipe.digest,
            }


def _source(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["path"], row["source_uri"], row["source_sha256"]


def _read_again(path: Path, hashed: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read any more ({error.strerror}); run the same command again") from None
    if hashlib.sha256(data).hexdigest() != hashed:
        raise UserError(f"{path}: changed while the dataset was being made; run the same command again")
    return data


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Centre crop (H, W, 3) uint8 to a square, then resize to `size` px: by area to shrink, bicubic to enlarge."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)


def _manifest(config: SynthConfig, spec: Spec, plan: str, shards: list[Shard], rejects: int) -> Manifest:
    return Manifest(
        digest=dataset_digest(spec, [shard.content for shard in shards]),
        spec=spec,
        shards=shards,
        counts=count(shards, spec, rejects),
        plan=plan,
        sources=[str(source.absolute()) for source in config.sources],
        versions={name: version(name) for name in LIBRARIES},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _tidy(out: Path, shards: list[Shard]) -> None:
    """Remove what killed runs left half-written, and shards of an earlier plan that had more."""
    names = {shard.name for shard in shards}
    for path in (out / "shards").glob("*part-*.parquet*"):
        if path.name not in names:
            path.unlink()


def _write_rejects(out: Path, rejects: list[Reject]) -> None:
    temporary = aside(out / "rejects.parquet")
    ordered = sorted(rejects, key=lambda reject: (reject["source_uri"], reject["reason"]))
    pq.write_table(pa.Table.from_pylist(ordered, REJECTS), temporary)
    temporary.replace(out / "rejects.parquet")
