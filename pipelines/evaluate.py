"""How well a model restores: LQ and restored against HQ on one split of a pair dataset."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from osdface import bundle, files
from osdface.config import resolved
from osdface.errors import UserError
from osdface.restorer import Restorer
from pipelines import report, tracking
from pipelines.metrics import METRICS
from pipelines.pairs import PairDataset, read_manifest

BATCH = 16
SHOWN = 8
UNTRAINED = "untrained"


def evaluate(
    model: str,
    data: Path,
    out: Path,
    split: str = "test",
    against: str | None = None,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Write `metrics.json`, `rows.parquet` (a row a pair) and `sheet.png` to `out`; log them; return the report.

    `against` is a second model on the same pairs, or "untrained": the same generator before its first step. Metrics
    are means over pairs of uint8 pictures at the dataset's size. Raises UserError where the split is empty.
    """
    manifest = read_manifest(data)
    pairs = PairDataset(data, split)
    if not len(pairs):
        raise UserError(f"{data}: its {split} split is empty")
    restorers = {"restored": Restorer.load(model)}
    if against:
        restorers["against"] = Restorer.load(model, trained=False) if against == UNTRAINED else Restorer.load(against)
    rows, shown = _measure(pairs, restorers, progress)
    means = {
        name: {which: float(np.mean([row[f"{which}_{name}"] for row in rows])) for which in ("lq", *restorers)}
        for name in METRICS
    }
    path = restorers["restored"].path
    result: dict[str, Any] = {
        "model": model,
        "bundle_digest": bundle.digest(path) if path else None,
        "against": against,
        "dataset_digest": manifest.digest,
        "split": split,
        "pairs": len(rows),
        "metrics": means,
        "psnr": ", ".join(f"{which} {value:.2f} dB" for which, value in means["psnr"].items()),
    }
    _write(out, result, rows, shown)
    _log(result, restorers["restored"], data, out)
    return result


def _measure(pairs: PairDataset, restorers: dict[str, Restorer], progress: Callable[..., None] | None) -> tuple:
    rows: list[dict[str, Any]] = []
    shown: list[list[np.ndarray]] = []
    for start in range(0, len(pairs), BATCH):
        batch = pairs.batch(range(start, min(start + BATCH, len(pairs))))
        pictures = {"lq": report.to_uint8(batch["lq"])}
        for which, restorer in restorers.items():
            pictures[which] = report.to_uint8(restorer.restore(batch["lq"] / 2 + 0.5) * 2 - 1)
        hq = report.to_uint8(batch["hq"])
        for i, key in enumerate(batch["key"]):
            values = {
                f"{which}_{n}": f(images[i], hq[i]) for which, images in pictures.items() for n, f in METRICS.items()
            }
            rows.append({"key": key} | values)
            if len(shown) < SHOWN:
                shown.append([pictures["lq"][i], pictures["restored"][i], hq[i]])
        if progress:
            progress("evaluate", len(rows), len(pairs))
    return rows, shown


def _write(out: Path, result: dict[str, Any], rows: list[dict[str, Any]], shown: list[list[np.ndarray]]) -> None:
    """metrics.json is written last: a folder without it is unfinished."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.json").unlink(missing_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), out / "rows.parquet")
        report.save_png(out / "sheet.png", report.sheet(shown, ["LQ", "restored", "HQ"], 192))
        files.write_json(out / "metrics.json", result)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another --out") from None


def _log(result: dict[str, Any], restorer: Restorer, data: Path, out: Path) -> None:
    runs = restorer.config.provenance.runs if restorer.config else {}
    settings = resolved(restorer.config) if restorer.config else {}
    with tracking.run("evaluate", f"evaluate-{result['split']}", settings, read_manifest(data), data, runs) as run:
        run.metrics({f"{which}_{name}": v for name, by in result["metrics"].items() for which, v in by.items()}, 0)
        for name in ("metrics.json", "rows.parquet", "sheet.png"):
            run.artifact(out / name, "evaluation")


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
    except (OSError, KeyError, ValueError, AttributeError):
        raise UserError(f"{path}: not the metrics.json of `osdface evaluate`") from None
