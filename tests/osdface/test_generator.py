import copy
from collections import Counter

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from osdface import presets
from osdface.base import Base, new_base
from osdface.discriminators import LatentDiscriminator, PatchDiscriminator
from osdface.errors import UserError
from osdface.generator import OneStepGenerator
from osdface.prompts.vre import VisualEmbedder
from osdface.prompts.vre_cat import SideBySide

TINY = presets.preset("tiny")


@pytest.fixture(scope="module")
def base() -> Base:
    torch.manual_seed(0)
    return new_base(TINY)


def generator(base: Base, seed: int = 0) -> OneStepGenerator:
    return OneStepGenerator.from_parts(TINY, copy.deepcopy(base), VisualEmbedder(TINY.vre), seed).eval()


def randomise_lora(model: torch.nn.Module) -> None:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)


def test_the_papers_generator_has_the_expected_parameters():
    preset = presets.preset("sd21")
    with torch.device("meta"):
        parts = new_base(preset)
        discriminator = LatentDiscriminator(parts.unet, preset.latent_discriminator)
        full = OneStepGenerator.from_parts(preset, parts, VisualEmbedder(preset.vre))
    count = sum(p.numel() for p in full.parameters())
    trainable = sum(p.numel() for p in full.parameters() if p.requires_grad)
    assert trainable == 16_217_152 + 394_496  # LoRA on all listed modules, and the adapter
    assert count - trainable == 83_653_863 + 865_910_724 + 29_172_416
    assert all("lora" in n or n.startswith("head") for n, p in discriminator.named_parameters() if p.requires_grad)


def test_only_lora_and_adapter_are_trained(base):
    model = generator(base)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or name.startswith("adapter.") for name in names)
    model(torch.rand(1, 3, 64, 64)).image.square().mean().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(names)


def test_untrained_lora_changes_nothing_and_a_trained_one_adds_alpha_over_rank_times_b_a(base):
    z, prompt = torch.randn(1, 8, 32, 32), torch.randn(1, 24, 64)
    model = generator(base)
    plain = base.unet(z, 399, prompt).sample
    torch.testing.assert_close(model.unet(z, 399, prompt).sample, plain)
    randomise_lora(model)
    merged: UNet2DConditionModel = copy.deepcopy(base.unet)
    scale = TINY.lora.alpha / TINY.lora.rank
    for name, module in model.unet.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            delta = scale * (b.flatten(1) @ a.flatten(1))
            weight = merged.get_submodule(name).weight
            weight.data += delta.reshape(weight.shape)
    changed = model.unet(z, 399, prompt).sample
    assert (changed - plain).abs().max() > 1e-2
    torch.testing.assert_close(changed, merged(z, 399, prompt).sample, atol=1e-4, rtol=1e-4)
    model.unet.fuse_lora()
    model.unet.unload_lora()
    torch.testing.assert_close(model.unet(z, 399, prompt).sample, changed, atol=1e-4, rtol=1e-4)


