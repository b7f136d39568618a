"""The endpoint over HTTP, as `osdface serve up` builds it: one application for all these tests."""

import asyncio
import contextlib
import io
import logging
import socket
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from ray import serve
from ray.exceptions import RayError

from osdface import bundle, faces
from osdface.errors import UserError
from osdface.imagefile import read_image
from pipelines import registry
from pipelines.serve import replica
from pipelines.serve.app import Endpoint, Limits, Problem
from pipelines.serve.build import build, describe
from pipelines.serve.replica import Replica

LIMITS = Limits(bytes=2**21, pixels=1_500_000, whole_pixels=128 * 128)


class Recording(Replica):
    """The replica, noting beside its bundle how many pictures each batch has."""

    def answers(self, tasks):
        with (self.restorer.path.parent / "batches").open("a") as file:
            file.write(f"{len(tasks)}\n")
        return super().answers(tasks)


@pytest.fixture(scope="module")
def endpoint(bundle_folder, ray_session):
    """A client of the running application."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours = replica.deployment
    options = {"max_ongoing_requests": ours.max_ongoing_requests, "ray_actor_options": ours.ray_actor_options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replica, "deployment", serve.deployment(**options)(Recording))
        application, _ = build(str(bundle_folder), LIMITS)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    serve.run(application, name="osdface", route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client
    serve.shutdown()


@pytest.fixture(scope="module")
def t1() -> np.ndarray:
    """A photograph with six faces."""
    return faces.photographs()["t1"]


def picture(seed=0, height=48, width=64) -> np.ndarray:
    """Noise of one colour a picture: no face."""
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3), np.uint8)
    return noise + np.uint8(seed * 20)


def encoded(image, format="PNG", **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, format, **options)
    return data.getvalue()


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


def assert_problem(answer, status, words=""):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail"}
    assert body["status"] == status
    assert words in body["detail"]


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
        "bundle_digest": digest, "preset": "tiny",
    }  # fmt: skip
    assert answer.headers["x-model-version"] == digest
    assert (answer.headers["x-run-id"], answer.headers["x-dataset-digest"]) == ("unknown", "unknown")
    assert endpoint.get("/healthz").json() == {"status": "ok"}


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
    assert answer.headers["x-model-version"]
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
        ("POST", "/v1/restore?format=tiff", 422, "query.format: Input should be 'png' or 'jpeg'"),
        ("GET", "/v1/restore", 405, "Method Not Allowed"),
        ("DELETE", "/v1/model", 405, "Method Not Allowed"),
        ("GET", "/", 404, "Not Found"),
        ("POST", "/v2/restore", 404, "Not Found"),
        ("GET", "/docs", 404, "Not Found"),
    ],
)
def test_what_is_not_offered_is_a_problem_document(endpoint, method, url, status, words):
    content = encoded(picture()) if method == "POST" else None
    assert_problem(endpoint.request(method, url, content=content), status, words)


def test_at_the_same_time_is_in_batches_and_each_gets_its_own_picture_back(endpoint, t1, bundle_folder):
    bodies = [encoded(t1[:, :640])] * 2 + [b"no picture"] + [encoded(picture(i, 40 + 4 * i)) for i in range(9)]
    modes = ["auto", "aligned", "whole"]

    def ask(i):
        return endpoint.post("/v1/restore", content=bodies[i], params={"faces": modes[i % 3]})

    alone = [ask(i) for i in range(len(bodies))]
    note = bundle_folder.parent / "batches"
    assert set(note.read_text().split()) == {"1"}
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(ask, range(len(bodies))))
    assert max(map(int, note.read_text().split())) > 1
    for one, other in zip(alone, together, strict=True):
        assert one.status_code == other.status_code
        assert one.headers.get("x-faces") == other.headers.get("x-faces")
        if one.status_code == 200:  # a batch of another size may round a pixel otherwise
            difference = read_image(one.content).astype(int) - read_image(other.content)
            assert np.abs(difference).max() <= 1


def test_a_body_without_end_is_cut_off_and_the_endpoint_lives(endpoint):
    def endless():
        for _ in range(512):
            yield b"x" * 2**16

    with contextlib.suppress(httpx.WriteError):  # closed on us while we were still sending
        assert_problem(endpoint.post("/v1/restore", content=endless()), 413, "more than")
    assert endpoint.get("/healthz").status_code == 200


def test_a_replica_that_fails_is_503_and_worth_trying_again(caplog):
    class Failing:
        class restore:  # noqa: N801
            @staticmethod
            async def remote(_):
                raise RayError("the actor died")

    model = dict.fromkeys(("model", "version", "run_id", "dataset_digest", "bundle_digest", "preset"), "x")
    endpoint = Endpoint(Failing, model, LIMITS.model_dump())
    with caplog.at_level(logging.CRITICAL, "ray.serve"), pytest.raises(Problem) as caught:
        asyncio.run(endpoint._answer(encoded(picture()), "auto", "png"))
    answer = caught.value.response()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert b"actor" not in answer.body


def test_what_is_told_of_a_registered_version(mlflow_home, with_provenance):
    folder = with_provenance(runs={"osd": "a" * 32, "vre": "b" * 32}, dataset_digest="d" * 64)
    registry.promote(registry.register(folder).version)
    served, model = describe("champion")
    assert served == str(mlflow_home / "cache" / "models" / bundle.digest(folder))
    assert (model.model, model.version) == ("models:/osdface/1", "1")
    assert (model.run_id, model.dataset_digest) == ("a" * 32, "d" * 64)


def test_what_cannot_be_served_is_said_before_anything_starts(mlflow_home, with_provenance, bundle_folder, tmp_path):
    for ref, words in (
        ("models:/osdface@champion", "no version of 'osdface' has the alias 'champion'"),
        (str(tmp_path), "not a model bundle"),
        (str(tmp_path / "nowhere"), "not found: give a bundle folder, models:/NAME/VERSION"),
    ):
        with pytest.raises(UserError, match=words):
            describe(ref)
    folder = with_provenance()
    config = bundle.read_config(folder)
    outside = config.model_copy(update={"base": config.base.model_copy(update={"path": str(tmp_path / "gone")})})
    (folder / "config.json").write_text(outside.model_dump_json())
    with pytest.raises(UserError, match="its base model .* is not at .*gone; put it back there"):
        describe(str(folder))
