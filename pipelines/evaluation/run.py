"""`osdface evaluate`: restore, measure, compare, write it down."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from osdface import bundle, files
from osdface.errors import UsageError, UserError
from pipelines import report, tracking
from pipelines.evaluation import gallery, html, measure, record
from pipelines.evaluation.gallery import Gallery
from pipelines.evaluation.measure import Job, Measured, Model
from pipelines.evaluation.pictures import Pictures
from pipelines.evaluation.summary import Features, Rows, finite, made_of, summarise
from pipelines.evaluation.table import table
from pipelines.evaluation.wanted import Wanted
from pipelines.metrics.protocol import Suite

UNTRAINED = "untrained"
METRICS_FILE, ROWS_FILE, REPORT_FILE = "metrics.json", "rows.parquet", "report.html"
SHEETS = ("sheet.png", "best.png", "worst.png")

Progress = Callable[..., None]


def evaluate(wanted: Wanted, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Write metrics.json, rows.parquet (a row a picture), report.html and sheets to `out`; log them; return the first.

    `against` is a second model on the same pictures, or "untrained": the same generator before its first step. Raises
    UsageError for wishes that do not go together or an unknown metric; UserError where pictures or a model are not
    there or not what they should be, no metric can be computed, `out` cannot be written, or MLflow does not answer.
    """
    wanted.check()
    _apart(wanted, out)
    pictures = wanted.pictures()
    path = bundle.resolve(wanted.model) if wanted.model else None
    job = Job(pictures, _models(path, wanted.against), wanted.metrics)
    suite = measure.suite(job, None if wanted.alone() else "cpu")  # elsewhere the networks are the actors'
    _some(suite, wanted.require)
    _prepare(out)
    digest = bundle.digest(path) if path else None
    config = bundle.read_config(path) if path else None
    settings = wanted.model_dump(mode="json", exclude={"workers", "address", "require"}, exclude_none=True)
    if config:
        settings |= {"bundle_digest": digest, "bundle": config.model_dump(mode="json", exclude={"files"})}
    dataset = tracking.Named(pictures.uri, pictures.digest, pictures.profile())
    parents = config.provenance.runs if config else {}
    with tracking.run("evaluate", f"evaluate-{wanted.name()}", settings, dataset, pictures.uri, parents) as run:
        found = _measure(job, suite, wanted, progress)
        result = _told(wanted, pictures, digest, run.id, found) | summarise(*found.numbers, suite, found.what)
        named = {"restored": Path(result["judged"]).name, "against": wanted.against or ""}
        shown = table(result, wanted.set, pictures.references, named)
        result["table"] = shown.plain()
        if psnr := result["metrics"].get("psnr"):
            result["psnr"] = ", ".join(f"{one} {value:.2f} dB" for one, value in psnr.items() if value is not None)
        written = _write(out, result, found, html.page(result, shown, found.numbers.rows, found.gallery))
        record.log(run, result, dataset)
        for file in written:
            run.artifact(file, "evaluation")
    return result


class Numbers(NamedTuple):
    """Rows in the order of the pictures; features by (what, distribution), (N, D)."""

    rows: Rows
    features: Features


class Found(NamedTuple):
    """What was measured, of what ("lq", "restored", "against"), and the faces to show."""

    numbers: Numbers
    what: tuple[str, ...]
    gallery: Gallery


def _told(wanted: Wanted, pictures: Pictures, digest: str | None, run: str, found: Found) -> dict[str, Any]:
    """What was evaluated."""
    return {
        "model": wanted.model,
        "bundle_digest": digest,
        "against": wanted.against,
        "data": pictures.uri,
        "dataset_digest": pictures.digest,
        "set": wanted.set,
        "run_id": run,
        "split": (wanted.split or "test") if wanted.data else None,
        "pairs": len(found.numbers.rows),
        "judged": wanted.model or wanted.restored or pictures.uri,
        "unmatched": pictures.unmatched,
    }


def _apart(wanted: Wanted, out: Path) -> None:
    for folder in (wanted.restored, wanted.reference, wanted.no_reference, wanted.root):
        if folder and out.resolve().is_relative_to(Path(folder).resolve()):
            raise UsageError(f"--out {out}: lies in {folder}, whose pictures would include the report's; give another")


def _models(path: Path | None, against: str | None) -> dict[str, Model]:
    if path is None:
        return {}
    models = {"restored": Model(str(path))}
    if against == UNTRAINED:
        models["against"] = Model(str(path), trained=False)
    elif against:
        models["against"] = Model(str(bundle.resolve(against)))
    return models


def _some(suite: Suite, required: str | None) -> None:
    there = [metric.name for metric in (*suite.metrics, *suite.distributions)]
    if required and required not in there:
        needed = next((f": it needs {m.file}, which is not here" for m in suite.missing if m.name == required), "")
        raise UsageError(f"--require {required}: is none of the metrics here ({', '.join(there)}){needed}")
    if not there:
        needed = ", ".join(f"{missing.name} needs {missing.file}" for missing in suite.missing)
        raise UserError(f"no metric can be computed: {needed}; add one with `osdface weights add`")


def _measure(job: Job, suite: Suite, wanted: Wanted, progress: Progress | None) -> Found:
    total = len(job.pictures)
    what = (*job.pictures[0].pictures, *job.models)
    shown = Gallery(suite, made_of(what), total)
    found: dict[int, Measured] = {}
    for measured in _chunks(job, suite, wanted):
        for one in measured:
            shown.add(one)
            found[one.number] = one._replace(shown={})
        if progress:
            progress("evaluate", len(found), total)
    ordered = [found[number] for number in range(total)]
    features = {at: np.stack([one.features[at] for one in ordered]) for at in ordered[0].features}
    return Found(Numbers([one.row for one in ordered], features), what, shown)


def _chunks(job: Job, suite: Suite, wanted: Wanted) -> Iterator[list[Measured]]:
    if wanted.alone():
        return measure.here(job, suite)
    from pipelines.evaluation import actors  # Ray, which one process does without

    return actors.over(job, wanted.workers, wanted.address)


def _prepare(out: Path) -> None:
    """Make the folder unfinished, before the work rather than after it: what cannot be written ends here."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (METRICS_FILE, *SHEETS):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another --out") from None


def _write(out: Path, result: dict[str, Any], found: Found, page: str) -> list[Path]:
    """The files. metrics.json is written last: a folder without it is unfinished."""
    rows, coded = found.numbers.rows, pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(finite(rows), _schema(rows[0])), coded)
    faces = zip(SHEETS, (found.gallery.spread(), found.gallery.best(), found.gallery.worst()), strict=True)
    sheets = {name: gallery.sheet(shown) for name, shown in faces if shown}
    try:
        files.write(out / ROWS_FILE, coded.getvalue().to_pybytes())
        files.write(out / REPORT_FILE, page)
        for name, sheet in sheets.items():
            report.save_png(out / name, sheet)
        files.write_json(out / METRICS_FILE, result)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another --out") from None
    return [out / name for name in (METRICS_FILE, ROWS_FILE, REPORT_FILE, *sheets)]


def _schema(row: dict[str, Any]) -> pa.Schema:
    return pa.schema([(name, pa.string() if name in ("key", "trace") else pa.float64()) for name in row])
