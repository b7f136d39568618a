"""The one-step generator G of section 3.1: LQ picture in, HQ picture out, in a single denoising step."""

from typing import Literal, NamedTuple

import torch
from peft import LoraConfig
from torch import Tensor, nn

from osdface.base import Base
from osdface.diffusion import one_step
from osdface.errors import UserError
from osdface.presets import LoRAShape, Preset
from osdface.vre import VisualEmbedder, new_adapter

LatentChoice = Literal["mode", "sample"]


class Restored(NamedTuple):
    """image: (B, 3, H, W), about [-1, 1]; latent: (B, 4, h, w), the predicted z_H; prompt: (B, n, d)."""

    image: Tensor
    latent: Tensor
    prompt: Tensor


def lora_config(shape: LoRAShape) -> LoraConfig:
    """peft's configuration of a preset's adapters; B starts at zero, so an untrained adapter changes nothing."""
    return LoraConfig(r=shape.rank, lora_alpha=shape.alpha, target_modules=list(shape.targets))


class OneStepGenerator(nn.Module):
    """Eq. 4: G(I_L; p) = D(z_H), with z_H by eq. 2 from z_L = E(I_L) at the fixed timestep T_L.

    VAE and embedder are frozen; the UNet is frozen but for the LoRA that `with_lora` adds; the adapter is trained.
    """

    def __init__(self, base: Base, embedder: VisualEmbedder, adapter: nn.Module, timestep: int):
        super().__init__()
        self.vae = base.vae.requires_grad_(False)
        self.unet = base.unet.requires_grad_(False)
        self.embedder = embedder.requires_grad_(False)
        self.adapter = adapter
        self.timestep = timestep
        self.alpha_bar = base.scheduler.alphas_cumprod[timestep].clone()  # no buffer: it keeps its precision in `to`

    @classmethod
    def from_parts(cls, preset: Preset, base: Base, embedder: VisualEmbedder, seed: int = 0) -> "OneStepGenerator":
        """A generator with LoRA and a fresh adapter, both initialised from `seed`: the untrained generator.

        Raises UserError where the VRE and the preset disagree in width.
        """
        if embedder.shape != preset.vre:
            raise UserError(f"the VRE was not trained with preset '{preset.name}': its shape differs from vre: there")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = base.unet.config.cross_attention_dim
            adapter = new_adapter(preset.vre, width)
            generator = cls(base, embedder, adapter, preset.timestep)
            generator.unet.add_adapter(lora_config(preset.lora))
        return generator

    def latent_shape(self, images: Tensor) -> tuple[int, int, int, int]:
        """(B, 4, h, w) of the latents of (B, 3, H, W) pictures."""
        shrink = 2 ** (len(self.vae.config.block_out_channels) - 1)
        height, width = (side // shrink for side in images.shape[-2:])
        return len(images), self.vae.config.latent_channels, height, width

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """E(I): (B, 3, H, W) in [-1, 1] -> scaled latent (B, 4, h, w).

        The distribution's mode, or, with standard normal `noise` of the latents' shape, a sample of it.
        """
        posterior = self.vae.encode(images).latent_dist
        z = posterior.mode() if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)
        return z * self.vae.config.scaling_factor

    def prompt(self, lq: Tensor) -> Tensor:
        """p_L: (B, 3, H, W) in [-1, 1] -> (B, n, cross-attention width)."""
        with torch.no_grad():
            codes = self.embedder(lq)
        return self.adapter(codes)

    def denoise(self, z: Tensor, prompt: Tensor) -> Tensor:
        """Eq. 2: (B, 4, h, w) -> the predicted clean latent, same shape."""
        epsilon = self.unet(z, self.timestep, prompt).sample
        return one_step(z, epsilon, self.alpha_bar)

    def decode(self, z: Tensor) -> Tensor:
        """Eq. 3: scaled latent -> picture (B, 3, H, W), about [-1, 1], not clamped."""
        return self.vae.decode(z / self.vae.config.scaling_factor).sample

    def forward(self, lq: Tensor, noise: Tensor | None = None) -> Restored:
        """(B, 3, H, W) in [-1, 1] -> Restored; `noise` as in `encode`."""
        prompt = self.prompt(lq)
        z = self.denoise(self.encode(lq, noise), prompt)
        return Restored(self.decode(z), z, prompt)
