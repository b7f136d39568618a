"""Picture in, picture out, with a small model of random weights."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch

from osdface import bundle, faces, presets
from osdface.base import load_base, new_base, save_base
from osdface.errors import UserError
from osdface.generator import OneStepGenerator
from osdface.restorer import Restorer
from osdface.vre import VisualEmbedder

TINY = presets.preset("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle whose adapters are not zero."""
    made = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    save_base(new_base(TINY), made / "base")
    generator = OneStepGenerator.from_parts(TINY, load_base(made / "base"), VisualEmbedder(TINY.vre), seed=5)
    for name, parameter in generator.named_parameters():
        if "lora_B" in name or name.startswith("adapter"):
            torch.nn.init.normal_(parameter, std=0.05)
    bundle.save(generator, made / "model", preset="tiny", seed=5, base=made / "base", provenance=bundle.Provenance())
    return made / "model"


@pytest.fixture(scope="module")
def restorer(folder):
    return Restorer.load(folder)


@pytest.fixture(scope="module")
def t1():
    return faces.photographs()["t1"]


@pytest.fixture
def passes(restorer, monkeypatch):
    """The batches that go through the network from here on."""
    seen, restore = [], restorer.restore
    monkeypatch.setattr(restorer, "restore", lambda x: seen.append(len(x)) or restore(x))
    return seen


def noise(height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_a_square_picture_comes_back_at_the_models_size_others_at_their_own(restorer):
    assert restorer.size == TINY.size
    for height, width in ((64, 64), (1, 1), (96, 96), (65, 40), (1, 7)):
        restored = restorer.restore(torch.rand(2, 3, height, width))
        assert restored.shape[2:] == ((64, 64) if height == width else (height, width))
        assert restored.min() >= 0
        assert restored.max() <= 1


def test_squares_are_scaled_with_aligned_corners_as_published(restorer):
    small = torch.rand(1, 3, 32, 32)
    scaled = torch.nn.functional.interpolate(small, (64, 64), mode="bilinear", align_corners=True)
    torch.testing.assert_close(restorer.restore(small), restorer.restore(scaled))


def test_padding_repeats_the_border_and_is_cut_off_again(restorer):
    picture = torch.rand(1, 3, 60, 64)
    padded = torch.cat([picture, picture[:, :, -1:].expand(-1, -1, 4, -1)], 2)
    torch.testing.assert_close(restorer.restore(picture), restorer.restore(padded)[:, :, :60])


def test_each_of_a_batch_is_restored_as_if_alone(restorer):
    images = torch.rand(3, 3, 64, 64)
    alone = torch.cat([restorer.restore(image[None]) for image in images])
    torch.testing.assert_close(restorer.restore(images), alone, atol=1e-4, rtol=1e-4)
    assert restorer.codes(images).shape == (3, TINY.vre.prompts, TINY.vre.width)


def test_the_same_picture_twice_gives_the_same(restorer):
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(restorer.restore(image), restorer.restore(image))


def test_a_picture_without_a_face_stays_bit_for_bit(restorer, passes):
    (result,) = restorer([noise()])
    np.testing.assert_array_equal(result.image, noise())
    assert result.faces == []
    assert passes == []


def test_no_pictures_give_no_results(restorer):
    assert restorer([]) == []
    assert restorer([], "whole") == []


def test_every_face_of_a_photograph_is_pasted_back_left_to_right(restorer, t1):
    (result,) = restorer([t1])
    assert result.image.shape == t1.shape
    assert result.image.dtype == np.uint8
    assert [face.box for face in result.faces] == [face.box for face in faces.DlibFrontal().detect(t1)]
    assert len(result.faces) == 6
    for face in result.faces:
        left, top, right, bottom = face.box
        assert face.crop.shape == (64, 64, 3)
        assert (result.image != t1)[top:bottom, left:right].any(-1).mean() > 0.9
    np.testing.assert_array_equal(result.image[:40], t1[:40])


def test_faces_of_several_pictures_share_batches(restorer, passes, t1, monkeypatch):
    pictures = [t1, noise(), t1[:, :640], noise(70, 50)]
    together = restorer(pictures)
    counts = [len(result.faces) for result in together]
    assert counts[0] == 6
    assert counts[1] == counts[3] == 0
    assert passes == [sum(counts)]
    monkeypatch.setattr(restorer, "batch", 4)
    for one, other in zip(restorer(pictures), together, strict=True):
        assert np.abs(one.image.astype(int) - other.image).max() <= 1
    assert passes[1:] == [4] * (sum(counts) // 4) + [sum(counts) % 4] * (sum(counts) % 4 > 0)


def test_an_aligned_face_is_restored_as_a_whole(restorer, t1):
    crop, _ = faces.align(t1, faces.DlibFrontal().detect(t1)[2], 128)
    told, found = restorer([crop], "aligned")[0], restorer([crop])[0]
    np.testing.assert_array_equal(told.image, found.image)  # "auto" sees that it is one
    assert told.faces[0].box == (0, 0, 128, 128)
    assert told.image.shape == (128, 128, 3)
    small = torch.from_numpy(faces.whole(crop, 64)[1]).permute(2, 0, 1)[None] / 255
    expected = (restorer.restore(small)[0].permute(1, 2, 0) * 255).round().byte()
    np.testing.assert_array_equal(told.faces[0].crop, expected.numpy())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (1, 1), (33, 90), (200, 100)])
def test_whatever_is_called_aligned_keeps_its_size(restorer, height, width):
    (result,) = restorer([noise(height, width)], "aligned")
    assert result.image.shape == (height, width, 3)
    assert len(result.faces) == 1


def test_whole_is_one_pass_over_the_picture(restorer):
    (result,) = restorer([noise()], "whole")
    expected = restorer.restore(torch.from_numpy(noise()).permute(2, 0, 1)[None] / 255)
    np.testing.assert_array_equal(result.image, (expected[0].permute(1, 2, 0) * 255).round().byte().numpy())
    assert result.faces == []


def test_untrained_differs_from_trained(folder, restorer):
    image = torch.rand(1, 3, 64, 64)
    untrained = Restorer.load(folder, trained=False)
    assert (untrained.restore(image) - restorer.restore(image)).abs().max() > 1e-2


def test_half_precision_is_near(folder, restorer):
    image = torch.rand(1, 3, 64, 64)
    half = Restorer.load(folder, dtype="bfloat16").restore(image)
    assert half.dtype == torch.float32
    assert (half - restorer.restore(image)).abs().mean() < 0.02


@pytest.mark.filterwarnings("error")
def test_a_picture_that_must_not_be_written_to_is_fine(restorer):
    """Decoded pictures are read-only; torch warns of sharing their memory."""
    image = noise()
    image.flags.writeable = False
    for mode in ("auto", "aligned", "whole"):
        restorer([image], mode)


SHELF: dict = {}


def shelf(ref):
    """A resolver as another package would offer it."""
    return SHELF.get(ref)


def test_references(folder, monkeypatch):
    def entries(group):
        assert group == "osdface.resolvers"
        return [EntryPoint("a", "not_installed.registry:resolve", group), EntryPoint("b", f"{__name__}:shelf", group)]

    monkeypatch.setattr(bundle, "entry_points", entries)
    monkeypatch.setitem(SHELF, "shelf:best", folder)
    assert bundle.resolve(folder) == bundle.resolve(str(folder)) == folder
    assert bundle.resolve("shelf:best") == folder
    assert Restorer.load("shelf:best").path == folder
    with pytest.raises(UserError, match="model 'shelf:none' not found: give a bundle folder, models:/NAME/VERSION"):
        bundle.resolve("shelf:none")
