"""Picture in, picture out, with a small model of random weights."""

import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from PIL import Image

import osdface
from osdface import bundle, faces, identity, presets
from osdface.base import load_base, new_base, save_base
from osdface.errors import UsageError, UserError
from osdface.folding import FoldedGenerator
from osdface.generator import OneStepGenerator
from osdface.prompts.vre import VisualEmbedder
from osdface.restorer import Restorer

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
    monkeypatch.setattr(restorer, "restore", lambda x, *rest: seen.append(len(x)) or restore(x, *rest))
    return seen


def arrays(restorer, pictures, mode="auto"):
    return restorer(pictures, mode, output_type="array")


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
    (result,) = arrays(restorer, [noise()])
    np.testing.assert_array_equal(result.image, noise())
    assert result.faces == []
    assert passes == []


def test_no_pictures_give_no_results(restorer):
    assert arrays(restorer, []) == []
    assert arrays(restorer, [], "whole") == []


def test_every_face_of_a_photograph_is_pasted_back_left_to_right(restorer, t1):
    (result,) = arrays(restorer, [t1])
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
    monkeypatch.setattr(restorer, "batch", 16)
    together = arrays(restorer, pictures)
    counts = [len(result.faces) for result in together]
    assert counts[0] == 6
    assert counts[1] == counts[3] == 0
    assert passes == [sum(counts)]
    monkeypatch.setattr(restorer, "batch", 4)
    for one, other in zip(arrays(restorer, pictures), together, strict=True):
        assert np.abs(one.image.astype(int) - other.image).max() <= 1
    assert passes[1:] == [4] * (sum(counts) // 4) + [sum(counts) % 4] * (sum(counts) % 4 > 0)


def test_an_aligned_face_is_restored_as_a_whole(restorer, t1):
    crop, _ = faces.align(t1, faces.DlibFrontal().detect(t1)[2], 128)
    told, found = arrays(restorer, [crop], "aligned")[0], arrays(restorer, [crop])[0]
    np.testing.assert_array_equal(told.image, found.image)  # "auto" sees that it is one
    assert told.faces[0].box == (0, 0, 128, 128)
    assert told.image.shape == (128, 128, 3)
    small = torch.from_numpy(faces.whole(crop, 64)[1]).permute(2, 0, 1)[None] / 255
    expected = (restorer.restore(small)[0].permute(1, 2, 0) * 255).round().byte()
    np.testing.assert_array_equal(told.faces[0].crop, expected.numpy())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (1, 1), (33, 90), (200, 100)])
def test_whatever_is_called_aligned_keeps_its_size(restorer, height, width):
    (result,) = arrays(restorer, [noise(height, width)], "aligned")
    assert result.image.shape == (height, width, 3)
    assert len(result.faces) == 1


def test_whole_is_one_pass_over_the_picture(restorer):
    (result,) = arrays(restorer, [noise()], "whole")
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
        arrays(restorer, [image], mode)


