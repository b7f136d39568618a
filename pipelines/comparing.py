"""Before and after: a picture of both for each, and one page with a slider, which needs nothing beside itself."""

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from osdface.imagefile import ImageError, read_image
from osdface.picturefile import MAX_PIXELS
from pipelines import photographs, report

SHOWN = 100  # pictures on the page, which holds them all
SIDE = 1024  # pixels, at most, of a picture on the page
TITLES = ("before", "after")
PAGE = """<!doctype html>
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Before and after</title>
<style>
body {{ font: 16px sans-serif; margin: 2em auto; max-width: 1024px; padding: 0 1em }}
figure {{ margin: 0 0 3em }}
.both {{ position: relative; display: inline-block; --at: 50% }}
.both img {{ display: block; max-width: 100% }}
.both .before {{ position: absolute; inset: 0; width: 100%; height: 100%;
  clip-path: inset(0 calc(100% - var(--at)) 0 0) }}
.both::after {{ content: ""; position: absolute; top: 0; bottom: 0; left: var(--at); border-left: 2px solid white }}
.both input {{ position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize }}
</style>
<h1>Before and after</h1>
<p>{told}</p>
{figures}
"""
FIGURE = """<figure><div class="both"><img alt="after" src="{after}"><img alt="before" class="before" src="{before}">
<input type="range" min="0" max="100" value="50" aria-label="before and after"
 oninput="this.parentNode.style.setProperty('--at', this.value + '%')"></div>
<figcaption>{name}</figcaption></figure>
"""


def read_both(before: bytes, after: Path) -> tuple[np.ndarray, np.ndarray]:
    """Both pictures as uint8 RGB, the first brought to the size of the second. Raises ImageError for too large ones."""
    first = read_image(before, max_pixels=MAX_PIXELS)
    second = read_image(after.read_bytes(), str(after), MAX_PIXELS)
    if first.shape != second.shape:
        first = cv2.resize(first, second.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return first, second


def write(pictures: Iterable[tuple[str, bytes, Path]], folder: Path) -> Path:
    """A PNG of both for each of (name, the given file's bytes, the restored file), and the page; returns its path.

    The page shows the first hundred, and names those that are too large. Raises UserError where something cannot be
    written.
    """
    figures: list[str] = []
    left, count = [], 0
    for count, (name, before, after) in enumerate(pictures, 1):
        try:
            both = read_both(before, after)
        except ImageError as error:
            left.append(f"{name} ({error.reason})")
            continue
        report.save_png(folder / f"{name}.png", report.side_by_side(*both, TITLES))
        if count - len(left) <= SHOWN:
            figures.append(FIGURE.format(name=html.escape(name), before=_embedded(both[0]), after=_embedded(both[1])))
    told = f"{count} pictures" + (f", the first {SHOWN} shown" if count - len(left) > SHOWN else "")
    if left:
        told += f"; not compared: {html.escape(', '.join(left))}"
    page = folder / "index.html"
    photographs.write(page, PAGE.format(told=told, figures="".join(figures)).encode())
    return page


def _embedded(image: np.ndarray) -> str:
    """A picture as a URL that holds it."""
    small = Image.fromarray(image)
    small.thumbnail((SIDE, SIDE))
    coded = io.BytesIO()
    small.save(coded, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(coded.getvalue()).decode()
