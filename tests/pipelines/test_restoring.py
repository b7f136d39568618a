"""`osdface restore`: one picture, here or at an endpoint."""

import http.server
import io
import json
import threading
from typing import ClassVar

import httpx
import numpy as np
import pytest
from PIL import Image

from jobs import console
from jobs.cli import app
from osdface import bundle
from osdface.errors import UserError
from osdface.imagefile import read_image
from pipelines import registry, restoring


def png(image) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def picture(tmp_path):
    """A picture file without a face, and what is in it."""
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    path = tmp_path / "picture.png"
    path.write_bytes(png(image))
    return path, image


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers every POST with `reply`, and keeps what it was sent."""

    reply: ClassVar[tuple] = ()
    got: ClassVar[list] = []

    def do_POST(self):
        self.got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        status, headers, body = self.reply
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A function that makes the server answer so, and gives its URL."""
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=running.serve_forever).start()

    def answering(status, headers, body):
        Answering.reply, Answering.got = (status, headers, body), []
        return f"http://127.0.0.1:{running.server_port}"

    yield answering
    running.shutdown()
    running.server_close()


def run(capsys, *arguments) -> tuple[int, str, dict]:
    """Exit code, what was said on standard error, and the JSON object on standard output."""
    code = console.run(app, ["restore", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, err, json.loads(out)


def test_here_with_a_bundle_and_with_a_registered_model(capsys, picture, bundle_folder, mlflow_home, tmp_path):
    path, image = picture
    registry.promote(registry.register(bundle_folder).version)
    for number, model in enumerate((bundle_folder, "champion")):
        out = tmp_path / f"{number}.png"
        code, _, told = run(capsys, path, "--out", out, "--model", model)
        (row,) = told["pictures"]
        assert (code, row["status"], row["faces"], told["out"]) == (0, "copied", [], str(out))
        np.testing.assert_array_equal(read_image(out.read_bytes()), image)


def test_modes_and_before_after(capsys, picture, bundle_folder, tmp_path):
    path, image = picture
    out, both = tmp_path / "new" / "out.png", tmp_path / "both.png"
    code, _, told = run(capsys, path, "--out", out, "--model", bundle_folder, "--faces", "aligned", "--compare", both)
    assert (code, len(told["pictures"][0]["faces"])) == (0, 1)
    restored = read_image(out.read_bytes())
    assert restored.shape == image.shape
    shown = read_image(both.read_bytes())
    np.testing.assert_array_equal(shown[-60:, :80], image)
    np.testing.assert_array_equal(shown[-60:, -80:], restored)


def test_a_square_picture_taken_whole_is_compared_at_the_models_size(capsys, bundle_folder, tmp_path):
    path, out, both = (tmp_path / name for name in ("in.png", "out.png", "both.png"))
    path.write_bytes(png(np.zeros((40, 40, 3), np.uint8)))
    code, _, _ = run(capsys, path, "--out", out, "--model", bundle_folder, "--faces", "whole", "--compare", both)
    assert code == 0
    assert read_image(out.read_bytes()).shape == (64, 64, 3)
    assert read_image(both.read_bytes()).shape[1] > 128


def test_at_an_endpoint(capsys, picture, server, tmp_path):
    path, image = picture
    headers = {"content-type": "image/png", "X-Model-Version": "3", "X-Run-Id": "r", "X-Dataset-Digest": "d"}
    url = server(200, headers | {"X-Faces": "2"}, png(255 - image))
    code, _, told = run(capsys, path, "--out", tmp_path / "o.png", "--url", url + "/", "--faces", "whole")
    assert code == 0
    assert Answering.got == [("/v1/restore?faces=whole", path.read_bytes())]
    assert (told["version"], told["run_id"], told["dataset_digest"], told["faces"]) == ("3", "r", "d", "2")
    np.testing.assert_array_equal(read_image((tmp_path / "o.png").read_bytes()), 255 - image)


def test_an_endpoints_refusal_is_told_in_its_own_words(picture, server):
    problem = json.dumps({"status": 413, "detail": "the picture: is too large"}).encode()
    url = server(413, {"content-type": "application/problem+json"}, problem)
    with pytest.raises(UserError, match=r"refused .*picture\.png: the picture: is too large"):
        restoring.at_endpoint(picture[0], url, "auto")


@pytest.mark.parametrize(
    ("status", "body"), [(404, b"<html>nothing here</html>"), (200, b"{}"), (502, b""), (200, b"\x89PNG\r\n\x1a\n")]
)
def test_another_server_at_that_address_is_one_sentence(picture, server, status, body):
    url = server(status, {"content-type": "text/html"}, body)
    with pytest.raises(UserError, match=f"something else answers there .status {status}, no picture.; give"):
        restoring.at_endpoint(picture[0], url, "auto")


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "127.0.0.1:{port}", "nonsense", "http://[", "http://a b"])
def test_no_endpoint_there_is_one_sentence(picture, free_port, url):
    with pytest.raises(UserError, match="no answer from an endpoint there .*start one with `osdface serve up`"):
        restoring.at_endpoint(picture[0], url.format(port=free_port), "auto")


