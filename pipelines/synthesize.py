"""Ray Data: folders of HQ pictures -> a dataset of dual-stage degraded pairs.

Two passes. The first hashes every file and checks its header; the driver then plans which rows each shard holds, from
the pictures' hashes alone. The second makes one shard a task: encoded bytes never travel between tasks, and a shard is
the unit of resuming. Everything is written aside and renamed; the manifest comes last.
"""

import datetime
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from pydantic import Field, field_validator

from degradations.degrade import degrade
from degradations.recipe import Recipe, RecipeError
from degradations.recipe import load as load_recipe
from osdface.config import Strict, digest
from osdface.errors import UserError
from osdface.files import aside, sha256, write_json
from osdface.imagefile import ImageError, open_header, read_image
from pipelines import cluster
from pipelines.pairs import (
    ROW_GROUP,
    SCHEMA,
    Counts,
    Manifest,
    Shard,
    Spec,
    content_digest,
    dataset_digest,
    read_manifest,
    row_digest,
)

SIDECAR = "metadata.jsonl"  # Hugging Face's imagefolder layout; may give each picture a `group`
Format = Literal["png", "jpeg"]
REJECTS = pa.schema([("source_uri", pa.string()), ("reason", pa.string())])


class Split(Strict):
    """Shares of the pictures (by hash) that go to validation and test; the rest is for training."""

    val: float = Field(0.0, ge=0, lt=1)
    test: float = Field(0.0, ge=0, lt=1)

    def of(self, identity: str) -> str:
        """The split of a picture, from the hash of its group or content."""
        position = int(hashlib.sha256(identity.encode()).hexdigest()[:12], 16) / 16**12
        return "test" if position < self.test else "val" if position < self.test + self.val else "train"


class SynthConfig(Strict):
    """Configuration of `osdface data synth`."""

    sources: list[Path]
    out: Path
    recipe: str = "dual_sequential"
    seed: int = 0
    variants: int = Field(1, ge=1)
    size: int = Field(512, ge=16, le=4096)
    shard_rows: int = Field(256, ge=1)
    workers: int = Field(2, ge=1)
    cpus_per_worker: float = Field(0.5, gt=0)
    split: Split = Split()
    hq_format: Format = "png"
    lq_format: Format = "png"
    max_pixels: int = 100_000_000

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


Progress = Callable[[str, int, int], None]


def synthesize(config: SynthConfig, progress: Progress | None = None) -> Manifest:
    """Make, resume or find finished the dataset that `config` describes; the same spec gives the same digest.

    Raises UserError for missing or empty sources, sources without a readable picture, an output that holds something
    else or cannot be written; whatever was finished before stays.
    """
    try:
        recipe = load_recipe(config.recipe)
    except RecipeError as error:
        raise UserError(str(error)) from None
    spec = config.spec(recipe)
    cluster.require_cpus(config.workers * config.cpus_per_worker)
    files = _list(config.sources)
    _claim(config.out, spec)
    pictures, rejects = _ingest(files, config, progress)
    if not pictures:
        first = "; ".join(f"{reject['source_uri']}: {reject['reason']}" for reject in rejects[:3])
        raise UserError(f"{config.sources[0]}: none of its {len(files)} files is a readable picture ({first})")
    plan = _plan(pictures, config)
    identity = _identity(spec, plan)
    if (config.out / "manifest.json").exists():
        return _finished(config.out, identity)
    receipts = _make_shards(plan, config, recipe, identity, progress)
    rejects += [reject for receipt in receipts for reject in receipt["rejects"]]
    manifest = _manifest(config, spec, identity, receipts, rejects)
    _write_rejects(config.out, rejects)
    write_json(config.out / "manifest.json", manifest.model_dump(mode="json"))
    shutil.rmtree(config.out / ".building")
    return manifest


def _identity(spec: Spec, plan: list[list[dict[str, Any]]]) -> str:
    """Digest of the spec and the planned rows, wherever the pictures lie."""
    rows = [[{name: row[name] for name in row if name != "path"} for row in shard] for shard in plan]
    return digest({"spec": spec.model_dump(mode="json"), "plan": rows})


def _list(sources: list[Path]) -> list[dict[str, str]]:
    """Every file under the sources but the sidecars, with its path relative to its source, and its group if known."""
    files = []
    for source in sources:
        if not source.is_dir():
            raise UserError(f"{source}: no such folder of pictures")
        groups = _groups(source / SIDECAR)
        found = sorted(path for path in source.rglob("*") if path.is_file() and path != source / SIDECAR)
        if not found:
            raise UserError(f"{source}: is empty; put pictures in it, or make some with `osdface faces make {source}`")
        for path in found:
            uri = path.relative_to(source).as_posix()
            files.append({"path": str(path.absolute()), "source_uri": uri, "group": groups.get(uri, "")})
    return files


def _groups(sidecar: Path) -> dict[str, str]:
    if not sidecar.is_file():
        return {}
    try:
        entries = [json.loads(line) for line in sidecar.read_text().splitlines() if line.strip()]
        return {entry["file_name"]: str(entry["group"]) for entry in entries if "group" in entry}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{sidecar}: not lines of JSON with a file_name each ({error}); mend or remove it") from None


