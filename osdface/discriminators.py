"""The two discriminators: patches of pictures in stage 1, patches of noised latents in stage 2."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from osdface.config import Strict
from osdface.errors import UserError
from osdface.presets import LatentDiscriminatorShape, PatchDiscriminatorShape
from osdface.ranks import SyncBatchNorm2d

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class PatchDiscriminator(nn.Sequential):
    """pix2pix's PatchGAN ("patch-based discriminator [19]" of eq. 7): (B, 3, H, W) -> logits (B, 1, h, w)."""

    def __init__(self, shape: PatchDiscriminatorShape):
        def norm(channels: int) -> nn.Module:
            if shape.norm == "group":
                return nn.GroupNorm(8, channels)
            return (SyncBatchNorm2d if shape.norm == "sync_batch" else nn.BatchNorm2d)(channels)

        width = shape.channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, shape.layers + 1):
            before, width = width, shape.channels * min(2**i, 8)
            stride = 2 if i < shape.layers else 1
            layers += [nn.Conv2d(before, width, 4, stride, 1, bias=False), norm(width), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(width, 1, 4, 1, 1))
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(module.weight, 1.0, 0.02)


class LatentOptions(Strict):
    """What the paper leaves open about the latent discriminator ("setting of the discriminator followed by DFOSD")."""

    # patch: a logit for each position of the mid block, the grid of decisions in DFOSD's figure. global: one for a
    # picture, from the mean of the map, as in the one public training program and in DMD2.
    pooling: Literal["patch", "global"] = "patch"
    # visual: the generator's prompt, an arrow in the paper's figure 3. none: a constant zero, as that program has it.
    context: Literal["visual", "none"] = "visual"
    # Whose down and mid blocks: the generator's own base (DFOSD's figure, as of the paper's date), or another diffusers
    # model's, its folder or its `unet`. That program took SDXL's, as DFOSD's successor D3SR does.
    backbone: Path | None = None


AS_PUBLISHED = LatentOptions()


class LatentDiscriminator(nn.Module):
    """D of eq. 15 and 16, "followed by DFOSD": a UNet's down and mid blocks with LoRA, and a head of two layers.

    (B, 4, h, w) noised latents, (B,) timesteps, (B, n, d) visual prompt -> logits (B, 1, h', w'), one for each position
    of the mid block, or (B, 1, 1, 1). The head's width and depth are inferred; the paper gives none. Raises UserError
    where a backbone cannot take the generator's latents or prompt.
    """

    PARTS = ("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block")
    SDXL_PARTS = ("add_time_proj", "add_embedding")
    SDXL_SIZES = (1024, 1024, 0, 0, 1024, 1024)  # original size, crop, target size: what that program tells SDXL

    conv_in: nn.Module
    time_proj: nn.Module
    time_embedding: nn.Module
    down_blocks: nn.ModuleList
    mid_block: nn.Module

    def __init__(
        self,
        unet: "UNet2DConditionModel",
        shape: LatentDiscriminatorShape,
        seed: int = 0,
        options: LatentOptions = AS_PUBLISHED,
    ):
        super().__init__()
        from peft import inject_adapter_in_model  # here, since stage 1 has no need of it

        from osdface.lora import lora_config

        if options.backbone:
            unet = _backbone(options.backbone, unet, options.context)
        self.options, self.context_width = options, unet.config.cross_attention_dim
        self.sdxl = unet.config.addition_embed_type == "text_time"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in self.PARTS + (self.SDXL_PARTS if self.sdxl else ()):
                setattr(self, part, copy.deepcopy(getattr(unet, part)))
            self.requires_grad_(False)
            inject_adapter_in_model(lora_config(shape), self)
            width = unet.config.block_out_channels[-1]
            self.head = nn.Sequential(
                nn.Conv2d(width, shape.head_width, 1), nn.LeakyReLU(0.2), nn.Conv2d(shape.head_width, 1, 1)
            )

    def forward(self, z: Tensor, timesteps: Tensor, prompt: Tensor | None = None) -> Tensor:
        embedding = self.time_embedding(self.time_proj(timesteps).to(z.dtype))
        if self.sdxl:
            embedding = embedding + self._sdxl_embedding(z)
        if self.options.context == "none":
            # One token: attention over any number of equal ones gives the same.
            prompt = z.new_zeros(len(z), 1, self.context_width)
        h = self.conv_in(z)
        for block in self.down_blocks:
            context = {"encoder_hidden_states": prompt} if getattr(block, "has_cross_attention", False) else {}
            h, _ = block(h, embedding, **context)
        h = self.mid_block(h, embedding, encoder_hidden_states=prompt)
        return self.head(h if self.options.pooling == "patch" else h.mean((2, 3), keepdim=True))

    def _sdxl_embedding(self, z: Tensor) -> Tensor:
        """SDXL's embedding of sizes and of a pooled text, which is zero."""
        modules: Any = self
        sizes = modules.add_time_proj(torch.tensor(self.SDXL_SIZES, device=z.device)).flatten()
        pooled = modules.add_embedding.linear_1.in_features - len(sizes)
        constant = torch.cat([sizes.new_zeros(pooled), sizes]).to(z.dtype)
        return modules.add_embedding(constant.expand(len(z), -1))

    def enable_gradient_checkpointing(self) -> None:
        """Keep the activations between layers of the blocks alone and compute those within again in the backward pass.

        By diffusers' own switch in its blocks.
        """
        module: Any
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module._gradient_checkpointing_func = _checkpointed
                module.gradient_checkpointing = True


def _checkpointed(module: nn.Module, *inputs: Any) -> Any:
    """The module's output, to be computed again with the parameters trainable that were so at first.

    Through a frozen discriminator the generator's step goes back when it is no longer frozen.
    """
    trained = [parameter.requires_grad for parameter in module.parameters()]

    def run(*inputs: Any) -> Any:
        with _trainable(module, trained):
            return module(*inputs)

    return checkpoint(run, *inputs, use_reentrant=False)


@contextlib.contextmanager
def _trainable(module: nn.Module, trained: list[bool]) -> Iterator[None]:
    parameters = list(module.parameters())
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter, value in zip(parameters, trained, strict=True):
            parameter.requires_grad_(value)
        yield
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.requires_grad_(value)


def _backbone(folder: Path, unet: "UNet2DConditionModel", context: str) -> "UNet2DConditionModel":
    """The UNet of another diffusers folder, if it can take the latents and the prompt that `unet` takes."""
    from osdface.base import load_part

    root = folder.parent if folder.name == "unet" else folder
    try:
        other = load_part(root, "unet", torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{folder}: cannot be read as a diffusers UNet: {str(error).splitlines()[0]}") from error
    mine, theirs = unet.config, other.config
    if theirs.in_channels != mine.in_channels:
        raise UserError(
            f"{folder}: a UNet for latents of {theirs.in_channels} channels cannot judge the base's "
            f"{mine.in_channels}; give the discriminator another backbone"
        )
    if context == "visual" and theirs.cross_attention_dim != mine.cross_attention_dim:
        raise UserError(
            f"{folder}: its cross-attention takes a prompt {theirs.cross_attention_dim} wide, the visual prompt is "
            f"{mine.cross_attention_dim} wide; give the discriminator the context none, or another backbone"
        )
    if theirs.addition_embed_type not in (None, "text_time") or theirs.class_embed_type or theirs.encoder_hid_dim_type:
        raise UserError(
            f"{folder}: a UNet with inputs besides time and prompt; give the discriminator another backbone"
        )
    return other
