"""The README's pictures of the page: python -m tests.page.screenshots URL PHOTOGRAPH OUT, with an endpoint at URL."""

import sys
from pathlib import Path

from tests.page.browsing import chromium, opened

VIEWS = {"page": (1280, 1120, 1.0, "light"), "page_phone": (390, 844, 1.5, "dark")}


def main(url: str, photograph: Path, out: Path) -> None:
    """Write one picture for each of VIEWS."""
    with chromium() as browser:
        for name, (width, height, scale, scheme) in VIEWS.items():
            view = {"width": width, "height": height}
            with opened(browser, url, viewport=view, device_scale_factor=scale, color_scheme=scheme) as page:
                page.set_input_files("#file", photograph)
                page.wait_for_selector("#work[data-has=both]")
                page.wait_for_selector("#busy", state="hidden")
                page.screenshot(path=out / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