def _claim(out: Path, spec: Spec) -> None:
    """Take the output folder for this spec, or refuse it."""
    mine = {"spec": spec.model_dump(mode="json")}
    claim = out / ".building" / "spec.json"
    try:
        if (out / "manifest.json").exists():
            held: Any = {"spec": read_manifest(out).spec.model_dump(mode="json")}
        elif claim.exists():
            held = json.loads(claim.read_text())
        elif out.exists() and any(path.name != ".building" for path in out.iterdir()):
            raise UserError(f"{out}: holds files that are no dataset; give an empty or new folder as --out")
        else:
            (out / "shards").mkdir(parents=True, exist_ok=True)
            claim.parent.mkdir(exist_ok=True)
            write_json(claim, held := mine)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another --out") from None
    if held != mine:
        differing = [key for key, value in mine["spec"].items() if held.get("spec", {}).get(key) != value]
        raise UserError(
            f"{out}: holds another dataset (it differs in {', '.join(differing)}); give another --out or remove it"
        )


def _ingest(files: list[dict[str, str]], config: SynthConfig, progress: Progress | None) -> tuple[list, list]:
    """Hash every file and check its header: pictures (distinct bytes), and rejects with their reasons."""
    inspect = partial(_inspect, max_pixels=config.max_pixels)
    blocks = min(len(files), config.workers * 4)
    rows = ray.data.from_items(files, override_num_blocks=blocks).map(
        inspect, num_cpus=config.cpus_per_worker, compute=ray.data.TaskPoolStrategy(size=config.workers)
    )
    inspected = list(_counted(rows.iter_rows(), "inspected", len(files), progress))
    pictures: dict[str, dict[str, str]] = {}
    rejects = []
    for row in sorted(inspected, key=lambda row: (row["source_uri"], row["path"])):
        if row["reason"]:
            rejects.append({"source_uri": row["source_uri"], "reason": row["reason"]})
        elif (twin := pictures.get(row["sha256"])) is not None:
            rejects.append({"source_uri": row["source_uri"], "reason": f"same bytes as {twin['source_uri']}"})
        else:
            pictures[row["sha256"]] = row
    return list(pictures.values()), rejects


def _inspect(file: dict[str, str], max_pixels: int) -> dict[str, str]:
    reason, hashed = "", ""
    try:
        data = Path(file["path"]).read_bytes()
        hashed = hashlib.sha256(data).hexdigest()
        image = open_header(data, "the file", max_pixels)
        if min(image.size) < 16:
            reason = f"{image.width}x{image.height} pixels are too few (16 at least)"
    except ImageError as error:
        reason = str(error).removeprefix("the file: ")
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    return file | {"sha256": hashed, "reason": reason}


def _plan(pictures: list[dict[str, str]], config: SynthConfig) -> list[list[dict[str, Any]]]:
    """The rows of every shard: sorted by key, cut every `shard_rows`. A pure function of the pictures' hashes."""
    rows = [
        {
            "path": picture["path"],
            "source_uri": picture["source_uri"],
            "source_sha256": picture["sha256"],
            "variant": variant,
            "split": config.split.of(picture["group"] or picture["sha256"]),
        }
        for picture in sorted(pictures, key=lambda picture: picture["sha256"])
        for variant in range(config.variants)
    ]
    return [rows[start : start + config.shard_rows] for start in range(0, len(rows), config.shard_rows)]


def _make_shards(
    plan: list, config: SynthConfig, recipe: Recipe, identity: str, progress: Progress | None
) -> list[dict[str, Any]]:
    """The receipts of all shards: kept ones after a check, the rest made now."""
    receipts = {i: kept for i in range(len(plan)) if (kept := _kept(config.out, i, identity))}
    missing = [{"index": i, "rows": json.dumps(plan[i])} for i in range(len(plan)) if i not in receipts]
    if missing:
        make = partial(_make_shard, config=config, recipe=recipe, identity=identity)
        made = ray.data.from_items(missing, override_num_blocks=len(missing)).map(
            make, num_cpus=config.cpus_per_worker, compute=ray.data.TaskPoolStrategy(size=config.workers)
        )
        total, done = sum(map(len, plan)), sum(receipt["rows"] for receipt in receipts.values())
        for row in made.iter_rows():
            receipt = json.loads(row["receipt"])
            if receipt.get("fault"):
                raise UserError(receipt["fault"])
            receipts[receipt["index"]] = receipt
            done += receipt["rows"]
            if progress:
                progress("pairs", done, total)
    return [receipts[i] for i in range(len(plan))]


def _kept(out: Path, index: int, identity: str) -> dict[str, Any] | None:
    """The receipt of a shard that an earlier run finished, if shard and receipt are whole and of this plan."""
    try:
        receipt = json.loads((out / ".building" / f"{_name(index)}.json").read_text())
        whole = receipt["identity"] == identity and sha256(out / "shards" / receipt["name"]) == receipt["sha256"]
        return receipt if whole else None
    except (OSError, ValueError, KeyError):
        return None


