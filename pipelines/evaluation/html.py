"""The report as one HTML page that needs nothing beside itself: table, intervals, plots, faces, what is missing."""

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.evaluation import charts
from pipelines.evaluation.gallery import TITLES, Face, Gallery
from pipelines.evaluation.summary import Rows, made_of
from pipelines.evaluation.table import NAMES, Table

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
{style}
</style>
<a class="skip" href="#main">To the results</a>
<h1>{title}</h1>
<p class="soft">{told}</p>
<nav aria-label="Sections">{links}</nav>
<main id="main">{sections}</main>
</html>
"""


def page(result: dict[str, Any], table: Table, rows: Rows, gallery: Gallery) -> str:
    """The whole report. result: as metrics.json has it."""
    what = list(next(iter(result["metrics"].values())))
    sections = {
        "Table": _table(table),
        "Every metric": _metrics(result, what),
        "Compared": _compared(result, made_of(tuple(what))),
        "By severity": _severity(result, what),
        "Spread of values": _histograms(result, rows, what),
        "Faces": _faces("Spread over the set.", gallery.spread(), gallery),
        "Best": _faces("The best.", gallery.best(), gallery),
        "Worst": _faces("The worst.", gallery.worst(), gallery),
        "Left out": _left_out(result),
    }
    there = {name: text for name, text in sections.items() if text}
    return PAGE.format(
        title=escape(f"Evaluation of {result['judged']}"),
        told=escape(_told(result)),
        style=(Path(__file__).parent / "report.css").read_text(),
        links="".join(f'<a href="#{_id(name)}">{name}</a>' for name in there),
        sections="".join(f'<section id="{_id(n)}"><h2>{n}</h2>{text}</section>' for n, text in there.items()),
    )


def _told(result: dict[str, Any]) -> str:
    parts = [f"{result['pairs']} pictures of {result['data']}", f"digest {result['dataset_digest'][:16]}"]
    parts += [f"{result['split']} split"] if result["split"] else []
    parts += [f"bundle {result['bundle_digest'][:16]}"] if result["bundle_digest"] else []
    parts += [f"against {result['against']}"] if result["against"] else []
    return "; ".join([*parts, f"run {result['run_id']}"]) + ". Square brackets hold bootstrap 95 % intervals."


def _table(table: Table) -> str:
    body = [
        [escape(name) + (' <span class="soft">quoted</span>' if quoted else ""), *cells]
        for name, cells, quoted in table.rows
    ]
    marks = ["" if quoted else "ours" for _, _, quoted in table.rows]
    return f"<h3>{escape(table.title)}</h3>" + _grid(["", *table.head], body, marks) + f"<p>{escape(table.note)}</p>"


def _metrics(result: dict[str, Any], what: list[str]) -> str:
    head = ["metric", *(NAMES.get(one, one) for one in what), "counted", "network", "weights"]
    body = []
    for name, by in result["intervals"].items():
        label = result["labels"][name]
        counted = "/".join(dict.fromkeys(str(by[one]["counted"]) for one in what)) + f" of {result['pairs']}"
        body.append(
            [
                f"{name} {'↑' if label['better'] == 'higher' else '↓'}",
                *(_interval(by[one]) for one in what),
                counted,
                escape(label["network"]) or "formula",
                label["digest"] or "–",
            ]
        )
    return _grid(head, body)


def _compared(result: dict[str, Any], main: str) -> str:
    parts = []
    for other, by in result["paired"].items():
        by = {name: one for name, one in by.items() if one["pairs"]}
        if not by:
            continue
        title = f"{NAMES[main]} against {result['against'] if other == 'against' else NAMES[other]}"
        body = [
            [name, f"{one['win_rate']:.1%}", _interval(one["difference"]), str(one["pairs"])]
            for name, one in by.items()
        ]
        parts.append(
            f"<h3>{escape(title)}</h3>"
            + _grid(["metric", "better in", "difference", "pairs"], body)
            + charts.bars(f"Share of pictures that are better: {title}", {n: one["win_rate"] for n, one in by.items()})
        )
    return "".join(parts)


def _severity(result: dict[str, Any], what: list[str]) -> str:
    thirds = result["severity"]
    if not thirds:
        return ""
    told = "; ".join(f"{t['part']}: {t['pictures']} pictures, {t['from']:.2f} to {t['to']:.2f}" for t in thirds)
    ticks = [third["part"] for third in thirds]
    plots = []
    for name in thirds[0]["metrics"]:
        series = {one: [_numbers(third["metrics"][name][one]) for third in thirds] for one in what}
        if any(np.isfinite(point[0]) for points in series.values() for point in points):
            plots.append((name, charts.lines(f"{name} by severity of degradation", ticks, series)))
    note = f"<p>Thirds by log2 of shrinking and blur, summed over the trace; {told}.</p>"
    return note + _legend(what) + _plots(plots)


def _histograms(result: dict[str, Any], rows: Rows, what: list[str]) -> str:
    plots = []
    for name in result["metrics"]:
        if f"{what[0]}_{name}" not in rows[0]:
            continue
        series = {one: [np.nan if (v := row[f"{one}_{name}"]) is None else v for row in rows] for one in what}
        if any(np.isfinite(values).any() for values in series.values()):
            plots.append((name, charts.histogram(f"{name}: how many pictures have which value", series)))
    return _legend(what) + _plots(plots) if plots else ""


def _faces(said: str, faces: list[Face], gallery: Gallery) -> str:
    if not faces:
        return ""
    metric = gallery.metric.name if gallery.metric else ""
    columns = " | ".join(TITLES.get(what, what) for what in faces[0].shown)
    figures = []
    for face in faces:
        images = "".join(
            f'<img src="{_embedded(image)}" alt="{escape(TITLES.get(what, what))}">'
            for what, image in face.shown.items()
        )
        value = "" if face.value is None else f", {metric} {face.value:.4g}"
        caption = f"<figcaption>{escape(face.key + value)}</figcaption>"
        figures.append(f'<figure><div class="row">{images}</div>{caption}</figure>')
    told = said if said.startswith("Spread") else f"{said} Sorted by {metric}."
    return f'<p>{escape(told)} Columns: {escape(columns)}.</p><div class="faces">{"".join(figures)}</div>'


def _left_out(result: dict[str, Any]) -> str:
    text = ""
    if result["missing"]:
        body = [[escape(m["name"]), escape(m["file"]), escape(m["where"])] for m in result["missing"]]
        text += "<p>Metrics whose weights are not here.</p>" + _grid(["metric", "file", "looked for in"], body)
    for folder, names in result["unmatched"].items():
        if names:
            text += (
                f"<details><summary>{len(names)} pictures of {escape(folder)} that match no other</summary>"
                f"<p>{escape(', '.join(names))}</p></details>"
            )
    return text


def _grid(head: list[str], body: list[list[str]], marks: list[str] | None = None) -> str:
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    rows = "".join(
        f'<tr class="{mark}"><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row, mark in zip(body, marks or [""] * len(body), strict=True)
    )
    table = f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide" tabindex="0" role="region" aria-label="table">{table}</div>'


def _plots(plots: list[tuple[str, str]]) -> str:
    figures = "".join(f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>" for name, svg in plots)
    return f'<div class="plots">{figures}</div>'


def _legend(what: list[str]) -> str:
    spans = (f'<span><i class="s{i}"></i>{escape(NAMES.get(one, one))}</span>' for i, one in enumerate(what))
    return f'<p class="legend">{"".join(spans)}</p>'


def _numbers(interval: dict[str, float | None]) -> tuple[float, float, float]:
    """None, as JSON has it, to not-a-number."""
    value, low, high = (
        np.nan if interval[end] is None else float(interval[end] or 0) for end in ("value", "low", "high")
    )
    return value, low, high


def _interval(interval: dict[str, Any]) -> str:
    value, low, high = _numbers(interval)
    if not np.isfinite(value):
        return "–"
    return f"{value:.4g}" + (f" [{low:.4g}, {high:.4g}]" if np.isfinite(low) else "")


def _embedded(image: np.ndarray) -> str:
    coded = io.BytesIO()
    Image.fromarray(image).save(coded, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(coded.getvalue()).decode()


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")
