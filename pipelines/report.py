"""Pictures where people would rather look: contact sheets and before/after."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from osdface import files
from osdface.errors import UserError
from pipelines.store import Reference, Store

if TYPE_CHECKING:
    from torch import Tensor

MARGIN, TITLE = 4, 22


def to_uint8(images: "Tensor") -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8."""
    return ((images.detach().float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], cell: int = 128) -> np.ndarray:
    """A grid of uint8 RGB pictures, each fitted into `cell` pixels, with a title over each column."""
    step = cell + MARGIN
    canvas = np.full((TITLE + step * len(rows), step * len(titles) + MARGIN, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = TITLE + r * step, MARGIN + c * step
            canvas[top : top + cell, left : left + cell] = fitted(image, cell)
    return _titled(canvas, titles, step)


def fitted(image: np.ndarray, cell: int) -> np.ndarray:
    """A uint8 RGB picture (H, W, 3) brought to (cell, cell, 3); white beside one that is not square."""
    longest = max(image.shape[:2])
    height, width = (max(1, round(side * cell / longest)) for side in image.shape[:2])
    canvas = np.full((cell, cell, 3), 255, np.uint8)
    top, left = (cell - height) // 2, (cell - width) // 2
    small = cv2.resize(image, (width, height), interpolation=_kernel(longest, cell))
    canvas[top : top + height, left : left + width] = small
    return canvas


def sheet_of_tensors(columns: dict[str, "Tensor"], cell: int = 128) -> np.ndarray:
    """A sheet with a column for each (B, 3, H, W) batch in [-1, 1] and a row for each picture."""
    return sheet(list(zip(*map(to_uint8, columns.values()), strict=True)), list(columns), cell)


def side_by_side(before: np.ndarray, after: np.ndarray, titles: tuple[str, str]) -> np.ndarray:
    """Two uint8 RGB pictures (H, W, 3) beside each other, full size, tops aligned."""
    height = max(before.shape[0], after.shape[0])
    canvas = np.full((TITLE + height, before.shape[1] + MARGIN + after.shape[1], 3), 255, np.uint8)
    canvas[TITLE : TITLE + before.shape[0], : before.shape[1]] = before
    canvas[TITLE : TITLE + after.shape[0], before.shape[1] + MARGIN :] = after
    return _titled(canvas, titles, before.shape[1] + MARGIN)


def _titled(canvas: np.ndarray, titles: Sequence[str], step: int) -> np.ndarray:
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for c, title in enumerate(titles):
        draw.text((MARGIN + c * step + 2, 3), title, fill="black", font=ImageFont.load_default(14))
    return np.asarray(image)


def _kernel(size: int, cell: int) -> int:
    return cv2.INTER_AREA if cell < size else cv2.INTER_NEAREST if cell % size == 0 else cv2.INTER_CUBIC


def save_png(path: Path, image: np.ndarray) -> None:
    """Write a uint8 RGB picture aside, then rename it. Raises UserError naming a path that cannot be written."""
    coded = io.BytesIO()
    Image.fromarray(image).save(coded, "PNG")
    try:
        files.write(path, coded.getvalue())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def severity(trace: str) -> float:
    """How strong a trace's degradation is: the sum of log2 of how far it shrinks the picture and of 1 + blur sigmas.

    The picture shrinks by each Downsample's factor, and to the smallest that any Resize makes of the last one's size.
    """
    entries = json.loads(trace)
    total = sum(np.log2(1 + max(entry["sigma_x"], entry["sigma_y"])) for entry in entries if entry["op"] == "Blur")
    total += sum(np.log2(max(entry["factor"], 1)) for entry in entries if entry["op"] == "Downsample")
    heights = [entry["height"] for entry in entries if entry["op"] == "Resize"]
    return float(total + (np.log2(heights[-1] / min(heights)) if heights else 0))


def pair(folder: Reference, key: str) -> np.ndarray:
    """LQ | HQ of the row of a pair dataset that has this key, and its target where that is another picture.

    Raises UserError where no row has it.
    """
    from pipelines.pairs.manifest import SHARDS, open_parquet, read_manifest  # here: pictures need no pyarrow
    from pipelines.pairs.origin import Originals
    from pipelines.pairs.reading import NEEDED

    store = Store(folder)
    manifest = read_manifest(store)
    for shard in manifest.shards:
        with open_parquet(store, f"{SHARDS}/{shard.name}") as file:
            keys = file.read(columns=["key"]).column(0).to_pylist()
            if key not in keys:
                continue
            row = file.read(columns=NEEDED).slice(keys.index(key), 1).to_pylist()[0]
        pictures = Originals(manifest).pictures(row)
        both = side_by_side(pictures.lq, pictures.hq, ("LQ", "HQ"))
        return side_by_side(both, pictures.target, ("", "target")) if row["target_sha256"] else both
    raise UserError(f"{store}: no row has the key {key}")


def pairs_preview(folder: Reference, out: Path, count: int = 12) -> None:
    """An LQ | HQ sheet of a pair dataset's first rows, from mild to severe, `count` pairs spread over the range.

    Raises UserError for a folder that is no finished dataset, a shard that cannot be read, or an `out` that cannot be
    written.
    """
    save_png(out, pairs_sheet(folder, count))


def pairs_sheet(folder: Reference, count: int = 12) -> np.ndarray:
    """The sheet that `pairs_preview` writes; a third column where HQ pictures have targets of their own."""
    # pyarrow, which only `osdface[train]` brings: before and after needs none.
    from pipelines.pairs.manifest import SHARDS, open_parquet, read_manifest
    from pipelines.pairs.origin import Originals
    from pipelines.pairs.reading import NEEDED

    store = Store(folder)
    manifest = read_manifest(store)
    shard = next(shard for shard in manifest.shards if shard.rows)
    with open_parquet(store, f"{SHARDS}/{shard.name}") as file:
        rows = file.read(columns=[*NEEDED, "trace"]).to_pylist()
    rows.sort(key=lambda row: severity(row["trace"] or "[]"))
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
    titles = ["LQ", "HQ", "target"][: 3 if any(row["target_sha256"] for row in chosen) else 2]
    shown = [Originals(manifest).pictures(row) for row in chosen]
    return sheet([[p.lq, p.hq, p.target][: len(titles)] for p in shown], titles, 128)
