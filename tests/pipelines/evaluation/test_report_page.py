"""The report: its table, faces and plots, and that it asks nothing of any server."""

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from osdface import config
from pipelines.evaluation import charts, html
from pipelines.evaluation.gallery import Gallery
from pipelines.evaluation.measure import Measured
from pipelines.evaluation.summary import summarise
from pipelines.evaluation.table import FILE, Paper, table
from pipelines.metrics.protocol import Better, Missing, Suite

COUNT = 50


@dataclass
class Fake:
    """A metric of which only values in rows are looked at; those below `least` do not count."""

    name: str
    better: Better = "lower"
    network: str = ""
    digest: str = ""
    reference: bool = True
    least: float = 0.0

    def __call__(self, images: np.ndarray, references: np.ndarray | None = None) -> list[float | None]:
        raise AssertionError

    def counts(self, values: np.ndarray) -> np.ndarray:
        return np.isfinite(values) & (values >= self.least)


class Distance(Fake):
    """Of means, squared."""

    def features(self, images: np.ndarray) -> np.ndarray:
        raise AssertionError

    def distance(self, features: np.ndarray, references: np.ndarray | None = None) -> float:
        assert references is not None
        return float(np.square(features.mean(0) - references.mean(0)).sum())


LPIPS, NIQE = Fake("lpips.vgg", network="VGG16", digest="0123", least=0.1), Fake("niqe", reference=False)
FID = Distance("fid.vqfr", network="Inception", digest="4567")
SUITE = Suite([LPIPS, NIQE], [FID], [Missing("musiq", "musiq.pth", "weights")])


