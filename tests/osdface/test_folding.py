"""What is folded computes what was there before: on the small preset, and on one shaped as Stable Diffusion."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from osdface import winograd
from osdface.errors import UserError
from osdface.folding import FoldedGenerator, fold, fold_time
from osdface.fused import FusedResBlock, FusedUpsample, group_scale
from osdface.generator import OneStepGenerator
from osdface.lora import lora_config
from osdface.presets import Preset, preset
from osdface.profile import fresh_generator

TOLERANCE = 1e-4  # float32 rounds anew in every layer; in float64, below, it is exact


def wide() -> Preset:
    """Stable Diffusion's kinds of blocks, four levels of each, wide enough for the fast convolutions."""
    tiny = preset("tiny")
    vae = tiny.vae | {
        "block_out_channels": [128, 128, 128, 128],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "mid_block_add_attention": True,
    }
    unet = tiny.unet | {
        "block_out_channels": [128, 160],
        "attention_head_dim": [2, 4],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    return tiny.model_copy(update={"vae": vae, "unet": unet})


def generator(shape: Preset) -> OneStepGenerator:
    """Random weights, LoRA and biases that all make a difference."""
    torch.manual_seed(3)
    made = fresh_generator(shape)
    made.unet.add_adapter(lora_config(shape.lora))
    for name, parameter in made.unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return made.requires_grad_(False)


@pytest.fixture(params=["tiny", "wide"])
def pair(request) -> tuple[OneStepGenerator, FoldedGenerator, torch.Tensor]:
    shape = preset("tiny") if request.param == "tiny" else wide()
    before = generator(shape)
    return before, fold(copy.deepcopy(before)), torch.rand(3, 3, 64, 64) * 2 - 1


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = TOLERANCE) -> bool:
    return float((a - b).abs().max()) <= tolerance


@torch.inference_mode()
def test_every_step_is_what_it_was(pair):
    before, folded, images = pair
    noise = torch.randn(before.latent_shape(images))
    assert not any(isinstance(module, nn.Linear) and "time_emb" in name for name, module in folded.named_modules())
    assert folded.latent_shape(images) == before.latent_shape(images)
    z, prompt = before.encode(images), before.prompt(before.codes(images))
    assert torch.equal(folded.prompt(folded.codes(images)), prompt)
    assert close(folded.encode(images), z)
    assert close(folded.encode(images, noise), before.encode(images, noise))
    assert close(folded.denoise(z, prompt), before.denoise(z, prompt))
    assert close(folded.decode(z), before.decode(z))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@torch.inference_mode()
def test_the_picture_is_what_it_was(pair, dtype, tolerance):
    """In float64 folding is exact; in float32 every layer rounds anew, and an untrained network magnifies it."""
    before, _, images = pair
    before, images = copy.deepcopy(before).to(dtype), images.to(dtype)
    folded = fold(copy.deepcopy(before))
    after, expected = folded(images), before(images)
    for name in ("image", "latent", "prompt"):
        assert getattr(expected, name).std() > 0.01
        assert close(getattr(after, name), getattr(expected, name), tolerance), name


@torch.inference_mode()
def test_lora_time_and_step_are_each_in_the_weights(pair):
    before, folded, images = pair
    z, prompt = before.encode(images), before.prompt(before.codes(images))
    expected = before.denoise(z, prompt)
    for undo in ("lora", "time", "step"):
        other = copy.deepcopy(before)
        if undo == "lora":
            other.unet.disable_adapters()
        elif undo == "time":
            other.timestep += 1
        else:
            other.alpha_bar *= 0.999
        assert not close(other.denoise(z, prompt), expected), undo  # so that agreement means something
    assert close(folded.denoise(z, prompt), expected)


def test_the_generator_is_in_the_format_and_kinds_it_should_be(pair):
    _, folded, _ = pair
    latent = torch.zeros(1, folded.vae.config.latent_channels, 16, 16)
    assert folded.decode(latent).is_contiguous(memory_format=torch.channels_last)
    kinds = [type(module) for module in folded.modules()]
    assert kinds.count(FusedResBlock) >= 10
    assert ResnetBlock2D not in kinds
    assert FusedUpsample in kinds
    assert not any("lora" in name for name, _ in folded.named_parameters())


def test_a_unet_of_another_kind_is_refused():
    unet = generator(preset("tiny")).unet
    next(module for name, module in unet.named_modules() if name.endswith("resnets.0")).time_embedding_norm = "ada"
    with pytest.raises(UserError, match=r"down_blocks\.0\.resnets\.0"):
        fold_time(unet, torch.zeros(1, 128))


