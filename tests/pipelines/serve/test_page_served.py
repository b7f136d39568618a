"""The page as the endpoint itself serves it, with a real model behind it; `tests/page` has its details."""

import io
import json
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from tests.page.browsing import NEEDED, chromium, opened
from tests.serving import wait_for_room

pytestmark = NEEDED


def test_a_photograph_goes_all_the_way(endpoint, served, t1):
    data = io.BytesIO()
    Image.fromarray(t1).save(data, "JPEG", quality=90)
    with chromium() as browser, opened(browser, str(endpoint.base_url).rstrip("/")) as page:
        expect(page.locator("#model-version")).to_have_attribute("title", served.serving())
        page.set_input_files("#file", {"name": "party.jpg", "mimeType": "image/jpeg", "buffer": data.getvalue()})
        page.locator("#work[data-has=both]").wait_for(timeout=60_000)
        expect(page.locator("#faces li")).to_have_count(6)
        expect(page.locator("#faces")).to_contain_text("identity 0.")
        for face in page.locator("#faces input").all()[1:]:
            face.uncheck()
        with page.expect_response("**/v1/restore?*") as response:
            page.click("#again")
        expect(page.locator("#busy")).to_be_hidden()
        with page.expect_download() as download:
            page.click("#download")
        assert response.value.headers["x-faces"] == "1"
        assert json.loads(response.value.headers["x-face-boxes"]) == [face_box(page, 0)]
        assert Path(download.value.path()).read_bytes() == response.value.body()


def face_box(page, number: int) -> list[int]:
    """A face's box on the page, in pixels of the photograph."""
    return page.evaluate(
        """number => { const all = document.querySelector("#stage").getBoundingClientRect();
            const box = document.querySelectorAll(".box")[number].getBoundingClientRect();
            const scale = document.querySelector("#after").naturalWidth / all.width;
            const sides = [box.left - all.left, box.top - all.top, box.right - all.left, box.bottom - all.top];
            return sides.map(side => Math.round(side * scale)); }""",
        number,
    )


def test_a_job_gives_the_same(endpoint, t1):
    wait_for_room(endpoint)
    data = io.BytesIO()
    large = Image.fromarray(t1).resize((t1.shape[1] // 2, t1.shape[0] // 2))
    large.save(data, "PNG")
    with chromium() as browser, opened(browser, str(endpoint.base_url).rstrip("/")) as page:
        page.route("**/page/api.js", lambda route: _with_small_jobs(route))
        page.reload()
        with page.expect_response("**/result") as response:
            page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": data.getvalue()})
        assert response.value.status == 200
        page.locator("#work[data-has=both]").wait_for()
        assert page.locator("#faces li").count() > 0


def _with_small_jobs(route):
    """The page's own program, but every picture goes as a job."""
    answer = route.fetch()
    route.fulfill(response=answer, body=answer.text().replace("JOB_PIXELS = 4e6", "JOB_PIXELS = 1"))
