"""One picture file after another through a restorer: opened and searched in threads, faces restored in common batches.

A picture's row in the report is a plain dict: input, output, status ("restored", "copied" or "skipped" where no face
is restored, "failed"), reason, sha256 of the input, and its faces, each with its number from the left, box, score,
whether it was restored, and the reason if not.
"""

import collections
import errno
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from osdface import bundle, config, detectors, files, photograph, picturefile, pictureout
from osdface.config import Strict
from osdface.errors import UserError
from osdface.imagefile import ImageError
from osdface.modes import Dtype, Execution, Wishes
from osdface.photograph import Plan
from osdface.picturefile import MAX_PIXELS, Picture
from pipelines import sources

if TYPE_CHECKING:
    import torch

    from osdface.restorer import Restorer

LARGEST = 2**30  # bytes of a picture file
TOGETHER = 50_000_000  # pixels of pictures that wait for a batch to fill; one picture may have more
WHOLE = 8_000_000  # pixels of a picture in one pass: the UNet's attention grows with their square
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # no other picture can be written either
Row = dict[str, Any]


class Order(Strict):
    """What is made of every picture.

    model: a bundle's folder. no_face: what becomes of a picture without a face to restore. seed: of the noise where
    the latent is sampled. execution, dtype: as `Restorer.load` has them. max_pixels: of a picture, from its header.
    """

    model: Path
    wishes: Wishes = Wishes()
    no_face: Literal["copy", "skip"] = "copy"
    latent: Literal["mode", "sample"] = "mode"
    seed: int = 0
    execution: Execution = "plain"
    dtype: Dtype = "float32"
    max_pixels: int = MAX_PIXELS

    def digest(self) -> str:
        """Changes with anything that changes what is made of a picture."""
        told = self.model_dump(mode="json", exclude={"model", "max_pixels"})
        return config.digest(told | {"bundle": bundle.digest(self.model)})


class Task(NamedTuple):
    """A picture: its name, where `sources.read` finds it, where it goes, what an earlier run made of it."""

    name: str
    at: str
    out: Path
    earlier: Row | None = None


class Opened(NamedTuple):
    """A picture that was read and searched."""

    task: Task
    data: bytes
    picture: Picture
    plan: Plan


class Stop(UserError):
    """What ends the run of a whole folder: nothing can be written any more."""


def load(order: Order) -> "Restorer":
    """The order's restorer, on a GPU where there is one."""
    import torch

    from osdface.restorer import Restorer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    restorer = Restorer.load(order.model, device, order.dtype, order.latent, execution=order.execution)
    return restorer.enable_tiling()  # for whole pictures that are larger than what the base was made for


def run(tasks: Iterable[Task], order: Order, restorer: "Restorer", threads: int = 2) -> Iterator[Row]:
    """A row for every task, in their order, once its picture is written. Raises Stop where nothing can be written.

    At any time no more pictures are in memory than there are threads, and those that share a batch.
    """
    with ThreadPoolExecutor(threads) as pool:
        opened = _ahead(pool, tasks, lambda task: _open(task, order, restorer.size), threads)
        for group in _groups(opened, restorer.batch):
            made = _restored([one for one in group if isinstance(one, Opened)], order, restorer)
            rows = [one if isinstance(one, dict) else pool.submit(_finish, one, next(made), order) for one in group]
            yield from (row.result() if isinstance(row, Future) else row for row in rows)


def _ahead(pool: ThreadPoolExecutor, items: Iterable, function, count: int) -> Iterator:
    """`map`, with at most `count` results waiting."""
    items = iter(items)
    waiting: collections.deque[Future] = collections.deque()
    try:
        waiting.extend(pool.submit(function, item) for item in itertools.islice(items, count))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield done
    finally:
        for future in waiting:
            future.cancel()


def _groups(opened: Iterable[Row | Opened], batch: int) -> Iterator[list[Row | Opened]]:
    """Neighbours whose faces fill a batch, or whose pixels are enough to hold."""
    group: list[Row | Opened] = []
    crops = pixels = 0
    for one in opened:
        group.append(one)
        if isinstance(one, Opened):
            crops += len(one.plan.crops)
            pixels += one.picture.colours[..., 0].size
        if crops >= batch or pixels >= TOGETHER or not crops:
            yield group
            group, crops, pixels = [], 0, 0
    if group:
        yield group


