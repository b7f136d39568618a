"""What tests of the endpoint share: its limits, pictures to send, what a problem looks like."""

import io

import httpx
import numpy as np
from PIL import Image

from pipelines.serve.settings import Limits

LIMITS = Limits(
    bytes=2**21, pixels=1_500_000, whole_pixels=128 * 128, pictures=4, faces=8, seconds=30, body_seconds=2, jobs=3
)


def picture(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """Noise of one colour a picture: no face."""
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3), np.uint8)
    return noise + np.uint8(seed * 20)


def encoded(image: np.ndarray, format: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, format, **options)
    return data.getvalue()


def assert_problem(answer: httpx.Response, status: int, words: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail"}
    assert body["status"] == status
    assert words in body["detail"]
