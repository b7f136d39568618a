"""The batched one-step restorer behind the endpoint."""

import io
import os
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from ray import serve

from osdface.imagefile import ImageError, read_image

BATCH, WAIT = 8, 0.02  # pictures, seconds


class Answer(NamedTuple):
    """What a replica says of one picture: encoded bytes and how many faces, or a fault in one sentence."""

    picture: bytes = b""
    faces: int = 0
    fault: str = ""


@serve.deployment(max_ongoing_requests=4 * BATCH, ray_actor_options={"num_cpus": 0.2}, health_check_period_s=30)
class Replica:
    """Holds one model; takes and gives encoded pictures."""

    def __init__(self, folder: str, max_pixels: int, threads: int):
        os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
        import torch

        from osdface.restorer import Restorer

        torch.set_num_threads(threads)
        self.restorer = Restorer.load(folder)
        self.max_pixels = max_pixels
        self.check_health()

    def check_health(self) -> None:
        """A real forward pass on a small picture."""
        result = self.restorer([np.zeros((self.restorer.size, self.restorer.size, 3), np.uint8)], "aligned")
        if not result[0].image.size:
            raise RuntimeError("the model gives empty pictures")

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT)
    async def restore(self, pictures: list[bytes], modes: list[str], formats: list[str]) -> list[Answer]:
        """Restore a batch; a picture at fault does not touch the others."""
        answers: list[Answer | None] = [None] * len(pictures)
        decoded: dict[int, np.ndarray] = {}
        for i, data in enumerate(pictures):
            try:
                decoded[i] = read_image(data, "the picture", self.max_pixels)
            except ImageError as error:
                answers[i] = Answer(fault=str(error))
        for mode in sorted({modes[i] for i in decoded}):
            chosen = [i for i in decoded if modes[i] == mode]
            for i, result in zip(chosen, self.restorer([decoded[i] for i in chosen], mode), strict=True):
                answers[i] = Answer(_encode(result.image, formats[i]), len(result.faces))
        return [answer or Answer(fault="the picture was not restored") for answer in answers]


def _encode(image: np.ndarray, format: str) -> bytes:
    coded = io.BytesIO()
    options: dict[str, Any] = {"quality": 95} if format == "jpeg" else {}
    Image.fromarray(image).save(coded, format.upper(), **options)
    return coded.getvalue()
