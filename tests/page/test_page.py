"""The web page in headless Chromium, against an endpoint that answers as each test tells it."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.page.browsing import NEEDED, chromium, opened
from tests.page.standin import FACES, Standin, running

WIDTHS = {"phone": (360, 740), "tablet": (768, 1024), "desktop": (1440, 900)}
RED, BLUE = (250, 0, 0), (0, 0, 250)
pytestmark = NEEDED


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def endpoint():
    with running(Standin()) as standin:
        yield standin


@pytest.fixture
def page(browser, endpoint):
    with opened(browser, endpoint.url) as page:
        yield page


def picture(width=300, height=200, color=RED, format="PNG", **options) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), color).save(data, format, **options)
    return data.getvalue()


def choose(page, data=None, name="party.png", kind="image/png"):
    page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": picture() if data is None else data})


def restored(page, **options):
    choose(page, **options)
    expect(page.locator("#work")).to_have_attribute("data-has", "both")
    expect(page.locator("#busy")).to_be_hidden()


def color(page, x: float, y: float = 0.8):
    """What is seen of the stage at a part of its width and height: "red" is the picture before, "blue" after."""
    shot = Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB")
    seen = shot.getpixel((round(x * (shot.width - 1)), round(y * (shot.height - 1))))
    return {RED: "red", BLUE: "blue"}.get(seen, seen)


def test_a_chosen_photograph_is_restored_shown_and_downloaded(page, endpoint):
    restored(page)
    assert endpoint.asked == [("/v1/restore", {"faces": "auto", "strength": "1", "format": "png"})]
    assert (color(page, 0.1), color(page, 0.9)) == ("red", "blue")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "party-restored.png"
    assert Image.open(Path(download.value.path())).getpixel((0, 0)) == BLUE


def test_a_photograph_is_pasted(browser, page, endpoint):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async bytes => navigator.clipboard.write(
            [new ClipboardItem({"image/png": new Blob([new Uint8Array(bytes)], {type: "image/png"})})])""",
        list(picture()),
    )
    page.keyboard.press("Control+V")
    expect(page.locator("#work")).to_have_attribute("data-has", "both")
    assert (color(page, 0.1), color(page, 0.9)) == ("red", "blue")