def _name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def _make_shard(task: dict[str, Any], config: SynthConfig, recipe: Recipe, identity: str) -> dict[str, str]:
    """Write one shard and its receipt; a fault of the surroundings is returned as a sentence, not raised."""
    cv2.setNumThreads(1)
    rejects: list[dict[str, str]] = []
    path = config.out / "shards" / _name(task["index"])
    temporary = aside(path)
    try:
        digests: list[str] = []
        splits: list[str] = []
        with pq.ParquetWriter(temporary, SCHEMA, compression="none") as writer:
            group: list[dict[str, Any]] = []
            for row in _pairs(json.loads(task["rows"]), config, recipe, rejects):
                digests.append(row_digest(row))
                splits.append(row["split"])
                group.append(row)
                if len(group) == ROW_GROUP:
                    writer.write_table(pa.Table.from_pylist(group, SCHEMA))
                    group = []
            if group:
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
        receipt = {
            "index": task["index"], "identity": identity, "name": path.name, "rows": len(digests),
            "bytes": temporary.stat().st_size, "sha256": sha256(temporary), "content": content_digest(digests),
            "splits": {name: splits.count(name) for name in sorted(set(splits))}, "rejects": rejects,
        }  # fmt: skip
        temporary.replace(path)
        write_json(config.out / ".building" / f"{path.name}.json", receipt)
        return {"receipt": json.dumps(receipt)}
    except OSError as error:
        temporary.unlink(missing_ok=True)
        fault = f"{path}: cannot be written ({error.strerror}); make room and run the same command again"
        return {"receipt": json.dumps({"fault": fault})}


def _pairs(
    rows: list[dict[str, Any]], config: SynthConfig, recipe: Recipe, rejects: list[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    """The shard's rows; a picture that turns out damaged, or changed since it was hashed, becomes a reject."""
    for row in rows:
        try:
            data = Path(row["path"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != row["source_sha256"]:
                raise UserError("changed while the dataset was being made")
            hq_bytes = encode(fit(read_image(data, "the file", config.max_pixels), config.size), config.hq_format)
        except (UserError, OSError) as error:
            reason = str(error).removeprefix("the file: ")
            if row["variant"] == 0:
                rejects.append({"source_uri": row["source_uri"], "reason": reason})
            continue
        hq = read_image(hq_bytes)  # what a reader will see: LQ is made from it, so that a row replays from itself
        lq, trace = degrade(hq, recipe, (config.seed, row["source_sha256"], row["variant"]))
        yield {
            "key": f"{row['source_sha256']}-{row['variant']:03d}",
            "source_uri": row["source_uri"],
            "source_sha256": row["source_sha256"],
            "variant": row["variant"],
            "split": row["split"],
            "hq": hq_bytes,
            "lq": encode(lq, config.lq_format),
            "height": hq.shape[0],
            "width": hq.shape[1],
            "trace": json.dumps(trace),
            "recipe_digest": recipe.digest,
        }


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Centre crop to a square, then resize: by area when shrinking, bicubic when enlarging."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)


def encode(image: np.ndarray, format: Format) -> bytes:
    """uint8 RGB to PNG (lossless) or JPEG at quality 95."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, 3] if format == "png" else [cv2.IMWRITE_JPEG_QUALITY, 95]
    return cv2.imencode(f".{format}", np.ascontiguousarray(image[..., ::-1]), options)[1].tobytes()


def _counted(rows: Any, label: str, total: int, progress: Progress | None) -> Iterator[Any]:
    for done, row in enumerate(rows, 1):
        if progress:
            progress(label, done, total)
        yield row


def _manifest(config: SynthConfig, spec: Spec, plan: str, receipts: list[dict[str, Any]], rejects: list) -> Manifest:
    shards = [Shard(**{name: receipt[name] for name in Shard.model_fields}) for receipt in receipts]
    rows = sum(shard.rows for shard in shards)
    splits = {name: sum(shard.splits.get(name, 0) for shard in shards) for name in ("train", "val", "test")}
    counts = Counts(sources=rows // config.variants, rows=rows, rejects=len(rejects), splits=splits)
    libraries = ("opencv-python-headless", "numpy", "pyarrow", "pillow", "albumentations", "ray")
    return Manifest(
        digest=dataset_digest(spec, [shard.content for shard in shards]),
        spec=spec,
        shards=shards,
        counts=counts,
        plan=plan,
        sources=[str(source.absolute()) for source in config.sources],
        versions={name: version(name) for name in libraries},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _finished(out: Path, identity: str) -> Manifest:
    """The manifest of a dataset that is already there, if its sources are still the same pictures."""
    manifest = read_manifest(out)
    if manifest.plan != identity:
        raise UserError(f"{out}: was made from other pictures than the sources hold now; give another --out")
    return manifest


def _write_rejects(out: Path, rejects: list[dict[str, str]]) -> None:
    temporary = aside(out / "rejects.parquet")
    pq.write_table(pa.Table.from_pylist(sorted(rejects, key=lambda r: r["source_uri"]), REJECTS), temporary)
    temporary.replace(out / "rejects.parquet")