@pytest.fixture(scope="module")
def measured() -> list[Measured]:
    """Fifty faces; the restored ones better by LPIPS, one of which does not count, none with a value by NIQE."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(COUNT):
        lq = float(rng.uniform(0.5, 0.9))
        row = {"key": f"<{i}>", "lq_lpips.vgg": lq, "restored_lpips.vgg": 0.05 if i == 7 else lq - 0.3}
        row |= {"lq_niqe": None, "restored_niqe": None, "severity": float(i), "trace": "[]"}
        features = {(what, "fid.vqfr"): rng.normal(size=3) for what in ("lq", "restored", "reference")}
        shown = {what: np.full((192, 192, 3), i, np.uint8) for what in ("lq", "restored", "reference")}
        made.append(Measured(i, row, features, shown))
    return made


@pytest.fixture(scope="module")
def result(measured) -> dict:
    features = {at: np.stack([one.features[at] for one in measured]) for at in measured[0].features}
    told = {
        "judged": "a <model>", "pairs": COUNT, "data": "pairs", "dataset_digest": "d" * 64, "split": "test",
        "bundle_digest": "b" * 64, "against": None, "run_id": "r", "unmatched": {"restored": ["<x>.png"]},
    }  # fmt: skip
    return told | summarise([one.row for one in measured], features, SUITE, ("lq", "restored"))


def gallery(measured: list[Measured]) -> Gallery:
    made = Gallery(SUITE, "restored", COUNT)
    for one in measured:
        made.add(one)
    return made


def test_what_does_not_count_is_in_no_mean_and_in_no_pair(result, measured):
    values = [one.row["restored_lpips.vgg"] for one in measured if one.number != 7]
    assert result["metrics"]["lpips.vgg"]["restored"] == pytest.approx(np.mean(values))
    assert result["intervals"]["lpips.vgg"]["restored"]["counted"] == COUNT - 1
    compared = result["paired"]["lq"]["lpips.vgg"]
    assert (compared["pairs"], compared["win_rate"]) == (COUNT - 1, 1.0)
    assert compared["difference"]["value"] == pytest.approx(-0.3)
    assert result["metrics"]["niqe"] == {"lq": None, "restored": None}


def test_a_distance_of_sets_has_an_interval_where_features_are_few(result, measured):
    interval = result["intervals"]["fid.vqfr"]["restored"]
    ours, reference = (np.stack([m.features[what, "fid.vqfr"] for m in measured]) for what in ("restored", "reference"))
    assert interval["value"] == pytest.approx(FID.distance(ours, reference))
    assert interval["low"] < interval["value"] < interval["high"]
    wide = {what: np.zeros((3, 513)) for what in (("lq", "fid.vqfr"), ("reference", "fid.vqfr"))}
    found = summarise([{"key": str(i), "severity": None} for i in range(3)], wide, Suite([], [FID]), ("lq",))
    assert found["intervals"]["fid.vqfr"]["lq"] == {"value": 0, "low": None, "high": None, "counted": 3}


def test_the_gallery_has_the_best_and_worst_in_whatever_order_they_come(measured):
    one, other = gallery(measured), gallery(measured[::-1])
    ranked = sorted(measured, key=lambda m: m.row["restored_lpips.vgg"])
    assert one.metric is LPIPS
    assert [face.number for face in one.best()] == [m.number for m in ranked[:20]]
    assert [face.number for face in one.worst()] == [m.number for m in ranked[:-21:-1]]
    assert [face.number for face in one.spread()] == [0, 10, 20, 29, 39, 49]
    for name in ("best", "worst", "spread"):
        assert [f.number for f in getattr(one, name)()] == [f.number for f in getattr(other, name)()]


def test_few_faces_are_not_both_best_and_worst():
    few = Gallery(SUITE, "restored", 4)
    for i in range(4):
        few.add(Measured(i, {"key": "", "restored_lpips.vgg": 0.1 * i}, {}, {}))
    assert [face.number for face in few.best()] == [0, 1]
    assert [face.number for face in few.worst()] == [3, 2]


def test_the_table_is_the_papers_with_ours_below(result):
    made = table(result, "celeba_test", True, {"restored": "mine"})
    assert made.head[0] == "LPIPS ↓"
    quoted = {name: cells for name, cells, quoted in made.rows if quoted}
    assert quoted["OSDFace"] == ["0.3365", "0.1773", "75.640", "3.8840", "60.071", "5.2867", "45.415", "17.062"]
    name, cells, _ = made.rows[-1]
    assert name == "mine"
    assert cells[0] == f"{result['metrics']['lpips.vgg']['restored']:.4f}"
    assert cells[1] == cells[3] == "–"
    assert "the paper's own figures, on this set" in made.note
    assert "LPIPS: lpips.vgg" in made.note


def test_rows_of_other_pictures_are_said_to_be_no_comparison(result):
    own = table(result, None, True, {})
    assert "so no comparison with those here" in own.note
    assert any(quoted for _, _, quoted in own.rows)
    real = table(result, None, False, {})
    assert not any(quoted for _, _, quoted in real.rows)
    assert [head.split()[0] for head in real.head] == ["CLIPIQA", "MANIQA", "MUSIQ", "NIQE", "FID"]


def test_every_quoted_row_has_a_cell_for_each_column():
    paper = config.load(Paper, FILE)
    for quoted in paper.tables.values():
        assert set(quoted.columns) <= set(paper.columns)
        assert len(quoted.rows) == 10
        assert all(len(values) == len(quoted.columns) for values in quoted.rows.values())


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        self.ids += [named["id"]] if "id" in named else []
        if tag == "img":
            assert named["alt"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nothing_of_any_server(result, measured):
    page = html.page(result, table(result, None, True, {}), [m.row for m in measured], gallery(measured))
    parser = _Links()
    parser.feed(page)
    assert parser.open == []
    inside = [link for link in parser.links if link.startswith("#")]
    assert {link[1:] for link in inside} <= set(parser.ids)
    assert all(link.startswith("data:image/jpeg;base64,") for link in parser.links if link not in inside)
    assert "url(" not in page
    assert "@import" not in page
    for section in (
        "table",
        "every-metric",
        "compared",
        "by-severity",
        "spread-of-values",
        "best",
        "worst",
        "left-out",
    ):
        assert section in parser.ids
    assert "a &lt;model&gt;" in page
    assert "&lt;7&gt;" in page
    assert "&lt;x&gt;.png" in page
    assert "<x>" not in page
    assert "musiq.pth" in page


def test_plots_are_xml_and_draw_what_they_are_given():
    nan = float("nan")
    drawn = {
        "lines": charts.lines("a & b", ["mild", "severe"], {"x": [(1, 0, 2), (2, 1, 3)], "y": [(nan, nan, nan)] * 2}),
        "bars": charts.bars("win", {"psnr": 0.25, "<ssim>": 1.0}),
        "histogram": charts.histogram("h", {"x": [1.0, 1.0, 3.0, nan], "y": [2.0]}),
        "alike": charts.histogram("h", {"x": [5.0, 5.0]}),
    }
    trees = {name: ElementTree.fromstring(text) for name, text in drawn.items()}
    assert len(trees["lines"].findall("circle")) == 2
    assert len(trees["histogram"].findall("polygon")) == 2
    widths = [float(bar.get("width")) for bar in trees["bars"].findall("rect")]
    assert widths[1] == pytest.approx(4 * widths[0])
    for text in drawn.values():
        assert "nan" not in re.sub(r"<title>.*?</title>", "", text)