def test_an_endpoint_that_hangs_is_one_sentence(picture, monkeypatch):
    def hang(*_, **__):
        raise httpx.ReadTimeout("timed out")

    monkeypatch.setattr(httpx, "post", hang)
    with pytest.raises(UserError, match="no answer from an endpoint there .timed out."):
        restoring.at_endpoint(picture[0], "http://127.0.0.1:1", "auto")


def test_wrong_use(capsys, picture, bundle_folder, tmp_path):
    path, _ = picture
    there, out = ["--model", bundle_folder], ["--out", tmp_path / "o.png"]
    for arguments, words in (
        ([path, *out, *there, "--faces", "everyone"], "'everyone'"),
        ([path, *out], "give either --model (restore here) or --url"),
        ([path, *out, *there, "--url", "http://x"], "give either --model (restore here) or --url"),
        ([path, "--out", tmp_path / "o.gif", *there], "o.gif: pictures are written as .png, .jpg,"),
        ([path, *out, *there, "--faces", "whole", "--upscale", "2"], "--faces whole is one pass"),
        ([path, *out, *there, "--detector", "eyes"], "detector 'eyes': there are dlib, dlib-cnn and insightface:PACK"),
        ([path, *out, "--url", "http://x", "--largest"], "--url takes --faces, --out and --compare alone"),
        ([path, *out, "--url", "http://x", "--compare", tmp_path / "c"], "are written as PNG; name it c.png"),
        ([tmp_path, *out, *there, "--compare", tmp_path / "c.png"], "c.png: of many pictures, --compare is a folder"),
    ):
        code, said, told = run(capsys, *arguments)
        assert code == 2
        assert words in said.replace("\n", " ")
        assert set(told) == {"error"}
    assert sorted(tmp_path.iterdir()) == [path]


def test_pictures_models_and_places_that_are_no_good(capsys, picture, bundle_folder, home, tmp_path):
    path, _ = picture
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:1000])
    (tmp_path / "folder").mkdir()
    there = sorted(tmp_path.rglob("*"))
    model, out = ["--model", bundle_folder], ["--out", tmp_path / "o.png"]
    for arguments, words in (
        ([tmp_path / "none.png", *out, *model], "none.png: no such picture, folder or archive"),
        ([path, *out, *model, "--face", "2"], "picture.png: has 0 faces, and none is number 2"),
        ([path, "--out", path, *model], "picture.png: is the picture itself, which would be lost"),
        ([path, *out, *model, "--compare", path], "picture.png: would be written over by --compare"),
        ([path, "--out", tmp_path, *model], "picture.png: is the picture itself, which would be lost"),
        ([path, "--out", path, "--url", "http://x"], "picture.png: is the picture itself, which would be lost"),
        ([path, *out, "--url", "http://x", "--compare", path], "picture.png: would be written over by --compare"),
        ([path, *out, *model, "--compare", tmp_path / "o.png"], "o.png: would be written over by --compare"),
        ([path, *out, *model, "--detector", "insightface:buffalo_l"], "put the pack there, or use --detector dlib"),
        ([tmp_path / "text.png", *out, *model], "text.png: is not a picture this program reads"),
        ([tmp_path / "empty.png", *out, *model], "empty.png: is empty"),
        ([tmp_path / "cut.png", *out, *model], "cut.png: is damaged"),
        ([tmp_path / "folder", *out, *model], "folder: is empty; put pictures in it"),
        ([path, *out, "--model", tmp_path / "folder"], "not a model bundle"),
        ([path, *out, "--model", tmp_path / "none"], "not found: give a bundle folder"),
        ([path, "--out", path / "o.png", *model], "o.png: cannot be written"),
    ):
        code, said, told = run(capsys, *arguments)
        assert code == 1, said
        assert words in told["error"]
        assert "Traceback" not in said
    assert sorted(tmp_path.rglob("*")) == there
    assert bundle.verify(bundle_folder)
