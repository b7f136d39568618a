"""The direct assembly that speed is measured against restores the same picture, and so does every side of the race."""

import numpy as np
import pytest
import torch

from benchmarks import restore
from benchmarks.reference.restore import Direct
from osdface import bundle
from osdface.presets import preset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return restore.make(preset("tiny"), tmp_path_factory.mktemp("race"))


@torch.inference_mode()
def test_every_step_of_the_reference_is_the_generators_own(folder):
    _, generator = bundle.load(folder)
    direct, images = Direct(folder), restore.pictures(2, 64)
    z, prompt = generator.encode(images), generator.prompt(generator.codes(images))
    assert torch.equal(direct.embedder(images), generator.embedder(images))
    for ours, theirs in (
        (prompt, direct.adapter(direct.embedder(images))),
        (z, direct.encode(images)),
        (generator.denoise(z, prompt), direct.denoise(z, prompt)),
        (generator.decode(z).clamp(-1, 1), direct.decode(z)),
    ):
        assert theirs.std() > 0.01
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_all_sides_give_one_picture(folder, tmp_path):
    taken = {side: restore.run(side, folder, 2, 1, tmp_path / f"{side}.npy") for side in restore.SIDES}
    expected = np.load(tmp_path / "reference.npy")
    assert expected.std() > 0.01
    for side, one in taken.items():
        assert np.abs(np.load(tmp_path / f"{side}.npy") - expected).max() / 2 < restore.SAME
        assert one["memory"] > 0 < one["processor"]["total"]


def test_slower_larger_or_other_pictures_fail():
    row = {"side": "lean", "times as fast": 1.2, "of the reference's": 0.8, "largest difference": "1.0e-04"}
    assert restore.good(row)
    for worse in ({"times as fast": 1.1}, {"of the reference's": 0.95}, {"largest difference": "2.0e-03"}):
        assert not restore.good(row | worse)
