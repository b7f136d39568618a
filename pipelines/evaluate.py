"""How well a model restores: LQ and restored against HQ on one split of a pair dataset."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from osdface import bundle, files
from osdface.errors import UserError
from osdface.restorer import Restorer
from pipelines import report, tracking
from pipelines.metrics import METRICS
from pipelines.pairs.manifest import read_manifest
from pipelines.pairs.reading import PairDataset
from pipelines.store import Reference

BATCH = 16
SHOWN = 6  # pairs of the sheet, spread over the split
UNTRAINED = "untrained"
METRICS_FILE, ROWS_FILE, SHEET_FILE = "metrics.json", "rows.parquet", "sheet.png"

Progress = Callable[..., None]
Sheet = list[list[np.ndarray]]


def evaluate(
    model: str,
    data: Reference,
    out: Path,
    split: str = "test",
    against: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `metrics.json`, `rows.parquet` (a row a pair) and `sheet.png` to `out`; log them; return the report.

    `against` is a second model on the same pairs, or "untrained": the same generator before its first step. Metrics
    are means over pairs of uint8 pictures at the dataset's size. Raises UserError where the split is empty, a model
    is not found, `out` cannot be written, or MLflow does not answer.
    """
    manifest = read_manifest(data)
    pairs = PairDataset(data, split)
    if not len(pairs):
        raise UserError(f"{data}: its {split} split is empty; it has {manifest.counts.splits}, choose with --split")
    path = bundle.resolve(model)
    config = bundle.read_config(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    restorers = {"restored": Restorer.load(path, device)}
    if against:
        restorers["against"] = (
            Restorer.load(path, device, trained=False) if against == UNTRAINED else Restorer.load(against, device)
        )
    _prepare(out)
    settings = {
        "model": model,
        "bundle_digest": bundle.digest(path),
        "against": against,
        "split": split,
        "bundle": config.model_dump(mode="json", exclude={"files"}),
    }
    with tracking.run("evaluate", f"evaluate-{split}", settings, manifest, data, config.provenance.runs) as run:
        rows, shown = _measure(pairs, restorers, progress)
        means = {
            name: {which: float(np.mean([row[f"{which}_{name}"] for row in rows])) for which in ("lq", *restorers)}
            for name in METRICS
        }
        result: dict[str, Any] = {
            "model": model,
            "bundle_digest": settings["bundle_digest"],
            "against": against,
            "dataset_digest": manifest.digest,
            "run_id": run.id,
            "split": split,
            "pairs": len(rows),
            "metrics": means,
            "psnr": ", ".join(f"{which} {value:.2f} dB" for which, value in means["psnr"].items()),
        }
        _write(out, result, rows, shown)
        run.metrics({f"{which}_{name}": v for name, by in means.items() for which, v in by.items()}, 0)
        for name in (METRICS_FILE, ROWS_FILE, SHEET_FILE):
            run.artifact(out / name, "evaluation")
    return result


def _measure(
    pairs: PairDataset, restorers: dict[str, Restorer], progress: Progress | None
) -> tuple[list[dict[str, Any]], Sheet]:
    rows: list[dict[str, Any]] = []
    shown: Sheet = []
    chosen = set(np.linspace(0, len(pairs) - 1, min(SHOWN, len(pairs))).round().astype(int).tolist())
    for start in range(0, len(pairs), BATCH):
        batch = pairs.batch(range(start, min(start + BATCH, len(pairs))))
        hq = report.to_uint8(batch["hq"])
        pictures = {"lq": report.to_uint8(batch["lq"])}
        pictures |= {which: _restore(restorer, batch["lq"]) for which, restorer in restorers.items()}
        for i, key in enumerate(batch["key"]):
            values = {
                f"{which}_{n}": f(images[i], hq[i]) for which, images in pictures.items() for n, f in METRICS.items()
            }
            rows.append({"key": key} | values)
            if len(rows) - 1 in chosen:
                shown.append([pictures["lq"][i], pictures["restored"][i], hq[i]])
        if progress:
            progress("evaluate", len(rows), len(pairs))
    return rows, shown


def _restore(restorer: Restorer, lq: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8: at the pairs' size, where the model works at another."""
    restored = restorer.restore(lq / 2 + 0.5)
    if restored.shape != lq.shape:
        restored = F.interpolate(restored, lq.shape[-2:], mode="bicubic", antialias=True)
    return report.to_uint8(restored * 2 - 1)


def _prepare(out: Path) -> None:
    """Make the folder unfinished, before the work rather than after it: what cannot be written ends here."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / METRICS_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another --out") from None


def _write(out: Path, result: dict[str, Any], rows: list[dict[str, Any]], shown: Sheet) -> None:
    """metrics.json is written last: a folder without it is unfinished."""
    coded = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), coded)
    try:
        files.write(out / ROWS_FILE, coded.getvalue().to_pybytes())
        report.save_png(out / SHEET_FILE, report.sheet(shown, ["LQ", "restored", "HQ"], 192))
        files.write_json(out / METRICS_FILE, result)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another --out") from None


def flat_metrics(path: Path) -> dict[str, float]:
    """The metrics of a metrics.json as {"psnr": ..., "lq_psnr": ...}, for the registry.

    Raises UserError if the file is not there or not of this program.
    """
    try:
        metrics = json.loads(path.read_text())["metrics"]
        return {
            name if which == "restored" else f"{which}_{name}": value
            for name, by in metrics.items()
            for which, value in by.items()
        }
    except (OSError, KeyError, ValueError, AttributeError, TypeError):
        raise UserError(f"{path}: not the metrics.json of `osdface evaluate`") from None
