"""What MkDocs needs for pages that lie outside docs/, and for links of the repository to what is no page."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
HOME = "README.md"  # of the repository; the site's index.md
OUTSIDE = [HOME, "CONTRIBUTING.md", "CHANGELOG.md", "jobs/configs/*/README.md", "benchmarks/results/*.md"]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
SOURCE = re.compile(r'(<img [^>]*\bsrc=")([^":]+)')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in _outside():
        files.append(File.generated(config, _page(path), content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links as they are in the repository, turned into those of the site; to files that are no page, their text."""
    here = page.file.src_uri
    source = next((path for path in _outside() if _page(path) == here), f"docs/{here}")

    def there(target: str) -> str | None:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path.startswith("docs/") or path in _outside():
            return posixpath.relpath(_page(path), posixpath.dirname(here) or ".")
        return None if (ROOT / path).exists() else target  # MkDocs refuses what is nowhere

    def linked(link: re.Match[str]) -> str:
        picture, text, target, anchor = link.groups(default="")
        return f"{picture}[{text}]({at}{anchor})" if (at := there(target)) else text

    shown = SOURCE.sub(lambda tag: tag[1] + (there(tag[2]) or tag[2]), markdown)
    return LINK.sub(linked, shown)


def _outside() -> list[str]:
    return [path.relative_to(ROOT).as_posix() for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern))]


def _page(path: str) -> str:
    return "index.md" if path == HOME else path.removeprefix("docs/")