def test_one_picture_gives_one_result_a_list_gives_a_list(restorer, tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    one = restorer(noise(), "whole")
    assert isinstance(one.image, Image.Image)
    several = restorer([Image.fromarray(noise()), tmp_path / "a.png"], faces="whole", output_type="pil")
    assert isinstance(several, list)
    for other in several:
        np.testing.assert_array_equal(np.asarray(other.image), np.asarray(one.image))
    tensor = restorer(noise(), "whole", output_type="pt").image
    torch.testing.assert_close(tensor, torch.from_numpy(np.array(one.image)).permute(2, 0, 1) / 255)


def test_strength_is_the_part_of_the_change_that_is_made(restorer):
    picture = noise()
    full = restorer(picture, "aligned", output_type="array").image.astype(float)
    half = restorer(picture, "aligned", 0.5, "array")
    assert np.abs(half.image - (picture + full) / 2).max() <= 1
    np.testing.assert_array_equal(half.faces[0].crop, restorer(picture, "aligned", output_type="array").faces[0].crop)
    np.testing.assert_array_equal(restorer(picture, "aligned", 0.0, "array").image, picture)
    square = noise(32, 32)
    scaled = torch.nn.functional.interpolate(
        torch.from_numpy(square).permute(2, 0, 1)[None].float(), (64, 64), mode="bilinear", align_corners=True
    )
    unchanged = restorer(square, "whole", 0.0, "array").image
    np.testing.assert_array_equal(unchanged, scaled[0].permute(1, 2, 0).round().byte().numpy())


def test_a_face_has_landmarks_and_how_much_it_is_still_that_persons(restorer, t1, monkeypatch):
    found = faces.DlibFrontal().detect(t1)
    result = restorer(t1, output_type="array")
    network = identity.DlibIdentity()
    for face, known in zip(result.faces, found, strict=True):
        np.testing.assert_array_equal(face.landmarks, known.landmarks)
        crops = np.stack([faces.align(t1, known, 64)[0], face.crop])
        chips = identity.chips_from_aligned(torch.from_numpy(crops).permute(0, 3, 1, 2) / 255)
        assert face.identity == pytest.approx(float(torch.cosine_similarity(*network(chips), dim=0)), abs=1e-4)
        assert face.identity < 0.999
    assert [face.identity for face in restorer(t1, identity=False).faces] == [None] * 6
    monkeypatch.setattr(identity, "_network", lambda: None)  # dlib's weights are not there
    assert [face.identity for face in restorer(t1).faces] == [None] * 6
    assert identity.similarities([noise(64, 64)], [noise(64, 64)]) == [None]


def test_the_same_face_is_wholly_the_same(t1):
    crop = faces.align(t1, faces.DlibFrontal().detect(t1)[0], 64)[0]
    assert identity.similarities([crop], [crop]) == [pytest.approx(1, abs=1e-5)]


def test_codes_are_the_prompts_that_restore_uses(restorer):
    seen = []
    hook = restorer.generator.embedder.register_forward_hook(lambda *call: seen.append(call[2]))
    for shape in ((48, 48), (60, 40)):
        images = torch.rand(2, 3, *shape)
        restorer.restore(images)
        used = seen[-1]
        assert torch.equal(restorer.codes(images), used)
    hook.remove()


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_sample_of_the_latent_follows_its_generator(folder, restorer):
    sampling = Restorer.from_pretrained(folder, latent="sample")
    images = torch.rand(3, 3, 64, 64)
    drawn = sampling.restore(images, generator=seeded())
    assert torch.equal(drawn, sampling.restore(images, generator=seeded()))
    assert not torch.equal(drawn, sampling.restore(images, generator=seeded(8)))
    assert not torch.equal(drawn, restorer.restore(images))
    assert torch.equal(restorer.restore(images, generator=seeded()), restorer.restore(images))  # the mode draws nothing
    state = seeded()
    alone = torch.cat([sampling.restore(image[None], state) for image in images])
    torch.testing.assert_close(drawn, alone, atol=1e-4, rtol=1e-4)
    z = torch.stack([torch.randn(8, 32, 32, generator=state) for state in [seeded()] for _ in range(3)])
    expected = (sampling.generator(images * 2 - 1, z).image / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=1e-4)
    one, same = (sampling(noise(), "aligned", generator=seeded(), output_type="array").image for _ in range(2))
    np.testing.assert_array_equal(one, same)


def test_compiled_networks_give_the_same(folder, restorer):
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph

    compiled = Restorer.load(folder)
    assert compiled.compile(backend=backend) is compiled
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(compiled.restore(images), restorer.restore(images), atol=1e-4, rtol=1e-4)
    assert len(calls) >= 4


def test_a_folded_one_gives_the_same_with_tiles_too(folder, restorer):
    folded, images = Restorer.load(folder, execution="folded"), torch.rand(2, 3, 64, 48)
    assert isinstance(folded.generator, FoldedGenerator)
    torch.testing.assert_close(folded.restore(images), restorer.restore(images), atol=1e-3, rtol=0)
    large = torch.rand(1, 3, 64, 160)
    tiled = folded.enable_tiling().restore(large)
    assert not torch.equal(tiled, Restorer.load(folder, execution="folded").restore(large))
    torch.testing.assert_close(tiled, Restorer.load(folder).enable_tiling().restore(large), atol=1e-3, rtol=0)


def test_a_lean_one_gives_the_same_and_says_what_it_is_not_for(folder, restorer, tmp_path):
    lean, images = Restorer.load(folder, execution="lean"), torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(lean.restore(images), restorer.restore(images), atol=1e-3, rtol=0)
    assert lean.config == restorer.config
    for wrong in ({"dtype": "bfloat16"}, {"trained": False}):
        with pytest.raises(UsageError, match="lean' is for trained models on a CPU in float32"):
            Restorer.load(folder, execution="lean", **wrong)
    with pytest.raises(UsageError, match="execution 'fast' does not exist; known: plain, folded, lean"):
        Restorer.load(folder, execution="fast")
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / bundle.ADAPTER).write_bytes(b"x")
    with pytest.raises(UserError, match="differs from what"):
        Restorer.load(damaged, execution="lean")


def test_tiles_are_for_pictures_larger_than_the_bases(folder, restorer):
    tiled = Restorer.load(folder).enable_tiling()
    small, large = torch.rand(1, 3, 64, 48), torch.rand(1, 3, 64, 160)
    assert torch.equal(tiled.restore(small), restorer.restore(small))
    in_tiles, at_once = tiled.restore(large), restorer.restore(large)
    assert in_tiles.shape == large.shape
    assert not torch.equal(in_tiles, at_once)


def test_devices_and_dtypes(folder):
    moved = Restorer.load(folder, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert moved.generator.unet.dtype == torch.bfloat16
    assert moved.to(dtype="float32") is moved
    assert moved.to("cpu").generator.unet.dtype == torch.float32
    with pytest.raises(UsageError, match="dtype 'int8' does not exist here; known: float32, bfloat16, float16"):
        moved.to(dtype="int8")
    with pytest.raises(UserError, match="device 'nowhere' cannot be used here"):
        moved.to("nowhere")


def test_what_cannot_be_asked_for_is_said(folder, restorer):
    with pytest.raises(UsageError, match="latent 'mean' does not exist; known: mode, sample"):
        Restorer.load(folder, latent="mean")
    with pytest.raises(UsageError, match="faces 'some' does not exist; known: auto, whole, aligned"):
        restorer(noise(), "some")
    with pytest.raises(UsageError, match="strength 2"):
        restorer(noise(), strength=2)
    for wrong in (torch.rand(3, 64, 64), torch.rand(1, 1, 64, 64), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(UsageError, match=r"give pictures \(B, 3, H, W\), floats in \[0, 1\]"):
            restorer.restore(wrong)


def test_the_package_names_it_without_importing_torch():
    program = "import sys, osdface; assert 'torch' not in sys.modules; from osdface import Restorer; Restorer.load"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert osdface.Restorer is Restorer
    with pytest.raises(AttributeError, match="no attribute 'Restorator'"):
        osdface.Restorator  # noqa: B018


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
    with pytest.raises(
        UserError, match="model 'shelf:none' not found: give a bundle folder, tiny, models:/NAME/VERSION"
    ):
        bundle.resolve("shelf:none")