@pytest.mark.parametrize(
    ("batch", "height", "width", "double"),
    [(1, 32, 32, False), (2, 36, 68, False), (1, 16, 24, True), (2, 18, 34, True)],
)
@torch.inference_mode()
def test_winograd_is_the_convolution(batch, height, width, double, monkeypatch):
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 160, 3, padding=1)
    x = torch.randn(batch, 128, height, width)
    monkeypatch.setattr(winograd, "BAND", 36 * 128 * 40)  # several bands, the last of them smaller
    assert winograd.suits(x, conv, double)
    exact = copy.deepcopy(conv).double()(F.interpolate(x, scale_factor=2.0).double() if double else x.double())
    got = winograd.convolve(x, conv, double=double)
    assert float((got - exact).abs().max()) < 1e-4 * float(exact.std())
    assert got.is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_what_comes_before_a_convolution_is_not_applied_to_its_padding():
    conv = nn.Conv2d(128, 128, 3, padding=1, bias=False)
    x = torch.randn(2, 128, 32, 32)
    shift = torch.tensor([1.0, 5.0])
    got = winograd.convolve(x, conv, lambda rows, index: rows + shift[index])
    assert torch.allclose(got, conv(x + shift.view(2, 1, 1, 1)), atol=2e-4)


def test_winograd_is_left_where_it_does_not_hold():
    x = torch.zeros(1, 128, 64, 64)
    assert winograd.suits(x, nn.Conv2d(128, 128, 3, padding=1))
    for other in (
        nn.Conv2d(128, 128, 3, padding=0), nn.Conv2d(128, 128, 3, padding=1, stride=2), nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 3, padding=1, groups=2), nn.Conv2d(128, 128, 3, padding=1, dilation=2),
        nn.Conv2d(128, 64, 3, padding=1),
    ):  # fmt: skip
        assert not winograd.suits(x, other)
    assert not winograd.suits(x.bfloat16(), nn.Conv2d(128, 128, 3, padding=1))
    assert not winograd.suits(x[..., :62], nn.Conv2d(128, 128, 3, padding=1))


@torch.inference_mode()
def test_group_norm_as_scale_and_shift():
    norm = nn.GroupNorm(8, 32)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 32, 80, 70) * torch.rand(1, 32, 1, 1) + 30  # far from zero, where squares cancel
    scale, shift = group_scale(x, norm)
    got = x * scale[..., None, None] + shift[..., None, None]
    assert torch.allclose(got, norm.double()(x.double()).float(), atol=1e-4)


@pytest.mark.full
@torch.inference_mode()
def test_a_batch_is_its_pictures_one_by_one_also_in_fixed_sizes(pair):
    _, folded, images = pair
    images = torch.cat([images, images.flip(-1)])[:5]
    noise = torch.randn(folded.latent_shape(images))
    one_by_one = torch.cat([folded(images[i : i + 1], noise[i : i + 1]).image for i in range(5)])
    assert close(folded(images, noise).image, one_by_one, 1e-4)
    met = set()
    folded.compile(backend="eager", batches=(2, 1))
    folded.unet.register_forward_pre_hook(lambda _, given: met.add(len(given[0])))
    assert close(folded(images, noise).image, one_by_one, 1e-4)
    assert met == {1, 2}


@torch.inference_mode()
def test_tiles_show_no_seam():
    folded = fold(generator(wide()))
    y, x = torch.meshgrid(torch.linspace(0, 9, 256), torch.linspace(0, 7, 256), indexing="ij")
    images = torch.stack([x.sin(), y.cos(), (x + y).sin()])[None]
    whole = folded.decode(folded.encode(images))
    folded.tile(128)
    tiled = folded.decode(folded.encode(images))
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    steps = (tiled[..., 1:] - tiled[..., :-1]).abs().mean((0, 1, 2))
    seams = steps[[95, 96, 127, 128, 191, 192, 223, 224]]  # where tiles of 128 begin, and where their overlaps end
    usual = (whole[..., 1:] - whole[..., :-1]).abs().mean((0, 1, 2))
    assert seams.max() < 1.5 * usual.max()


def test_tiles_that_cannot_be_are_one_sentence():
    folded = fold(generator(preset("tiny")))
    with pytest.raises(UserError, match="66 pixels"):
        folded.tile(66)
