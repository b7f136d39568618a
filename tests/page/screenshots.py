"""The README's pictures of the page: python -m tests.page.screenshots URL PHOTOGRAPH OUT, with an endpoint at URL."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

VIEWS = {"page": (1280, 1080, 1.0, "light"), "page_phone": (390, 844, 1.5, "dark")}


def main(url: str, photograph: Path, out: Path) -> None:
    """Write one picture for each of VIEWS."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height, scale, scheme) in VIEWS.items():
            page = browser.new_page(
                viewport={"width": width, "height": height}, device_scale_factor=scale, color_scheme=scheme
            )
            page.goto(url)
            page.set_input_files("#file", photograph)
            page.wait_for_selector("#work[data-has=both]")
            page.wait_for_selector("#busy", state="hidden")
            page.screenshot(path=out / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
