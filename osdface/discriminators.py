"""The two discriminators: patches of pictures in stage 1, patches of noised latents in stage 2."""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

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


class LatentDiscriminator(nn.Module):
    """D of eq. 15 and 16, "followed by DFOSD": the base UNet's down and mid blocks with LoRA, and a patch head.

    (B, 4, h, w) noised latents, (B,) timesteps, (B, n, d) visual prompt -> logits (B, 1, h', w'), one for each
    position of the mid block. The head's width and depth are inferred; the paper gives none.
    """

    conv_in: nn.Module
    time_proj: nn.Module
    time_embedding: nn.Module
    down_blocks: nn.ModuleList
    mid_block: nn.Module

    def __init__(self, unet: "UNet2DConditionModel", shape: LatentDiscriminatorShape, seed: int = 0):
        super().__init__()
        from peft import inject_adapter_in_model  # here, since stage 1 has no need of it

        from osdface.generator import lora_config

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in ("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block"):
                setattr(self, part, copy.deepcopy(getattr(unet, part)))
            self.requires_grad_(False)
            inject_adapter_in_model(lora_config(shape), self)
            width = unet.config.block_out_channels[-1]
            self.head = nn.Sequential(
                nn.Conv2d(width, shape.head_width, 1), nn.LeakyReLU(0.2), nn.Conv2d(shape.head_width, 1, 1)
            )

    def forward(self, z: Tensor, timesteps: Tensor, prompt: Tensor) -> Tensor:
        embedding = self.time_embedding(self.time_proj(timesteps).to(z.dtype))
        h = self.conv_in(z)
        for block in self.down_blocks:
            context = {"encoder_hidden_states": prompt} if getattr(block, "has_cross_attention", False) else {}
            h, _ = block(h, embedding, **context)
        return self.head(self.mid_block(h, embedding, encoder_hidden_states=prompt))
