"""The latent discriminator's options: pooling, context, backbone, gradient checkpointing."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from osdface import presets
from osdface.base import new_base
from osdface.discriminators import LatentDiscriminator, LatentOptions
from osdface.errors import UserError
from osdface.losses import adversarial

TINY = presets.preset("tiny")
SHAPE = TINY.latent_discriminator


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return new_base(TINY).unet


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 8, 32, 32), torch.tensor([3, 700]), torch.randn(2, 24, 64)


def judge(unet, **options) -> LatentDiscriminator:
    """A discriminator whose LoRA is not zero any more."""
    made = LatentDiscriminator(unet, SHAPE, options=LatentOptions(**options))
    torch.manual_seed(2)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return made


def test_global_pooling_gives_one_logit_for_a_picture(unet, inputs):
    made, patches = judge(unet, pooling="global"), judge(unet)
    seen = {}
    patches.mid_block.register_forward_hook(lambda *call: seen.update(h=call[2]))
    assert patches(*inputs).shape == (2, 1, 8, 8)
    assert made(*inputs).shape == (2, 1, 1, 1)
    torch.testing.assert_close(made(*inputs), made.head(seen["h"].mean((2, 3))[..., None, None]), atol=1e-5, rtol=1e-4)


def test_without_context_the_prompt_is_a_constant_zero(unet, inputs):
    z, t, prompt = inputs
    made, visual = judge(unet, context="none"), judge(unet)
    torch.testing.assert_close(made(z, t), made(z, t, prompt), atol=0, rtol=0)
    torch.testing.assert_close(made(z, t), visual(z, t, torch.zeros(2, 77, 64)), atol=1e-5, rtol=1e-4)
    assert (made(z, t) - visual(z, t, prompt)).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["softplus", "hinge"])
def test_lora_and_head_alone_learn(unet, inputs, kind):
    made = judge(unet)
    adversarial.discriminator_loss(made(*inputs), made(-inputs[0], *inputs[1:]), kind).backward()
    names = {name for name, parameter in made.named_parameters() if parameter.grad is not None}
    assert names == {name for name, _ in made.named_parameters() if "lora_" in name or name.startswith("head.")}
    without = {name for name in names if not made.get_parameter(name).grad.any()}
    assert without <= ({"head.2.bias"} if kind == "hinge" else set())  # within the hinges its two halves cancel


def other_unet(folder, **changes):
    UNet2DConditionModel(**TINY.unet | changes).save_pretrained(folder / "unet")
    return folder


def test_a_backbone_is_another_folders_unet(unet, inputs, tmp_path):
    folder = other_unet(tmp_path, block_out_channels=[16, 32, 96])
    loaded = UNet2DConditionModel.from_pretrained(folder / "unet")
    for path in (folder, folder / "unet"):
        made = LatentDiscriminator(unet, SHAPE, options=LatentOptions(backbone=path))
        expected = LatentDiscriminator(loaded, SHAPE)
        assert made.head[0].in_channels == 96
        torch.testing.assert_close(made(*inputs), expected(*inputs))


def test_a_backbone_that_cannot_take_latents_or_prompt_is_refused_in_a_sentence(unet, tmp_path):
    wide = other_unet(tmp_path / "wide", cross_attention_dim=128)
    with pytest.raises(UserError, match=r"wide: its cross-attention takes a prompt 128 wide, the visual prompt is 64"):
        LatentDiscriminator(unet, SHAPE, options=LatentOptions(backbone=wide))
    LatentDiscriminator(unet, SHAPE, options=LatentOptions(backbone=wide, context="none"))
    many = other_unet(tmp_path / "many", in_channels=16)
    with pytest.raises(UserError, match="for latents of 16 channels cannot judge the base's 8"):
        LatentDiscriminator(unet, SHAPE, options=LatentOptions(backbone=many, context="none"))
    classes = other_unet(tmp_path / "classes", class_embed_type="timestep")
    with pytest.raises(UserError, match="inputs besides time and prompt"):
        LatentDiscriminator(unet, SHAPE, options=LatentOptions(backbone=classes))
    with pytest.raises(UserError, match=r"nowhere: cannot be read as a diffusers UNet"):
        LatentDiscriminator(unet, SHAPE, options=LatentOptions(backbone=tmp_path / "nowhere"))


def test_sdxls_further_inputs_are_told_its_own_size_and_no_text(unet, inputs, tmp_path):
    changes = {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 68,
        "cross_attention_dim": 128,
    }  # fmt: skip
    folder = other_unet(tmp_path, **changes)
    sdxl = UNet2DConditionModel.from_pretrained(folder / "unet")
    made = LatentDiscriminator(unet, SHAPE, options=LatentOptions(backbone=folder, context="none"))
    seen = {}
    sdxl.mid_block.register_forward_hook(lambda *call: seen.update(h=call[2]))
    z, t, _ = inputs
    sizes = torch.tensor([1024, 1024, 0, 0, 1024, 1024]).expand(2, -1)
    added = {"text_embeds": torch.zeros(2, 68 - 6 * 8), "time_ids": sizes}
    sdxl(z, t, torch.zeros(2, 77, 128), added_cond_kwargs=added)
    torch.testing.assert_close(made(z, t), made.head(seen["h"]), atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="128 wide"):
        LatentDiscriminator(unet, SHAPE, options=LatentOptions(backbone=folder))


def gradients(made, inputs, frozen: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Of one step: to the latents, to the parameters, and bytes kept between forward and backward pass.

    frozen: as the generator's step goes through its discriminator, which is thawed before the backward pass.
    """
    z, kept = inputs[0].clone().requires_grad_(), []
    trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = None
        parameter.requires_grad_(not frozen)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
        loss = adversarial.generator_loss(made(z, *inputs[1:]))
    for parameter in trained:
        parameter.requires_grad_(True)
    loss.backward()
    return z.grad, {n: p.grad for n, p in made.named_parameters() if p.grad is not None}, sum(kept)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_checkpointing_keeps_less_and_changes_nothing(unet, inputs, frozen):
    made = judge(unet)
    to_latents, to_parameters, kept = gradients(made, inputs, frozen)
    made.enable_gradient_checkpointing()
    checkpointed = gradients(made, inputs, frozen)
    torch.testing.assert_close(checkpointed[0], to_latents, atol=1e-7, rtol=1e-5)
    assert checkpointed[1].keys() == to_parameters.keys()
    assert bool(to_parameters) != frozen
    for name, gradient in to_parameters.items():
        torch.testing.assert_close(checkpointed[1][name], gradient, atol=1e-6, rtol=1e-4)
    assert checkpointed[2] < kept / 2
