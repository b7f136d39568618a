"""The batched one-step restorer behind the endpoint."""

import asyncio
import io
import os
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from ray import serve

from osdface.imagefile import ImageError, read_image
from osdface.modes import FaceMode

if TYPE_CHECKING:
    from osdface.restorer import Result

BATCH, WAIT = 8, 0.02  # pictures, seconds


class Task(NamedTuple):
    """An encoded picture, and what is wanted of it."""

    data: bytes
    faces: FaceMode
    format: Literal["png", "jpeg"]


class Answer(NamedTuple):
    """What a replica says of one picture: encoded bytes and how many faces, or a fault in one sentence."""

    picture: bytes = b""
    faces: int = 0
    fault: str = ""


class Replica:
    """Holds one model; takes and gives encoded pictures. Work runs in a thread, so that the loop fills batches."""

    def __init__(self, folder: str, max_pixels: int, threads: int):
        import torch  # here, so that Ray's other processes, which only need to know of this class, start without

        from osdface.restorer import Restorer

        os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
        torch.set_num_threads(threads)
        self.restorer = Restorer.load(folder)
        self.max_pixels = max_pixels
        self._probe()

    async def check_health(self) -> None:
        """A real forward pass on a small picture. Raises where it fails: Serve then replaces the replica."""
        await asyncio.to_thread(self._probe)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT)
    async def restore(self, tasks: list[Task]) -> list[Answer]:
        """Restore a batch; a picture at fault does not touch the others."""
        return await asyncio.to_thread(self.answers, tasks)

    def answers(self, tasks: list[Task]) -> list[Answer]:
        """What `restore` does, without the queue."""
        answers: dict[int, Answer] = {}
        decoded: dict[int, np.ndarray] = {}
        for i, task in enumerate(tasks):
            try:
                decoded[i] = read_image(task.data, "the picture", self.max_pixels)
            except ImageError as error:
                answers[i] = Answer(fault=str(error))
        for mode in sorted({tasks[i].faces for i in decoded}):
            chosen = [i for i in decoded if tasks[i].faces == mode]
            for i, result in zip(chosen, self._restored([decoded[i] for i in chosen], mode), strict=True):
                answers[i] = _encoded(result, tasks[i].format)
        return [answers[i] for i in range(len(tasks))]

    def _restored(self, images: list[np.ndarray], mode: FaceMode) -> list["Result | None"]:
        """Results of the model. Where a batch fails, its pictures go one by one; None for one that a sound model cannot
        restore."""
        try:
            return list(self.restorer(images, mode, output_type="array", identity=False))
        except Exception:
            if len(images) == 1:
                self._probe()  # raises if it is the model that is at fault
                return [None]
            return [self._restored([image], mode)[0] for image in images]

    def _probe(self) -> None:
        picture = np.zeros((self.restorer.size, self.restorer.size, 3), np.uint8)
        shape = self.restorer(picture, "aligned", output_type="array", identity=False).image.shape
        if shape != picture.shape:
            raise RuntimeError(f"the model makes {shape} of a picture {picture.shape}")


deployment = serve.deployment(
    max_ongoing_requests=4 * BATCH,
    ray_actor_options={"num_cpus": 0.2},
    health_check_period_s=30,
    graceful_shutdown_wait_loop_s=0.2,
)(Replica)


def _encoded(result: "Result | None", format: str) -> Answer:
    if result is None:
        return Answer(fault="the picture: the model cannot restore it")
    coded = io.BytesIO()
    options: dict[str, Any] = {"quality": 95} if format == "jpeg" else {}
    try:
        Image.fromarray(result.image).save(coded, format.upper(), **options)
    except (OSError, ValueError) as error:
        return Answer(fault=f"the picture: cannot be written as {format} ({error})")
    return Answer(coded.getvalue(), len(result.faces))