def test_forward_is_equations_1_to_4(base):
    shape, lq = TINY.model_copy(update={"timestep": 399}), torch.rand(2, 3, 64, 64) * 2 - 1
    model = OneStepGenerator.from_parts(shape, copy.deepcopy(base), VisualEmbedder(TINY.vre)).eval()
    z = model.vae.encode(lq).latent_dist.mode() * 0.18215
    prompt = model.adapter(model.embedder(lq))
    epsilon = model.unet(z, 399, prompt).sample
    clean = (z - 0.75757104 * epsilon) / 0.65275270
    expected = model.vae.decode(clean / 0.18215).sample
    restored = model(lq)
    torch.testing.assert_close(restored.image, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(restored.latent, clean, atol=1e-5, rtol=1e-5)


def test_a_latent_is_the_mode_or_a_sample_of_the_vaes_distribution(base):
    model, images = generator(base), torch.rand(2, 3, 64, 48) * 2 - 1
    posterior = model.vae.encode(images).latent_dist
    torch.testing.assert_close(model.encode(images), posterior.mean * 0.18215)
    noise = torch.randn(model.latent_shape(images))
    assert noise.shape == (2, 8, 32, 24)
    sample = (posterior.mean + torch.exp(0.5 * posterior.logvar) * noise) * 0.18215
    torch.testing.assert_close(model.encode(images, noise), sample)


def test_batches_equal_one_by_one(base):
    model, lq = generator(base), torch.rand(3, 3, 64, 64) * 2 - 1
    together = model(lq).image
    for i in range(3):
        torch.testing.assert_close(model(lq[i : i + 1]).image[0], together[i], atol=1e-4, rtol=1e-4)


def test_the_seed_decides_the_untrained_generator(base):
    one, same, other = (generator(base, seed).adapter.conv1.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_checkpointing_keeps_little_of_unet_and_decoder_and_changes_no_gradient(base):
    """Also with the VAE frozen and in eval mode, through whose decoder the gradients go."""
    blocks = ("vae.decoder.up_blocks.0", "vae.decoder.mid_block", "unet.down_blocks.0", "unet.mid_block")
    lq = torch.rand(1, 3, 64, 64) * 2 - 1
    start = generator(base)
    randomise_lora(start)

    def step(checkpointed: bool) -> tuple[Counter, int, dict[str, Tensor]]:
        """How often a layer of each block ran, numbers kept for the backward pass, and the gradients."""
        model, runs, kept = copy.deepcopy(start), Counter(), {}
        if checkpointed:
            model.enable_gradient_checkpointing()
        for block in blocks:
            layer = model.get_submodule(f"{block}.resnets.1" if "mid" in block else f"{block}.resnets.0")
            layer.register_forward_pre_hook(lambda *call, block=block: runs.update([block]))

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            image = model(lq).image
        image.square().mean().backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
        return runs, sum(kept.values()), gradients

    (once, everything, plain), (twice, little, checkpointed) = step(False), step(True)
    assert (set(once.values()), set(twice.values())) == ({1}, {2})
    assert little < everything / 2
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-7, rtol=1e-5)


def test_a_vre_of_another_shape_is_refused(base):
    other = VisualEmbedder(TINY.vre.model_copy(update={"codes": 32}))
    with pytest.raises(UserError, match="VRE"):
        OneStepGenerator.from_parts(TINY, base, other)


def test_pairs_are_a_row_and_the_one_half_the_rows_later():
    codes = torch.randn(2, 6, 5)
    paired = SideBySide()(codes)
    assert paired.shape == (2, 3, 10)
    for i in range(3):
        torch.testing.assert_close(paired[:, i], torch.cat([codes[:, i], codes[:, i + 3]], -1))


def test_the_second_normalisation_is_before_the_encoder_alone():
    torch.manual_seed(0)
    once = VisualEmbedder(TINY.vre)
    twice = VisualEmbedder(TINY.vre.model_copy(update={"input": "twice"}))
    twice.load_state_dict(once.state_dict())
    lq = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(twice(lq), once(2 * lq - 1))
    assert not torch.equal(twice(lq), once(lq))


def test_the_noise_level_keeps_its_precision_in_half(base):
    assert generator(base).to(torch.bfloat16).alpha_bar == base.scheduler.alphas_cumprod[TINY.timestep]


def test_latent_discriminator_is_the_unets_encoder_half_with_a_patch_head(base):
    judge = LatentDiscriminator(base.unet, TINY.latent_discriminator)
    z, t, prompt = torch.randn(2, 8, 32, 32), torch.tensor([3, 700]), torch.randn(2, 24, 64)
    seen = {}
    hook = base.unet.mid_block.register_forward_hook(lambda *call: seen.update(h=call[2]))
    base.unet(z, t, prompt)
    hook.remove()
    torch.testing.assert_close(judge(z, t, prompt), judge.head(seen["h"]), atol=1e-5, rtol=1e-4)
    assert judge(z, t, prompt).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_patch_discriminator_gives_a_map(norm):
    shape = TINY.patch_discriminator.model_copy(update={"norm": norm})
    assert PatchDiscriminator(shape)(torch.rand(2, 3, 64, 64)).shape[:2] == (2, 1)
