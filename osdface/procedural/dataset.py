"""A folder of procedural faces in Hugging Face's imagefolder layout."""

import functools
import hashlib
import json
import multiprocessing
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2

from osdface import files, imagefile
from osdface.errors import UsageError, UserError
from osdface.procedural.parameters import VERSION, sample
from osdface.procedural.rendering import render

METADATA = "metadata.jsonl"
PLAN = ".faces.json"  # what the folder is being filled with


def make(
    out: Path,
    count: int,
    size: int = 512,
    seed: int = 0,
    per_identity: int = 1,
    workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> int:
    """Write `000000.png` ... and, last, metadata.jsonl; how many pictures were drawn anew.

    Picture k has the seed `seed` + k and the identity of the first of its `per_identity` pictures. A line of metadata
    has file_name, group (the identity), seed, version (the generator's), sha256 (the file's) and parameters. Pictures
    that the same call left finished are checked and kept. The bytes depend on nothing but the seeds and the size, save
    that another kind of processor may shift a few values by a level or two.

    Raises UsageError for impossible numbers; UserError for a folder that holds something else or cannot be written.
    """
    for name, value, least in (
        ("count", count, 1),
        ("per-identity", per_identity, 1),
        ("workers", workers, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UsageError(f"--{name} {value}: give {least} or more")
    if not 32 <= size <= 1024:
        raise UsageError(f"--size {size}: give 32 to 1024 pixels")
    out = Path(out)
    plan = {"version": VERSION, "count": count, "size": size, "seed": seed, "per_identity": per_identity}
    try:
        _claim(out, plan)
        known = _known(out / METADATA)
        jobs = [(k, seed + k, seed + k - k % per_identity, known.get(_name(k))) for k in range(count)]
        lines, drawn = [], 0
        for line, new in _map(functools.partial(_draw, out, size), jobs, workers):
            lines.append(json.dumps(line))
            drawn += new
            if progress:
                progress("faces", len(lines), count)
        files.write(out / METADATA, "\n".join(lines) + "\n")
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); free it or give another folder"
        ) from None
    return drawn


def _name(index: int) -> str:
    return f"{index:06d}.png"


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Take the folder for this plan, or refuse it; clear away what a killed run left half-written."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder")
    present = {path.name for path in out.iterdir()} if out.exists() else set()
    if PLAN in present:
        note = (out / PLAN).read_text()
        if note != json.dumps(plan):
            raise UserError(f"{out}: holds other procedural faces ({note}); empty it or give another folder")
    ours = {PLAN, METADATA, *map(_name, range(plan["count"]))} if PLAN in present or not present else set()
    half = {name for name in present if re.fullmatch(r"\.(\d{6}\.png|metadata\.jsonl|\.faces\.json)\.\d+", name)}
    foreign = sorted(present - ours - half)
    if foreign:
        raise UserError(f"{out}: holds files that are no procedural faces ({foreign[0]}); give an empty or new folder")
    for name in half:
        (out / name).unlink(missing_ok=True)
    files.write(out / PLAN, json.dumps(plan))


def _known(metadata: Path) -> dict[str, str]:
    """Digests of the pictures of a finished call; none where there is no such file, or not whole."""
    try:
        lines = [json.loads(line) for line in metadata.read_text().splitlines()]
        return {line["file_name"]: line["sha256"] for line in lines}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _map(draw: Callable, jobs: list, workers: int) -> Iterator:
    if workers == 1:
        yield from map(draw, jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        try:
            yield from pool.map(draw, jobs, chunksize=4)
        except BrokenProcessPool:
            raise UserError(
                "a drawing process was killed (memory?); run the same again, finished pictures are kept"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _draw(out: Path, size: int, job: tuple[int, int, int, str | None]) -> tuple[dict[str, Any], bool]:
    """Draw one picture unless it is there and sound; its line of metadata and whether it was drawn."""
    index, seed, identity, digest = job
    face, path = sample(seed, identity), out / _name(index)
    data = path.read_bytes() if path.exists() else b""
    drawn = not _sound(data, size, digest)
    if drawn:
        data = cv2.imencode(".png", render(face, size)[..., ::-1])[1].tobytes()
        files.write(path, data)
    line = {"file_name": path.name, "group": identity, "seed": seed, "version": VERSION}
    return line | {"sha256": hashlib.sha256(data).hexdigest(), "parameters": face.to_json()}, drawn


def _sound(data: bytes, size: int, digest: str | None) -> bool:
    """Whether a picture's file is as a finished call wrote it, or, before any call finished, a whole picture."""
    if digest:
        return hashlib.sha256(data).hexdigest() == digest
    try:
        return imagefile.read_image(data).shape == (size, size, 3)
    except imagefile.ImageError:
        return False
