"""The site builds strictly; what its pages say of the code is so."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import configs
from osdface import presets
from osdface.config import load
from pipelines.synthesize.config import SynthConfig
from pipelines.train_osd import OSDConfig
from pipelines.train_vre import VREConfig
from tests import documents
from tests.documents import ROOT, SPAN

PACKAGES = ("osdface", "degradations", "pipelines", "jobs")


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mkdocs", "build", "--config-file", config, "--site-dir", out]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


class TestSite:
    @pytest.fixture(autouse=True)
    def _mkdocs(self):
        for module in ("mkdocs", "mkdocstrings_handlers.python"):
            pytest.importorskip(module, reason=f"{module} is not installed: pip install 'osdface[dev]' has it")

    def test_builds_with_every_page_and_the_docstrings_and_asks_nothing_of_other_servers(self, tmp_path):
        done = build(ROOT / "mkdocs.yml", tmp_path)
        assert done.returncode == 0, done.stderr
        pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
        assert {f"{page.stem}.html" for page in (ROOT / "docs").glob("*.md")} <= pages.keys()
        assert 'id="osdface.restorer.Restorer.restore"' in pages["api.html"]
        assert 'href="benchmarks/results/degrade.html"' in pages["degradations.html"]
        assert 'href="jobs/configs/ablations/index.html"' in pages["reproduce.html"]
        for name, text in pages.items():
            assert not re.search(r'<(script|link|img)[^>]+(src|href)="(https?:)?//', text), name
            for picture in re.findall(r'<img [^>]*\bsrc="([^"]+)"', text):
                assert ((tmp_path / name).parent / picture).is_file(), (name, picture)

    def test_broken_links_fail(self, tmp_path):
        config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
        del config["nav"]
        config |= {"docs_dir": "pages", "hooks": [str(ROOT / "docs" / "hooks.py")], "plugins": []}
        (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
        (tmp_path / "pages").mkdir()
        (tmp_path / "pages" / "other.md").write_text("# Other\n")
        broken = ("no.md", "../benchmarks/none.md", "other.md#nowhere", "no.png")
        (tmp_path / "pages" / "page.md").write_text("# Page\n\n" + "\n".join(f"[a]({link})" for link in broken))
        done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
        assert done.returncode == 1
        for link in broken:
            assert re.search(rf"'page\.md'.*{re.escape(link)}", done.stderr), done.stderr


class TestPaper:
    @pytest.mark.parametrize(
        "name", sorted({span for row in documents.rows("paper.md") for span in SPAN.findall(row[-1])})
    )
    def test_what_it_names_is_there(self, name):
        if "/" in name:
            assert (ROOT / name).is_file()
        else:
            lookup(name)

    def test_every_equation_is_there(self):
        cells = [row[0] for row in documents.rows("paper.md") if len(row) == 3 and row[0][0].isdigit()]
        assert {int(number) for cell in cells for number in re.findall(r"\d+", cell)} == set(range(1, 17))

    @pytest.mark.parametrize(
        "name", ["osdface.diffusion.two_steps", "osdface.none", "pipelines.train_vre.VREStage.none"]
    )
    def test_a_name_of_nothing_is_seen(self, name):
        with pytest.raises((AttributeError, ModuleNotFoundError)):
            lookup(name)


def lookup(name: str) -> Any:
    """The object of a dotted name. Raises AttributeError or ModuleNotFoundError where there is none."""
    parts = name.split(".")
    assert parts[0] in PACKAGES
    found: Any = importlib.import_module(parts[0])
    for at, part in enumerate(parts[1:], 2):
        module = Path(getattr(found, "__file__", "") or "")
        there = (module.parent / f"{part}.py").is_file() or (module.parent / part / "__init__.py").is_file()
        found = (
            importlib.import_module(".".join(parts[:at]))
            if module.name == "__init__.py" and there
            else getattr(found, part)
        )
    return found


def papers() -> dict[str, Any]:
    """The set `paper` of each program, and the paper's architecture, by a word of the headings in open.md."""
    given: dict[str, Any] = {"data": "pairs", "out": "out"}
    return {
        "Data": load(SynthConfig, configs.find("paper", "synth"), sources=["FFHQ"], out="pairs"),
        "Stage 1": load(VREConfig, configs.find("paper", "vre"), **given),
        "Stage 2": load(OSDConfig, configs.find("paper", "osd"), **given, base="SD21", vre="vre"),
        "Architecture": presets.preset("sd21"),
    }


@pytest.mark.parametrize("heading", ["Data", "Stage 1", "Stage 2", "Architecture"])
def test_options_that_the_paper_leaves_open_are_there_with_the_defaults_that_are_said(heading):
    config, sections = papers(), (ROOT / "docs" / "open.md").read_text().split("\n## ")
    (section,) = (text for text in sections if text.startswith(heading))
    rows = documents.table(section)
    assert len(rows) > 3
    for _, option, default, _ in rows:
        for name in (span for span in SPAN.findall(option) if not span.startswith("--")):
            value = config["Stage 1" if "of both stages" in option else heading]
            for part in name.split("."):
                value = getattr(value, part)  # raises where there is no such option
            if said := SPAN.match(default):
                assert said[1] == str(value), name


def sentences() -> list[str]:
    """Every text in the code, f-strings with "..." for what varies."""
    found = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(
                            getattr(part, "value", "") if isinstance(part, ast.Constant) else "..."
                            for part in node.values
                        )
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_error_messages_are_those_of_the_code():
    cells = [row[0] for row in documents.rows("troubleshooting.md")]
    messages = [re.fullmatch(r"`` (.*) ``|`(.*)`", cell) for cell in cells]
    assert len(messages) > 30
    wanted = {match[1] or match[2] for match in messages if match}
    assert len(wanted) == len(cells)
    known = sentences()
    assert {message for message in wanted if not any(message in text for text in known)} == set()
