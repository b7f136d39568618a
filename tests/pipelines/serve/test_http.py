"""The endpoint over HTTP, as `osdface serve up` builds it."""

import base64
import contextlib
import io
import json
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from osdface import bundle, faces
from osdface.imagefile import read_image
from tests.serving import LIMITS, assert_problem, encoded, picture, wait_for_room


def png_header(width, height) -> bytes:
    """A PNG that announces so many pixels and has none."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"")


def animated(format) -> bytes:
    data = io.BytesIO()
    frames = [Image.fromarray(picture(i)) for i in range(3)]
    frames[0].save(data, format, save_all=True, append_images=frames[1:])
    return data.getvalue()


def test_a_picture_without_a_face_comes_back_bit_for_bit(endpoint):
    answer = endpoint.post("/v1/restore", content=encoded(picture()))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-faces"] == "0"
    np.testing.assert_array_equal(read_image(answer.content), picture())


def test_every_face_of_a_photograph_is_restored_and_the_rest_stays(endpoint, t1):
    answer = endpoint.post("/v1/restore", content=encoded(t1))
    assert answer.headers["x-faces"] == "6"
    restored = read_image(answer.content)
    assert restored.shape == t1.shape
    changed = (restored != t1).any(-1)
    for face in faces.DlibFrontal().detect(t1):
        left, top, right, bottom = face.box
        assert changed[top:bottom, left:right].mean() > 0.9
    np.testing.assert_array_equal(restored[:40], t1[:40])  # above all heads


def test_headers_and_model_say_where_the_answer_comes_from(endpoint, bundle_folder):
    answer = endpoint.post("/v1/restore", content=encoded(picture()))
    told = endpoint.get("/v1/model").json()
    digest = bundle.digest(bundle_folder)
    assert told == {
        "model": "model", "version": digest, "run_id": "unknown", "dataset_digest": "unknown",
        "bundle_digest": digest, "preset": "tiny", "limits": LIMITS.model_dump(),
    }  # fmt: skip
    assert answer.headers["x-model-version"] == digest
    assert (answer.headers["x-run-id"], answer.headers["x-dataset-digest"]) == ("unknown", "unknown")
    assert endpoint.get("/healthz").json() == {"status": "ok"}
    assert endpoint.get("/readyz").json() == {"status": "ready", "version": digest, "notice": ""}


def test_multipart_and_raw_body_give_the_same(endpoint):
    image = encoded(picture())
    raw = endpoint.post("/v1/restore", content=image)
    for name in ("image", "file"):
        form = endpoint.post("/v1/restore", files={name: ("face.png", image, "image/png")}, data={"note": "x"})
        assert form.status_code == 200
        assert form.content == raw.content


def test_png_and_jpeg_answers(endpoint, t1):
    crop = t1[:200, :300]
    png = endpoint.post("/v1/restore", content=encoded(crop), params={"format": "png"})
    jpeg = endpoint.post("/v1/restore", content=encoded(crop), params={"format": "jpeg"})
    assert (png.headers["content-type"], jpeg.headers["content-type"]) == ("image/png", "image/jpeg")
    assert Image.open(io.BytesIO(png.content)).format == "PNG"
    assert Image.open(io.BytesIO(jpeg.content)).format == "JPEG"
    difference = read_image(png.content).astype(int) - read_image(jpeg.content)
    assert 0 < np.abs(difference).mean() < 3


def test_the_three_ways_to_take_a_picture(endpoint):
    image = encoded(picture(1, 80, 64))
    auto, whole, aligned = (
        endpoint.post("/v1/restore", content=image, params={"faces": mode}) for mode in ("auto", "whole", "aligned")
    )
    assert [answer.headers["x-faces"] for answer in (auto, whole, aligned)] == ["0", "0", "1"]
    sizes = {read_image(answer.content).shape for answer in (auto, whole, aligned)}
    assert sizes == {(80, 64, 3)}
    assert len({answer.content for answer in (auto, whole, aligned)}) == 3


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_formats_that_are_read(endpoint, format):
    image = encoded(picture(), format)
    answer = endpoint.post("/v1/restore", content=image)
    np.testing.assert_array_equal(read_image(answer.content), read_image(image))


def test_orientation_transparency_and_16_bits(endpoint):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = endpoint.post("/v1/restore", content=encoded(picture(), "JPEG", exif=exif))
    assert read_image(turned.content).shape == (64, 48, 3)
    clear = np.zeros((48, 64, 4), np.uint8)
    white = endpoint.post("/v1/restore", content=encoded(clear))
    assert (read_image(white.content) == 255).all()
    deep = np.full((48, 64), 32768, np.uint16)
    grey = endpoint.post("/v1/restore", content=encoded(deep))
    assert (read_image(grey.content) == 128).all()


BAD = {
    "nothing": (b"", 400, "is empty"),
    "text": (b"hello, this is not a picture", 415, "not a picture"),
    "json": (b'{"image": "data:base64"}', 415, "not a picture"),
    "pdf": (b"%PDF-1.4\n%%EOF", 415, "not a picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", 415, "not a picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not a picture"),
    "truncated png": (encoded(picture())[:2000], 422, "is damaged"),
    "truncated jpeg": (encoded(picture(), "JPEG")[:700], 422, "is damaged"),
    "header only": (png_header(100, 100), 422, "is damaged"),
    "too many pixels": (png_header(50_000, 50_000), 413, "pixels"),
    "pixels just above": (png_header(1001, 1500), 413, "1001x1500 is more than 1500000 pixels"),
    "no pixels": (png_header(0, 0), None, ""),
    "bytes": (b"x" * (LIMITS.bytes + 1), 413, f"more than {LIMITS.bytes} bytes"),
    "animated gif": (animated("GIF"), 415, "is animated"),
    "animated webp": (animated("WEBP"), 415, "is animated"),
    "animated png": (animated("PNG"), 415, "is animated"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_good_picture_is_a_problem_document(endpoint, name):
    data, status, words = BAD[name]
    answer = endpoint.post("/v1/restore", content=data)
    assert_problem(answer, status or answer.status_code, words)
    assert 400 <= answer.status_code < 500
    assert "x-model-version" in answer.headers or name in ("nothing", "bytes")
    form = endpoint.post("/v1/restore", files={"image": ("a", data)})
    assert_problem(form, answer.status_code, words)


def test_a_picture_damaged_anywhere_is_never_a_server_error(endpoint):
    """One byte in forty of small files of every format turned over: some still are pictures, none is a 5xx."""
    draw = np.random.default_rng(0)
    bodies = []
    for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = np.frombuffer(encoded(picture(), format), np.uint8)
        for start in (0, 12, 60):
            harmed = whole.copy()
            at = start + draw.choice(len(whole) - start, len(whole) // 40, replace=False)
            harmed[at] ^= draw.integers(1, 256, len(at), np.uint8)
            bodies.append(harmed.tobytes())
    answers = [endpoint.post("/v1/restore", content=body) for body in bodies]
    for answer in answers:
        assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    assert sum(answer.status_code != 200 for answer in answers) > len(answers) / 2


def test_a_whole_picture_has_a_limit_of_its_own(endpoint):
    image = encoded(picture(0, 128, 129))
    assert endpoint.post("/v1/restore", content=image).status_code == 200
    refused = endpoint.post("/v1/restore", content=image, params={"faces": "whole"})
    assert_problem(refused, 413, "129x128 is more than 16384 pixels")


@pytest.mark.parametrize(
    ("type", "body", "words"),
    [
        ("multipart/form-data", b"abc", "cannot be read"),
        ("multipart/form-data; boundary=x", b"abc", "cannot be read"),
        ("multipart/form-data; boundary=x", b"--x\r\nno header\r\n\r\nabc\r\n--x--\r\n", "cannot be read"),
        ("multipart/form-data; boundary=x", b"", "no file named 'image'"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\ntext\r\n--x--\r\n',
            "no file named 'image'",
        ),
    ],
)
def test_a_malformed_form_is_a_problem_document(endpoint, type, body, words):
    answer = endpoint.post("/v1/restore", content=body, headers={"content-type": type})
    assert_problem(answer, 400, words)


def test_a_form_of_many_files_is_refused(endpoint):
    files = [("image", (str(i), b"x")) for i in range(9)]
    assert_problem(endpoint.post("/v1/restore", files=files), 400, "Too many files")


@pytest.mark.parametrize(
    ("method", "url", "status", "words"),
    [
        ("POST", "/v1/restore?faces=everyone", 422, "query.faces: Input should be 'auto', 'whole' or 'aligned'"),
        ("POST", "/v1/restore?format=tiff", 422, "query.format: Input should be 'png', 'jpeg' or 'webp'"),
        ("GET", "/v1/restore", 405, "Method Not Allowed"),
        ("DELETE", "/v1/model", 405, "Method Not Allowed"),
        ("GET", "/page/../settings.py", 404, "Not Found"),
        ("GET", "/page/%2e%2e/settings.py", 404, "Not Found"),
        ("GET", "/v1/jobs/nothing", 404, "no such job"),
        ("GET", "/v1/jobs/nothing/result", 404, "no such job"),
        ("POST", "/v1/restore?strength=2", 422, "query.strength: Input should be less than or equal to 1"),
        ("POST", "/v1/restore?strength=nan", 422, "query.strength"),
        ("POST", "/v1/restore?only=first", 422, "query.only"),
        ("POST", "/v1/restore?only=7", 422, "has 0 faces to restore, and none is number 7"),
        ("POST", "/v1/restore:batch", 415, "send a multipart form"),
        ("POST", "/v2/restore", 404, "Not Found"),
        ("GET", "/docs", 404, "Not Found"),
    ],
)
def test_what_is_not_offered_is_a_problem_document(endpoint, method, url, status, words):
    content = encoded(picture()) if method == "POST" else None
    assert_problem(endpoint.request(method, url, content=content), status, words)


def test_each_of_many_at_the_same_time_gets_its_own_picture_back(endpoint, t1):
    bodies = [encoded(t1[:, :640])] * 2 + [b"no picture"] + [encoded(picture(i, 40 + 4 * i)) for i in range(9)]
    modes = ["auto", "aligned", "whole"]

    def ask(i):
        return endpoint.post("/v1/restore", content=bodies[i], params={"faces": modes[i % 3]})

    alone = [ask(i) for i in range(len(bodies))]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(ask, range(len(bodies))))
    for one, other in zip(alone, together, strict=True):
        assert one.status_code == other.status_code
        assert one.headers.get("x-faces") == other.headers.get("x-faces")
        if one.status_code == 200:  # a batch of another size may round a pixel otherwise
            difference = read_image(one.content).astype(int) - read_image(other.content)
            assert np.abs(difference).max() <= 1


def test_what_the_faces_of_an_answer_are(endpoint, t1):
    every = endpoint.post("/v1/restore", content=encoded(t1))
    boxes, identity = (json.loads(every.headers[name]) for name in ("x-face-boxes", "x-identity"))
    assert [tuple(box) for box in boxes] == [face.box for face in faces.DlibFrontal().detect(t1)]
    assert len(identity) == 6
    assert all(0 < value <= 1 for value in identity)
    some = endpoint.post("/v1/restore", content=encoded(t1), params={"only": "4,0", "identity": "false"})
    assert json.loads(some.headers["x-face-boxes"]) == [boxes[0], boxes[4]]
    assert json.loads(some.headers["x-identity"]) == [None, None]
    changed = (read_image(some.content) != t1).any(-1)
    for number, (left, top, right, bottom) in enumerate(boxes):
        middle = changed[top + 20 : bottom - 20, left + 20 : right - 20]
        assert middle.mean() > 0.9 if number in (0, 4) else not middle.any()


def test_strength_is_the_part_of_the_change_that_is_made(endpoint, t1):
    crop = t1[:200, :300]
    none, half, all_ = (
        read_image(endpoint.post("/v1/restore", content=encoded(crop), params={"strength": s}).content).astype(float)
        for s in (0, 0.5, 1)
    )
    np.testing.assert_array_equal(none, crop)
    assert np.abs(half - (none + all_) / 2).max() <= 1


def test_before_and_after_side_by_side(endpoint, t1):
    crop = t1[:200, :300]
    plain = endpoint.post("/v1/restore", content=encoded(crop))
    both = endpoint.post("/v1/restore", content=encoded(crop), params={"compare": "true"})
    np.testing.assert_array_equal(read_image(both.content), np.hstack([crop, read_image(plain.content)]))


@pytest.mark.parametrize(
    ("accept", "format", "kind"),
    [
        ("*/*", None, "png"),
        ("image/webp", None, "webp"),
        ("text/html, image/*;q=0.8", None, "png"),
        ("image/png;q=0.1, image/jpeg;q=0.9", None, "jpeg"),
        ("image/jpeg", "webp", "webp"),
    ],
)
def test_the_format_is_what_was_asked_for_and_else_what_is_preferred(endpoint, accept, format, kind):
    query = {"format": format} if format else {}
    answer = endpoint.post("/v1/restore", content=encoded(picture()), params=query, headers={"accept": accept})
    assert answer.headers["content-type"] == f"image/{kind}"
    assert Image.open(io.BytesIO(answer.content)).format == kind.upper()


def test_an_answer_of_no_format_that_is_accepted_is_refused(endpoint):
    headers = {"accept": "text/html"}
    assert_problem(endpoint.post("/v1/restore", content=encoded(picture()), headers=headers), 406, "image/png")


def test_a_request_keeps_its_own_id_and_gets_one_otherwise(endpoint):
    mine = endpoint.post("/v1/restore", content=encoded(picture()), headers={"x-request-id": "mine-1"})
    assert mine.headers["x-request-id"] == "mine-1"
    ids = {endpoint.get("/v1/model").headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2


def test_several_pictures_at_once_each_with_its_own_fate(endpoint):
    bodies = [encoded(picture(1)), b"no picture", encoded(picture(2))]
    answer = endpoint.post("/v1/restore:batch", files=[("image", ("x", body)) for body in bodies]).json()
    first, damaged, last = answer["pictures"]
    for item, seed in ((first, 1), (last, 2)):
        assert (item["status"], item["headers"]["x-faces"]) == (200, "0")
        np.testing.assert_array_equal(read_image(base64.b64decode(item["picture"])), picture(seed))
    assert (damaged["status"], damaged["problem"]["status"]) == (415, 415)
    many = endpoint.post("/v1/restore:batch", files=[("image", ("x", bodies[0]))] * 5)
    assert_problem(many, 400, "Too many files")


def test_a_job_is_begun_now_and_fetched_later(endpoint):
    begun = endpoint.post("/v1/jobs", content=encoded(picture()), params={"format": "webp"})
    assert begun.status_code == 202
    where = begun.headers["location"]
    assert where == f"/v1/jobs/{begun.json()['id']}"
    deadline = time.monotonic() + 30
    while (told := endpoint.get(where).json())["status"] != "done":
        assert told["status"] in ("queued", "running")
        assert time.monotonic() < deadline
        time.sleep(0.05)
    result = endpoint.get(f"{where}/result")
    assert (result.status_code, result.headers["content-type"], result.headers["x-faces"]) == (200, "image/webp", "0")
    assert endpoint.delete(where).status_code == 204
    assert_problem(endpoint.get(where), 404)


def test_a_job_that_fails_says_why_and_there_are_only_so_many(endpoint):
    wait_for_room(endpoint)
    begun = [endpoint.post("/v1/jobs", content=b"no picture") for _ in range(LIMITS.jobs + 1)]
    assert [answer.status_code for answer in begun] == [202] * LIMITS.jobs + [429]
    assert begun[-1].headers["retry-after"]
    where = begun[0].headers["location"]
    deadline = time.monotonic() + 30
    while (told := endpoint.get(where).json())["status"] != "failed" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (told["status"], told["problem"]["status"]) == ("failed", 415)
    assert_problem(endpoint.get(f"{where}/result"), 415, "not a picture")
    for answer in begun[:-1]:
        endpoint.delete(answer.headers["location"])


def test_pages_elsewhere_may_ask_only_where_they_are_named(endpoint):
    asked = {"access-control-request-method": "POST"}
    named = endpoint.options("/v1/restore", headers=asked | {"origin": "https://elsewhere.example"})
    assert named.headers["access-control-allow-origin"] == "https://elsewhere.example"
    stranger = endpoint.options("/v1/restore", headers=asked | {"origin": "https://stranger.example"})
    assert "access-control-allow-origin" not in stranger.headers


def test_more_faces_than_a_picture_may_have(endpoint, t1):
    small = np.asarray(Image.fromarray(t1).resize((960, 664)))
    answer = endpoint.post("/v1/restore", content=encoded(np.vstack([small, small]), "JPEG", quality=90))
    assert_problem(answer, 422, "faces, more than 8")


def test_a_slow_sender_is_told_so_and_holds_nobody_up(endpoint):
    def slow():
        yield encoded(picture())[:100]
        time.sleep(LIMITS.body_seconds + 1)
        yield b"x"

    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(endpoint.post, "/v1/restore", content=slow())
        assert endpoint.post("/v1/restore", content=encoded(picture())).status_code == 200
        assert_problem(late.result(), 408, "did not arrive within 2 s")


def test_prometheus_finds_ray_serves_metrics_and_ours(endpoint):
    endpoint.post("/v1/restore", content=encoded(picture()))
    wanted = {
        "ray_serve_num_http_requests_total", "ray_serve_deployment_processing_latency_ms", "ray_osdface_answers_total",
        "ray_osdface_part_seconds",
    }  # fmt: skip
    deadline = time.monotonic() + 30
    while True:  # Ray renews its page every few seconds
        text = endpoint.get("/metrics").text
        found = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
        if wanted <= found or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert wanted <= found
    assert all(name.startswith(("ray_serve_", "ray_osdface_")) for name in found)


def test_a_body_without_end_is_cut_off_and_the_endpoint_lives(endpoint):
    def endless():
        for _ in range(512):
            yield b"x" * 2**16

    with contextlib.suppress(httpx.WriteError):  # closed on us while we were still sending
        assert_problem(endpoint.post("/v1/restore", content=endless()), 413, "more than")
    assert endpoint.get("/healthz").status_code == 200