def drop(page, files):
    transfer = page.evaluate_handle(
        """files => { const all = new DataTransfer();
            for (const [name, bytes] of files)
                all.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
            return all }""",
        [(name, list(data)) for name, data in files],
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": transfer})
    assert "dropping" in page.get_attribute("body", "class")
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    assert "dropping" not in page.get_attribute("body", "class")


def test_a_dropped_photograph_replaces_the_one_that_is_there(page, endpoint):
    restored(page)
    drop(page, [("one.png", picture(100, 120)), ("two.png", picture())])
    expect(page.locator("#download")).to_have_attribute("download", "one-restored.png")
    expect(page.locator("#note")).to_have_text("Only the first of the pictures was taken.")
    assert page.eval_on_selector("#before", "image => image.naturalHeight") == 120


def test_the_slider_follows_the_mouse(page):
    restored(page)
    stage = page.locator("#stage").bounding_box()
    middle = stage["y"] + 0.6 * stage["height"]
    page.mouse.move(stage["x"] + 0.5 * stage["width"], middle)
    page.mouse.down()
    page.mouse.move(stage["x"] + 0.9 * stage["width"], middle, steps=3)
    assert (color(page, 0.8), color(page, 0.97)) == ("red", "blue")
    page.mouse.move(stage["x"] - 200, middle, steps=3)
    page.mouse.up()
    page.mouse.move(stage["x"] + 0.7 * stage["width"], middle)  # let go: it stays
    assert color(page, 0.03, 0.6) == "blue"


def test_the_slider_follows_the_keys(page):
    restored(page)
    page.focus("#split")
    page.keyboard.press("Home")
    assert color(page, 0.1) == "blue"
    page.keyboard.press("End")
    assert color(page, 0.9, 0.3) == "red"
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#split", "aria-valuetext") == "90 % before"
    assert (color(page, 0.85, 0.3), color(page, 0.97, 0.3)) == ("red", "blue")


def test_each_face_has_its_box_and_identity(page):
    restored(page)
    rows = page.locator("#faces li")
    texts = [re.sub(r"\s+", " ", text).strip() for text in rows.all_text_contents()]
    assert texts == ["Face 1identity 0.97", "Face 2identity 0.84: compare it closely", "Face 3identity not measured"]
    stage = page.locator("#stage").bounding_box()
    for frame, ((left, top, right, bottom), _) in zip(page.locator(".box").all(), FACES, strict=True):
        box, scale = frame.bounding_box(), stage["width"] / 300
        assert box["x"] - stage["x"] == pytest.approx(left * scale, abs=1)
        assert box["y"] - stage["y"] == pytest.approx(top * scale, abs=1)
        assert (box["width"], box["height"]) == pytest.approx(((right - left) * scale, (bottom - top) * scale), abs=1)
    thumb = page.locator("#faces canvas").first.screenshot()
    image = Image.open(io.BytesIO(thumb)).convert("RGB")
    assert [image.getpixel((round(x * image.width), image.height // 2)) for x in (0.25, 0.75)] == [RED, BLUE]
    page.uncheck("#show-boxes")
    expect(page.locator(".box").first).to_be_hidden()


def test_chosen_faces_are_restored_again_with_other_wishes(page, endpoint):
    restored(page)
    page.locator("#faces input").nth(1).uncheck()
    page.locator(".box button").nth(0).click()  # the same by the picture
    page.locator("#strength").fill("40")
    expect(page.locator("#strength-shown")).to_have_text("40 %")
    page.select_option("#format", "webp")
    endpoint.faces[2] = (endpoint.faces[2][0], 0.91)
    page.click("#again")
    expect(page.locator("#download")).to_have_attribute("download", "party-restored.webp")
    assert endpoint.asked[1:] == [("/v1/restore", {"faces": "auto", "strength": "0.4", "format": "webp", "only": "2"})]
    chosen = [box.is_checked() for box in page.locator("#faces input").all()]
    assert chosen == [False, False, True]
    expect(page.locator("#faces li").nth(2)).to_contain_text("identity 0.91")
    page.locator("#faces input").nth(2).uncheck()
    expect(page.locator("#again")).to_be_disabled()
    page.select_option("#mode", "whole")
    page.click("#again")
    expect(page.locator("#people")).to_be_hidden()
    assert endpoint.asked[2] == ("/v1/restore", {"faces": "whole", "strength": "0.4", "format": "webp"})


def test_no_face_is_said(page, endpoint):
    endpoint.faces = []
    restored(page)
    expect(page.locator("#note")).to_contain_text("No face was found")
    expect(page.locator("#people")).to_be_hidden()


def test_the_model_and_its_lineage_are_at_the_foot(page):
    for name, told in (("name", "models:/osdface/7"), ("version", "7"), ("run", "a" * 12), ("dataset", "d" * 12)):
        expect(page.locator(f"#model-{name}")).to_have_text(told)
    assert page.get_attribute("#model-dataset", "title") == "d" * 64


def test_a_large_photograph_goes_as_a_job(page, endpoint):
    large = picture(2400, 1700, format="JPEG")
    restored(page, data=large, name="large.jpg", kind="image/jpeg")
    assert [path for path, _ in endpoint.asked] == ["/v1/jobs"]
    assert endpoint.polls == 2
    endpoint.problem = (422, {}, "the picture: is damaged")
    page.click("#again")
    expect(page.locator("#alert")).to_contain_text("The picture: is damaged.")


@pytest.mark.parametrize(
    ("problem", "words", "retry"),
    [
        ((413, {}, "the picture: 9000x9000 is too many"), "too large. The picture: 9000x9000 is too many.", False),
        ((415, {}, "the picture: is no picture"), "This is no picture that can be restored.", False),
        ((422, {}, "<b>the picture</b>: is damaged"), "<b>the picture</b>: is damaged", False),
        ((503, {}, "the model could not answer"), "The server is busy. The model could not answer.", True),
        ((502, {}, b"<html>Bad gateway</html>"), "The server answered 502.", True),
    ],
)
def test_errors_are_said_in_plain_words(page, endpoint, problem, words, retry):
    endpoint.problem = problem
    choose(page)
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.locator("#start")).to_be_visible(visible=not retry)
    expect(page.locator("#retry")).to_be_visible(visible=retry)
    if retry:
        page.click("#retry")
    else:
        choose(page)
    expect(page.locator("#work")).to_have_attribute("data-has", "both")
    expect(page.locator("#alert")).to_be_hidden()


def test_a_busy_server_is_tried_again_when_it_says(page, endpoint):
    endpoint.problem = (429, {"Retry-After": "2"}, "16 requests wait already")
    choose(page)
    expect(page.locator("#retry")).to_be_disabled()
    expect(page.locator("#retry")).to_contain_text("Try again in ")
    page.click("#retry")  # waits until it is enabled
    expect(page.locator("#work")).to_have_attribute("data-has", "both")


def test_a_key_is_asked_for_and_used(page, endpoint):
    endpoint.key = "secret"
    choose(page)
    for key in ("wrong", "secret"):
        expect(page.get_by_role("alert")).to_contain_text("This server wants an API key.")
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Continue").click()
    expect(page.locator("#work")).to_have_attribute("data-has", "both")
    assert len(endpoint.asked) == 3


def test_a_server_that_is_gone_is_said(page):
    page.route("**/v1/restore*", lambda route: route.abort("connectionrefused"))
    choose(page)
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")
    page.unroute("**/v1/restore*")
    page.click("#retry")
    expect(page.locator("#work")).to_have_attribute("data-has", "both")


def test_more_than_the_server_takes_is_not_sent(page, endpoint):
    endpoint.limits = {"bytes": 100}
    page.reload()
    expect(page.locator("#model-version")).to_have_text("7")
    choose(page)
    expect(page.get_by_role("alert")).to_contain_text("This picture is too large.")
    assert not endpoint.asked


def test_a_picture_that_the_browser_cannot_show_is_restored_all_the_same(page):
    choose(page, data=picture(format="TIFF"), name="scan.tiff", kind="image/tiff")
    expect(page.locator("#work")).to_have_attribute("data-has", "after")
    expect(page.locator("#note")).to_contain_text("cannot show the picture that was sent")
    assert color(page, 0.1) == "blue"
    expect(page.locator("#split")).to_be_hidden()


def test_progress_is_shown_and_can_be_cancelled(page, endpoint):
    endpoint.delay = 1.5
    choose(page)
    expect(page.get_by_role("status").filter(has_text="Restoring")).to_be_visible()
    assert color(page, 0.9) == "red"  # the photograph is there at once
    assert not page.evaluate("document.getAnimations().length")  # reduced motion is asked for
    page.click("#cancel")
    expect(page.locator("#start")).to_be_visible()
    expect(page.locator("#alert")).to_be_hidden()
    endpoint.delay = 0
    restored(page)


def test_another_photograph_takes_over_from_one_on_its_way(page, endpoint):
    endpoint.delay = 1
    choose(page, name="first.png")
    expect(page.get_by_role("status").filter(has_text="Restoring")).to_be_visible()
    drop(page, [("second.png", picture())])
    expect(page.locator("#download")).to_have_attribute("download", "second-restored.png")
    expect(page.locator("#work")).to_be_visible()
    expect(page.locator("#busy")).to_be_hidden()


def test_names_of_files_are_only_names(page):
    restored(page, name='../<img src=x onerror="alert(1)">.png')
    assert page.locator("img[src=x]").count() == 0
    with page.expect_download() as download:
        page.click("#download")
    assert "/" not in download.value.suggested_filename


def test_all_of_it_works_by_keyboard(page, endpoint):
    def tab_to(selector):
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches('{selector}')"):
                return
        raise AssertionError(f"Tab does not lead to {selector}")

    with page.expect_file_chooser() as chooser:  # from before: Chromium must know of it when the key arrives
        tab_to("#file")
        page.keyboard.press("Space")
    chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": picture()})
    expect(page.locator("#work")).to_have_attribute("data-has", "both")
    tab_to("#split")
    page.keyboard.press("ArrowRight")
    tab_to("#faces input")
    page.keyboard.press("Space")
    tab_to("#strength")
    page.keyboard.press("ArrowLeft")
    tab_to("#again")
    page.keyboard.press("Enter")
    tab_to("#download")
    assert endpoint.asked[1][1] == {"faces": "auto", "strength": "0.95", "format": "png", "only": "1,2"}


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_at_three_widths(page, width):
    page.set_viewport_size(dict(zip(("width", "height"), WIDTHS[width], strict=True)))
    for there in (lambda: None, lambda: restored(page)):
        there()
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        for target in page.locator("button:visible, .button:visible, select:visible, #faces label:visible").all():
            assert target.bounding_box()["height"] >= 24, target.inner_text()
    stage, wishes = page.locator("#stage").bounding_box(), page.locator("#wishes").bounding_box()
    beside = wishes["x"] >= stage["x"] + stage["width"]
    assert beside == (width == "desktop")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page, endpoint, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    endpoint.problem = (401, {}, "give an API key")
    for there in (lambda: None, lambda: choose(page), lambda: restored(page)):
        there()
        page.wait_for_timeout(100)
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize(
    ("deed", "noticed"),
    [
        (
            "document.head.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))",
            "script-src",
        ),
        ("document.body.setAttribute('style', 'color: red')", "style-src"),
        ("void (new Image().src = 'https://elsewhere.example/a.png')", "img-src"),
        ("fetch('https://elsewhere.example').catch(() => 0)", "connect-src"),
    ],
)
def test_the_policy_holds_and_these_tests_notice(browser, endpoint, deed, noticed):
    def do():
        with opened(browser, endpoint.url) as page:
            page.evaluate(deed)
            page.wait_for_timeout(100)
            assert page.evaluate("window.ran === undefined && document.body.style.color === ''")

    with pytest.raises(AssertionError, match=f"policy: {noticed}"):
        do()
