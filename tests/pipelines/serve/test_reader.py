"""Decoding in a process of its own: what a picture does to it, it does to nothing else."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from osdface import faces
from pipelines.serve import reader as reading
from pipelines.serve.reader import Fault, Reader, Readers
from tests.serving import LIMITS, encoded, picture


@pytest.fixture
def reader():
    made = Reader(LIMITS, 64)
    yield made
    made.close()


def test_a_picture_and_its_faces_come_back_as_they_are(reader):
    t1 = faces.photographs()["t1"]
    read = reader.read(encoded(t1), "auto")
    np.testing.assert_array_equal(read.image, t1)
    assert [crop.face.box for crop in read.crops] == [face.box for face in faces.DlibFrontal().detect(t1)]
    crop, matrix = faces.align(t1, read.crops[2].face, 64)
    np.testing.assert_array_equal(read.crops[2].crop, crop)
    np.testing.assert_array_equal(read.crops[2].matrix, matrix)
    assert reader.read(encoded(t1[:64, :64]), "whole").crops == []


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "is empty"),
        (b"text, which is no picture", 415, "is not a picture"),
        (encoded(picture())[:2000], 422, "is damaged"),
        (encoded(picture(0, 1500, 1001)), 413, "more than 1500000 pixels"),
    ],
)
def test_what_cannot_be_read_is_a_fault_and_the_process_goes_on(reader, data, status, words):
    reader.read(encoded(picture()), "auto")
    before = reader.process.pid
    with pytest.raises(Fault, match=words) as caught:
        reader.read(data, "auto")
    assert caught.value.status == status
    reader.read(encoded(picture()), "auto")
    assert reader.process.pid == before


def test_a_process_that_is_killed_is_started_again_and_the_picture_read(reader):
    reader.read(encoded(picture()), "auto")
    killed = reader.process
    killed.kill()
    killed.wait()
    np.testing.assert_array_equal(reader.read(encoded(picture(1)), "auto").image, picture(1))
    assert reader.process.pid != killed.pid


def test_a_picture_that_kills_the_process_twice_is_at_fault(reader):
    """Killed from outside at the moment when it has the picture, as a fault in a decoder would."""
    large = encoded(np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8))
    reader.read(encoded(picture()), "auto")
    killed, over = set(), threading.Event()

    def hunt():
        while not over.is_set():
            process = reader.process
            if process and process.pid not in killed and process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                killed.add(process.pid)
            time.sleep(0.001)

    hunter = threading.Thread(target=hunt)
    hunter.start()
    try:
        with pytest.raises(Fault, match="it ends the decoder"):
            reader.read(large, "auto")
    finally:
        over.set()
        hunter.join()
    assert len(killed) >= 2
    np.testing.assert_array_equal(reader.read(encoded(picture(2)), "auto").image, picture(2))


def test_a_picture_that_takes_too_long_is_at_fault(monkeypatch):
    reader = Reader(LIMITS.model_copy(update={"read_seconds": 0.001}), 64)
    try:
        with pytest.raises(Fault, match=r"takes more than 0\.001 s"):
            reader.read(encoded(picture()), "auto")
        reader.seconds = 30
        assert reader.read(encoded(picture()), "auto").crops == []
    finally:
        reader.close()


def test_memory_is_bounded(monkeypatch):
    """A process with too little for the picture says so, or ends; both are the picture's fault here."""
    monkeypatch.setattr(reading, "MEMORY", 0)  # of this process's module; the child has its own
    reader = Reader(LIMITS, 64)
    try:
        reader.read(encoded(picture()), "auto")
        with open(f"/proc/{reader.process.pid}/limits") as limits:
            bound = next(line for line in limits if line.startswith("Max address space"))
        assert str(4 * 2**30) in bound
    finally:
        reader.close()


def test_several_readers_read_at_the_same_time():
    readers = Readers(2, LIMITS, 64)
    with readers.one() as one, readers.one() as other:
        assert one is not other
        assert readers.free.empty()
    assert readers.free.qsize() == 2
