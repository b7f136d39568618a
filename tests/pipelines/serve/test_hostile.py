"""Two hundred uploads by people who mean harm, or whose programs are broken: refused, none a server error."""

import contextlib
import io
import socket
import zipfile

import httpx
import numpy as np
import psutil
import pytest

from tests.hostile import write_hostile
from tests.serving import LIMITS, encoded, picture

FUZZED = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM")
GROWTH = 700 * 2**20  # bytes by which the memory of all of the endpoint's processes may grow


def fuzzed() -> list[bytes]:
    """Small pictures of every format with some bytes turned over, cut, doubled, or of another's header."""
    draw, made = np.random.default_rng(8), []
    for format in FUZZED:
        whole = encoded(picture(1), format)
        for start in (0, 8, 30, 100):
            harmed = np.frombuffer(whole, np.uint8).copy()
            at = start + draw.choice(len(whole) - start, max(2, len(whole) // 50), replace=False)
            harmed[at] ^= draw.integers(1, 256, len(at), np.uint8)
            made.append(harmed.tobytes())
        made += [whole[: len(whole) // 3], whole[:20] + whole, whole[: len(whole) // 2] * 2, whole + b"\0" * 100_000]
        made += [encoded(picture(2), "PNG")[:8] + whole[8:], whole[:-1]]
    return made


def other_files() -> list[bytes]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0" * 50, b"0" * 10_000_000)
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "ha"}">' for n in range(10))
    svg = f"<?xml version='1.0'?><!DOCTYPE s [{entities}]><svg xmlns='http://www.w3.org/2000/svg'>&e9;</svg>"
    return [
        archive.getvalue(),
        svg.encode(),
        b"\x80\x04\x95" + b"c__builtin__\neval\n",
        b"\x93NUMPY\x01\0v\0{}",
        b"\0" * 10_000,
    ]


def memory(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += psutil.Process(pid).memory_info().rss
    return total


def serving() -> list[int]:
    """The endpoint's processes, this test's own left out."""
    return [child.pid for child in psutil.Process().children(recursive=True)]


def test_uploads(endpoint, tmp_path):
    outcomes = write_hostile(tmp_path / "hostile")
    files = [path for path in sorted((tmp_path / "hostile").rglob("*")) if path.is_file() and "loop" not in path.parts]
    bodies = [path.read_bytes() for path in files] + fuzzed() + other_files()
    assert len(outcomes) > 90
    assert len(bodies) >= 200
    endpoint.post("/v1/restore", content=encoded(picture()))
    before, statuses = memory(serving()), {}
    for body in bodies:
        answer = endpoint.post("/v1/restore", content=body, params={"identity": "false"})
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code == 200 or 400 <= answer.status_code < 500, (body[:40], answer.text)
    print(f"{len(bodies)} uploads: {statuses}")
    assert statuses[200] >= 40  # odd but good
    assert sum(count for status, count in statuses.items() if status >= 400) >= 80
    assert memory(serving()) - before < GROWTH
    assert endpoint.post("/v1/restore", content=encoded(picture())).status_code == 200


NAMES = ("../../etc/passwd", "/etc/passwd", "a\\..\\b", "x" * 5000, "null\0byte", "new\r\nline: x", "%2e%2e%2f", "")


@pytest.mark.parametrize("name", NAMES)
def test_file_names_mean_nothing(endpoint, name):
    answer = endpoint.post("/v1/restore", files={"image": (name, encoded(picture()), "image/png")})
    assert answer.status_code in (200, 400)


def test_forms_of_thousands_of_parts_are_refused(endpoint):
    part = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\nv\r\n'
    for extra in (b"", b'; filename="f"'):
        body = b"".join(part % (b"f%d" % n, extra) for n in range(5000)) + b"--x--\r\n"
        for route in ("/v1/restore", "/v1/restore:batch"):
            headers = {"content-type": "multipart/form-data; boundary=x"}
            assert endpoint.post(route, content=body, headers=headers).status_code in (400, 413)


def raw(url: str, request: bytes, seconds: float = 30) -> bytes:
    """What comes back on a connection for these bytes, until it is closed or nothing more comes."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port), timeout=seconds) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(OSError):
            while chunk := connection.recv(65536):
                answer += chunk
        return answer


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /v1/restore HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nshort",
        b"POST /v1/restore HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\nx",
        b"POST /v1/restore HTTP/1.1\r\nHost: x\r\nContent-Length: nonsense\r\n\r\nx",
        b"POST /v1/restore HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nxxxxxx",
        b"POST /v1/restore HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nxx\r\n0\r\n\r\n",
        b"POST /v1/restore HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 2_000_000 + b"\r\n\r\n",
        b"POST /v1/restore HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(20_000)) + b"\r\n",
        b"POST /v1/restore?" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc" + bytes(200),
    ],
)  # fmt: skip
def test_malformed_http_is_refused_and_the_endpoint_lives(served, endpoint, request_):
    answer = raw(served.url, request_)
    assert answer[:9] in (b"", b"HTTP/1.1 ")
    assert answer[9:10] != b"5"
    assert endpoint.get("/healthz").status_code == 200


def test_many_bodies_of_the_largest_size_are_held_one_by_one(endpoint):
    before = memory(serving())
    for _ in range(20):
        assert endpoint.post("/v1/restore", content=bytes(LIMITS.bytes)).status_code == 415
    assert memory(serving()) - before < GROWTH
