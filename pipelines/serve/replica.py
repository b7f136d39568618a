"""The batched one-step restorer behind the endpoint: one slot's version."""

import asyncio
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from ray import serve

from osdface.modes import FaceMode, Wishes
from osdface.photograph import Crop, blend, finish
from pipelines.serve.reader import Fault, Read, Readers
from pipelines.serve.settings import BATCH, Loaded, Settings

if TYPE_CHECKING:
    from pipelines.serve.batches import Batches

WAIT = 0.01  # seconds in which a batch may fill
Format = Literal["png", "jpeg", "webp"]
OPTIONS: dict[Format, dict[str, Any]] = {"png": {"compress_level": 3}, "jpeg": {"quality": 95}, "webp": {"quality": 95}}


class Task(NamedTuple):
    """An encoded picture, and what is wanted of it. only: faces to restore, by their place in the answer without it."""

    data: bytes
    faces: FaceMode = "auto"
    format: Format = "png"
    strength: float = 1.0
    compare: bool = False
    identity: bool = False
    only: tuple[int, ...] | None = None


class Answer(NamedTuple):
    """What a replica says of one picture: encoded bytes, and for each face its box in the upright picture and how much
    it is still that person's; or a fault in one sentence, and its status of HTTP. seconds: of its parts."""

    version: str
    picture: bytes = b""
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    identity: tuple[float | None, ...] = ()
    fault: str = ""
    status: int = 200
    seconds: dict[str, float] = {}


class Work(NamedTuple):
    """What goes through the network for one picture."""

    image: np.ndarray
    crops: list[Crop]
    whole: bool
    identity: bool


class Made(NamedTuple):
    """What the network made of it: faces in [0, 1], or the whole picture."""

    version: str
    crops: list[np.ndarray]
    whole: np.ndarray | None = None
    identity: tuple[float | None, ...] = ()


class Replica:
    """Holds one version; takes and gives encoded pictures.

    Decoding goes on in processes beside it, encoding in threads, the network in a thread of its own: while it runs, the
    next batch is decoded and fills.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.told: Loaded | None = None
        self.batches: Batches | None = None
        self.readers: Readers | None = None
        self.size = 0  # of a face's crop, in pixels
        self.swapping = threading.Lock()
        self.around = ThreadPoolExecutor(2 + settings.readers, thread_name_prefix="pictures")

    async def reconfigure(self, told: dict[str, Any] | None) -> None:
        """Serve calls this with the slot's `user_config`. Raises UserError where there is no such bundle."""
        if told is not None:
            await asyncio.to_thread(self._load, Loaded.model_validate(told))

    async def check_health(self) -> None:
        """A real forward pass. Raises where it fails: Serve then replaces the replica."""
        await asyncio.to_thread(self._probe)

    def loaded(self) -> Loaded | None:
        """What is in this replica now."""
        return self.told

    async def restore(self, task: Task) -> Answer:
        """Restore one picture, in a batch with others that are here; a picture at fault touches no other."""
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            assert self.readers
            read = await loop.run_in_executor(self.around, self.readers.read, task.data, task.faces)
            work = _work(read, task)
            decoded = time.perf_counter()
            made = await self._made(work)
            if isinstance(made, Exception):
                raise made
            restored = time.perf_counter()
            picture = await loop.run_in_executor(self.around, _encoded, work, made, task)
        except Fault as fault:
            return Answer(self.told.model.version if self.told else "", fault=str(fault), status=fault.status)
        parts = {"decode": decoded - began, "model": restored - decoded, "encode": time.perf_counter() - restored}
        boxes = tuple(crop.face.box for crop in work.crops)
        return Answer(made.version, picture, boxes, made.identity or (None,) * len(boxes), seconds=parts)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT)
    async def _made(self, works: list[Work]) -> list[Made | Exception]:
        return await asyncio.to_thread(self.make, works)

    def make(self, works: list[Work]) -> list[Made | Exception]:
        """The network's part of a batch. Where it fails, its pictures go one by one; a Fault for one that a sound model
        cannot restore, the model's own error for all where it isn't sound."""
        with self.swapping:
            try:
                return list(self._pass(works))
            except Exception as error:
                if len(works) == 1:
                    try:
                        self._forward()
                    except Exception:
                        return [error]
                    return [Fault("the picture: the model cannot restore it")]
        return [self.make([work])[0] for work in works]

    def _pass(self, works: list[Work]) -> list[Made]:
        assert self.batches
        assert self.told
        restored = iter(self.batches.crops([crop.crop for work in works for crop in work.crops]))
        made = []
        for work in works:
            crops = [next(restored) for _ in work.crops]
            whole = self.batches.whole(work.image) if work.whole else None
            identity = self.batches.identity([crop.crop for crop in work.crops], crops) if work.identity else ()
            made.append(Made(self.told.model.version, crops, whole, identity))
        return made

    def _load(self, told: Loaded) -> None:
        """Load a bundle, or its weights into the networks that are here; requests wait meanwhile, none fails."""
        from pipelines.serve.batches import (
            Batches,
        )  # here: Ray's other processes, which only know of this class, need no torch

        fresh = Batches.load(told, self.settings)
        with self.swapping:
            if self.batches is None or not self.batches.take_over(fresh):
                self.batches = fresh
            if self.readers is None or self.size != self.batches.size:
                self.size = self.batches.size
                self.readers = Readers(self.settings.readers, self.settings.limits, self.size)
            self.told = told
            self._forward(warm=True)

    def _probe(self) -> None:
        with self.swapping:
            self._forward()

    def _forward(self, warm: bool = False) -> None:
        """A picture through the network, or one batch of each size that there will be. Raises RuntimeError for numbers
        that are none."""
        if self.batches:
            for count in self.batches.sizes if warm else (1,):
                self.batches.crops([np.full((self.size, self.size, 3), 127, np.uint8)] * count)


def _work(read: Read, task: Task) -> Work:
    crops = read.crops
    if task.only is not None and task.faces != "whole":
        if unknown := [number for number in task.only if not 0 <= number < len(crops)]:
            raise Fault(f"the picture: has {len(crops)} faces to restore, and none is number {min(unknown)} (from 0)")
        crops = [crops[number] for number in sorted(set(task.only))]
    return Work(read.image, crops, task.faces == "whole", task.identity)


def _encoded(work: Work, made: Made, task: Task) -> bytes:
    wishes = Wishes(strength=task.strength)
    if made.whole is not None:
        image = blend(work.image, made.whole, wishes)
    else:
        image = finish(work.image, work.crops, made.crops, wishes)
    if task.compare:
        height, width = image.shape[:2]
        before = Image.fromarray(work.image)
        before = before if before.size == (width, height) else before.resize((width, height), Image.Resampling.BICUBIC)
        image = np.hstack([np.asarray(before), image])
    coded = io.BytesIO()
    try:
        Image.fromarray(image).save(coded, task.format.upper(), **OPTIONS[task.format])
    except (OSError, ValueError) as error:
        raise Fault(f"the picture: cannot be written as {task.format} ({error})") from None
    return coded.getvalue()
