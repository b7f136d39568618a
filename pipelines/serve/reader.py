"""Decoding, and looking for faces, in a process of its own: what a picture does to it, it does to no model.

The process answers one picture at a time, in memory that is bounded; where it dies or takes too long, that picture is
known to be at fault, and a new process takes the next one. What comes back is arrays, never pickles.
"""

import contextlib
import io
import os
import queue
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from osdface.faces import DlibFrontal, Face
from osdface.imagefile import ImageError, read_image
from osdface.modes import FaceMode, Wishes
from osdface.photograph import Crop, plan
from pipelines.serve.settings import Limits

MEMORY = 4 * 2**30  # bytes of address space that reading one picture may take


STEP = 64  # pixels of which the network takes a multiple, each way
STATUS = {"empty": 400, "unknown": 415, "animated": 415, "too_large": 413}  # of HTTP, by what `imagefile` finds wrong


class Fault(Exception):
    """A picture that is not restored; the message is one sentence for whoever sent it, `status` HTTP's word for it."""

    def __init__(self, message: str, status: int = 422):
        super().__init__(message)
        self.status = status


class Read(NamedTuple):
    """A decoded picture (H, W, 3) uint8, and the faces of it to restore; none with `faces="whole"`."""

    image: np.ndarray
    crops: list[Crop]


class Reader:
    """One such process, started when it is first needed and after it has died.

    limits: of a picture; size: of a face's crop, in pixels.
    """

    def __init__(self, limits: Limits, size: int):
        self.arguments = [limits.model_dump_json(), str(size)]
        self.seconds = limits.read_seconds
        self.process: subprocess.Popen | None = None
        self.pipe: Connection | None = None

    def read(self, data: bytes, faces: FaceMode) -> Read:
        """Raises Fault for a picture that cannot be read, is over a limit, or ends the process twice."""
        for _ in range(2):  # somebody else may have ended it the first time
            try:
                return self._answer(data, faces)
            except (EOFError, OSError):
                self.close()
        raise Fault("the picture: cannot be decoded (it ends the decoder)")

    def close(self) -> None:
        """End the process."""
        if self.process and self.pipe:
            self.pipe.close()
            self.process.kill()
            self.process.wait()
        self.process = self.pipe = None

    def _answer(self, data: bytes, faces: FaceMode) -> Read:
        pipe = self._started()
        deadline = time.monotonic() + self.seconds
        pipe.send_bytes(faces.encode())
        pipe.send_bytes(data)
        if not pipe.poll(max(0, deadline - time.monotonic())):
            self.close()
            raise Fault(f"the picture: takes more than {self.seconds:g} s to decode and look for faces in")
        return _unpacked(pipe.recv_bytes())

    def _started(self) -> Connection:
        if self.process is None or self.process.poll() is not None:
            self.close()
            ours, theirs = socket.socketpair()
            with theirs:
                command = [sys.executable, "-m", "pipelines.serve.reader", str(theirs.fileno()), *self.arguments]
                path = os.pathsep.join(filter(None, sys.path))
                self.process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": path}
                )
            self.pipe = Connection(ours.detach())
        assert self.pipe
        return self.pipe


class Readers:
    """Several of them, each for one picture at a time."""

    def __init__(self, count: int, limits: Limits, size: int):
        self.all = [Reader(limits, size) for _ in range(count)]
        self.free: queue.Queue[Reader] = queue.Queue()
        for reader in self.all:
            self.free.put(reader)

    @contextlib.contextmanager
    def one(self) -> Iterator[Reader]:
        """A reader for a while; waits until one is free."""
        reader = self.free.get()
        try:
            yield reader
        finally:
            self.free.put(reader)

    def read(self, data: bytes, faces: FaceMode) -> Read:
        """As `Reader.read`."""
        with self.one() as reader:
            return reader.read(data, faces)


def _packed(read: Read) -> bytes:
    crops = read.crops
    return _saved(
        image=read.image,
        boxes=np.array([crop.face.box for crop in crops], np.int64),
        scores=np.array([crop.face.score for crop in crops]),
        landmarks=np.array([crop.face.landmarks for crop in crops]),
        crops=np.array([crop.crop for crop in crops], np.uint8),
        matrices=np.array([crop.matrix for crop in crops]),
    )


def _saved(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _unpacked(answer: bytes) -> Read:
    """What the process says. Raises Fault where that is a fault."""
    with np.load(io.BytesIO(answer), allow_pickle=False) as found:
        if "fault" in found:
            raise Fault(str(found["fault"]), int(found["status"]))
        parts = [found[name] for name in ("boxes", "scores", "landmarks", "crops", "matrices")]
        crops = [
            Crop(number, Face(tuple(box.tolist()), float(score), landmarks), crop, matrix)
            for number, (box, score, landmarks, crop, matrix) in enumerate(zip(*parts, strict=True), 1)
        ]
        return Read(found["image"], crops)


def look(data: bytes, mode: FaceMode, limits: Limits, size: int) -> Read:
    """What the process does with a picture. Raises Fault."""
    try:
        image = read_image(data, "the picture", limits.whole_pixels if mode == "whole" else limits.pixels)
        if mode == "whole":
            _check_padded(image.shape[0], image.shape[1], limits.whole_pixels)
        found = [] if mode == "whole" else plan(image, size, Wishes(faces=mode), DlibFrontal()).crops
    except ImageError as error:
        raise Fault(str(error), STATUS.get(error.fault, 422)) from None
    except MemoryError:
        raise Fault("the picture: needs too much memory", 413) from None
    if len(found) > limits.faces:
        raise Fault(f"the picture: has {len(found)} faces, more than {limits.faces}; send a part of it")
    return Read(image, found)


def _check_padded(height: int, width: int, pixels: int) -> None:
    """A picture one pixel across has few, and many once the network has both its sides."""
    padded = (height + -height % STEP) * (width + -width % STEP)
    if padded > max(pixels, STEP**2):
        raise Fault(f"the picture: {width}x{height} is more than {pixels} pixels once its sides are filled up", 413)


def main(descriptor: int, limits: Limits, size: int) -> None:
    """Answer until whoever started this is gone."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    pipe = Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):
        while True:
            mode, data = pipe.recv_bytes().decode(), pipe.recv_bytes()
            try:
                answer = _packed(look(data, mode, limits, size))  # type: ignore[arg-type]
            except Fault as fault:
                answer = _saved(fault=np.array(str(fault)), status=np.array(fault.status))
            pipe.send_bytes(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]), Limits.model_validate_json(sys.argv[2]), int(sys.argv[3]))
