"""Headless Chromium, and a page in it that notes what no page of ours may do."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
NEEDED = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium on PATH: apt-get install chromium")
TOLD = "addEventListener('securitypolicyviolation', e => console.log('policy:', e.violatedDirective, e.blockedURI))"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; as root, it must do without its sandbox."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """The page at `url`. Asserts that it asks nobody else, violates no policy and ends in no error of a script."""
    view = {"width": 1200, "height": 900}
    context = browser.new_context(base_url=url, **{"viewport": view, "reduced_motion": "reduce", **options})
    context.set_default_timeout(60_000)  # a machine may do much else
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
    page.on("request", lambda request: request.url.startswith((url, f"blob:{url}")) or faults.append(request.url))
    page.on("console", lambda told: told.text.startswith("policy:") and faults.append(told.text))
    page.add_init_script(TOLD)
    page.goto("/")
    yield page
    context.close()
    assert not faults, faults
