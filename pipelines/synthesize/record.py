"""An MLflow run for each synthesis: spec, digest, counts, throughput, contact sheet, rejects, sampled parameters."""

import io
import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from osdface.config import resolved
from pipelines import report, tracking
from pipelines.pairs.manifest import REJECTS_FILE, SHARDS, Manifest, open_parquet
from pipelines.store import Reference, Store

ROWS = 5000  # whose traces make the histograms, at most
BINS = 40


def record(folder: Reference, manifest: Manifest, seconds: float, rows: int) -> str:
    """Log a finished synthesis that made `rows` pairs in `seconds`; returns the run's id.

    Raises UserError where MLflow does not answer.
    """
    store = Store(folder)
    settings = {
        "spec": resolved(manifest.spec),
        "additions": [resolved(addition) for addition in manifest.additions],
        "parent": manifest.parent,
        "versions": manifest.versions,
    }
    with tracking.run("data", f"{manifest.made_by}-{manifest.digest[:12]}", settings, manifest, store.uri, {}) as run:
        counts = manifest.counts
        kinds = reject_kinds(store)
        run.metrics(
            {"rows": counts.rows, "sources": counts.sources, "rejects": counts.rejects, "seconds": seconds}
            | {f"rows/{name}": float(number) for name, number in counts.splits.items()}
            | {f"rejects/{kind}": float(number) for kind, number in kinds.items()}
            | ({"pairs_per_second": rows / seconds} if rows else {}),
            0,
        )
        run.image("sheets/pairs.png", report.pairs_sheet(store.uri))
        if drawn := sampled(store, manifest):
            run.image("sheets/parameters.png", histograms(drawn))
        with TemporaryDirectory() as temporary:
            path = Path(temporary) / "manifest.json"
            path.write_text(json.dumps(resolved(manifest), indent=2))
            run.artifact(path)
    return run.id


def reject_kinds(store: Store) -> dict[str, int]:
    """How many rejects of each kind a dataset has."""
    with open_parquet(store, REJECTS_FILE) as file:
        return dict(Counter(file.read(columns=["kind"]).column(0).to_pylist()))


def sampled(store: Store, manifest: Manifest) -> dict[str, list[float]]:
    """ "operator.parameter" -> the numbers drawn, from the traces of the first rows."""
    drawn: dict[str, list[float]] = {}
    seen = 0
    for shard in manifest.shards:
        if seen >= ROWS:
            break
        with open_parquet(store, f"{SHARDS}/{shard.name}") as file:
            traces = file.read(columns=["trace"]).column(0).to_pylist()
        for trace in traces:
            for entry in json.loads(trace or "[]"):
                for name, value in entry.items():
                    if isinstance(value, int | float) and not isinstance(value, bool) and "seed" not in name:
                        drawn.setdefault(f"{entry['op']}.{name}", []).append(value)
        seen += len(traces)
    return {name: values for name, values in sorted(drawn.items()) if len(set(values)) > 1}


def histograms(drawn: dict[str, list[float]]) -> np.ndarray:
    """A small histogram for each parameter, as a uint8 RGB picture."""
    from matplotlib.figure import Figure  # without pyplot, whose state is process-wide

    columns = 4
    lines = -(-len(drawn) // columns)
    figure = Figure((3 * columns, 2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for axis, (name, values) in zip(axes, drawn.items(), strict=False):
        axis.hist(values, BINS)
        axis.set_title(name, fontsize=9)
    for axis in axes:  # what the grid has too many
        axis.set_axis_off()
    coded = io.BytesIO()
    figure.savefig(coded, format="png", dpi=80)
    return np.asarray(Image.open(coded).convert("RGB"))