def _open(task: Task, order: Order, size: int) -> Row | Opened:
    """Read, decode, search; a row where that fails, or where an earlier run has done the same already."""
    try:
        data = sources.read(task.at, LARGEST)
        digest = hashlib.sha256(data).hexdigest()
        if task.earlier and task.earlier["sha256"] == digest and _is_there(task):
            return task.earlier | {"resumed": True}
        picture = picturefile.read(data, task.name, order.max_pixels)
        wishes, plan = order.wishes, Plan([], [])
        height, width = picture.colours.shape[:2]
        if wishes.faces == "whole" and height != width and height * width > WHOLE:
            raise ImageError("too_large", f"{width}x{height} is more than one pass takes, {WHOLE} pixels; cut it")
        if wishes.faces != "whole":
            plan = photograph.plan(picture.colours, size, wishes, detectors.detector(wishes.detector))
        return Opened(task, data, picture, plan)
    except (UserError, OSError) as error:
        return failed(task, _reason(error))


def failed(task: Task, reason: str) -> Row:
    """The row of a picture that cannot be restored."""
    return {"input": task.name, "output": None, "status": "failed", "reason": reason, "sha256": "", "faces": []}


def _is_there(task: Task) -> bool:
    """Whether what an earlier run made lies where it would go now: --out may have been moved."""
    output = task.earlier and task.earlier["output"]
    return output is None or (output == str(task.out) and task.out.is_file())


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):
        return error.reason
    return f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else str(error)


def _restored(opened: list[Opened], order: Order, restorer: "Restorer") -> Iterator[np.ndarray | None]:
    """What becomes of each picture's colours; None where no face is restored."""
    faces = iter(_faces_of([crop.crop for one in opened for crop in one.plan.crops], order, restorer))
    for one in opened:
        made = list(itertools.islice(faces, len(one.plan.crops)))
        if order.wishes.faces == "whole":
            yield _whole(one.picture.colours, order, restorer)
        elif made or (order.wishes.upscale > 1 and order.no_face == "copy"):
            yield photograph.finish(one.picture.colours, one.plan.crops, made, order.wishes)
        else:
            yield None


def _faces_of(crops: list[np.ndarray], order: Order, restorer: "Restorer") -> list[np.ndarray]:
    """The crops restored; a latent is drawn as if its face were the only one, whichever others share the batch."""
    if order.latent == "mode":
        return restorer.restore_crops(crops)
    return [restorer.restore_crops([crop], _drawing(order))[0] for crop in crops]


def _whole(colours: np.ndarray, order: Order, restorer: "Restorer") -> np.ndarray:
    import torch

    image = torch.from_numpy(colours.astype(np.float32) / np.iinfo(colours.dtype).max)
    made = restorer.restore(image.permute(2, 0, 1)[None], _drawing(order))[0]
    return photograph.blend(colours, made.permute(1, 2, 0).numpy(), order.wishes)


def _drawing(order: Order) -> "torch.Generator":
    import torch

    return torch.Generator().manual_seed(order.seed)


def _finish(one: Opened, colours: np.ndarray | None, order: Order) -> Row:
    """Write a picture, and say what was done with it."""
    task, skipped = one.task, colours is None and order.no_face == "skip"
    try:
        if not skipped:
            write(task.out, _coded(one, colours))
    except UserError as error:
        if isinstance(error, Stop):
            raise
        return failed(task, str(error))
    made = len(one.plan.crops) or order.wishes.faces == "whole"
    return {
        "input": task.name,
        "output": None if skipped else str(task.out),
        "status": "restored" if made else "skipped" if skipped else "copied",
        "reason": "" if made else _nothing(one.plan),
        "sha256": hashlib.sha256(one.data).hexdigest(),
        "detector": order.wishes.detector,
        "faces": _faces(one.plan),
    }


def _coded(one: Opened, colours: np.ndarray | None) -> bytes:
    """The file's own bytes where nothing changes, its format included."""
    suffix = one.task.out.suffix
    if colours is None and pictureout.FORMATS[suffix.lower()] == one.picture.format:
        return one.data
    picture = one.picture
    if colours is not None:
        alpha = None if picture.alpha is None else photograph.resized(picture.alpha, colours.shape[1::-1])
        picture = picture._replace(colours=colours, alpha=alpha)
    return pictureout.encode(picture, suffix)


def write(path: Path, data: bytes) -> None:
    """Write aside and rename. Raises UserError where that fails, Stop where no other file could be written either."""
    try:
        files.write(path, data)
    except OSError as error:
        kind = Stop if error.errno in FATAL else UserError
        raise kind(f"{path}: cannot be written ({error.strerror}); give another --out") from None


def _nothing(plan: Plan) -> str:
    return "no face is restored: all were left" if plan.left else "no face was found"


def _faces(plan: Plan) -> list[dict[str, Any]]:
    """All that were found, left to right."""
    made = [(crop.number, crop.face, "") for crop in plan.crops]
    return [
        {
            "number": number,
            "box": list(map(int, face.box)),
            "score": round(face.score, 3),
            "restored": not reason,
            "reason": reason,
        }
        for number, face, reason in sorted(made + plan.left, key=lambda one: one[0])
    ]
