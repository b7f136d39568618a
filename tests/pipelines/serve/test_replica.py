"""The batched model without Ray around it."""

import asyncio
import io

import numpy as np
import pytest
from PIL import Image

from osdface.restorer import Restorer
from pipelines.serve.replica import Replica, Task


@pytest.fixture
def replica(bundle_folder):
    return Replica(str(bundle_folder), 10_000, 1)


def encoded(value, height=40, width=60) -> bytes:
    data = io.BytesIO()
    noise = np.random.default_rng(value).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(data, "PNG")
    return data.getvalue()


def test_a_picture_at_fault_does_not_touch_the_others(replica):
    good = encoded(1)
    tasks = [
        Task(good, "aligned", "png"),
        Task(good[:500], "aligned", "png"),
        Task(encoded(2, 101, 100), "auto", "jpeg"),
        Task(good, "whole", "jpeg"),
    ]
    first, damaged, large, last = replica.answers(tasks)
    assert "is damaged" in damaged.fault
    assert large.fault == "the picture: 100x101 is more than 10000 pixels"
    assert (first.fault, first.faces) == (last.fault, last.faces + 1) == ("", 1)
    assert [Image.open(io.BytesIO(a.picture)).format for a in (first, last)] == ["PNG", "JPEG"]


def test_one_network_pass_for_all_aligned_faces_of_a_batch(replica, monkeypatch):
    shapes, restore = [], replica.restorer.restore
    monkeypatch.setattr(replica.restorer, "restore", lambda x, *rest: shapes.append(tuple(x.shape)) or restore(x))
    replica.answers([Task(encoded(i, 30 + i), "aligned", "png") for i in range(4)])
    assert shapes == [(4, 3, 64, 64)]


def test_a_picture_that_the_model_cannot_restore_fails_alone(replica, monkeypatch):
    def refusing(self, images, *arguments, call=Restorer.__call__, **options):
        if any(len(image) == 41 for image in images):
            raise RuntimeError("out of memory")
        return call(self, images, *arguments, **options)

    monkeypatch.setattr(Restorer, "__call__", refusing)
    good, bad = Task(encoded(0), "aligned", "png"), Task(encoded(1, 41), "aligned", "png")
    answers = replica.answers([good, bad, good])
    assert [answer.fault for answer in answers] == ["", "the picture: the model cannot restore it", ""]


def test_a_model_that_fails_by_itself_is_not_blamed_on_a_picture(replica, monkeypatch):
    def fail(*_):
        raise RuntimeError("the device is gone")

    asyncio.run(replica.check_health())
    monkeypatch.setattr(replica.restorer, "restore", fail)
    with pytest.raises(RuntimeError, match="the device is gone"):
        replica.answers([Task(encoded(0), "aligned", "png")])
    with pytest.raises(RuntimeError, match="the device is gone"):
        asyncio.run(replica.check_health())


def test_what_a_format_cannot_hold_is_a_fault(replica):
    wide = io.BytesIO()
    Image.new("RGB", (70_000, 1)).save(wide, "PNG")
    replica.max_pixels = 70_000
    (answer,) = replica.answers([Task(wide.getvalue(), "auto", "jpeg")])
    assert answer.fault.startswith("the picture: cannot be written as jpeg")
