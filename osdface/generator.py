"""The one-step generator G of section 3.1: LQ picture in, HQ picture out, in a single denoising step."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from osdface.base import Base
from osdface.diffusion import one_step
from osdface.errors import UserError
from osdface.lora import lora_config
from osdface.presets import VISUAL_PROMPTS, Preset
from osdface.prompts import new_adapter, new_embedder
from osdface.prompts.protocol import Embedder

LatentChoice = Literal["mode", "sample"]


class Restored(NamedTuple):
    """image: (B, 3, H, W), about [-1, 1]; latent: (B, 4, h, w), the predicted z_H; prompt: (B, n, d)."""

    image: Tensor
    latent: Tensor
    prompt: Tensor


class OneStepGenerator(nn.Module):
    """Eq. 4: G(I_L; p) = D(z_H), with z_H by eq. 2 from z_L = E(I_L) at the fixed timestep T_L.

    VAE and embedder are frozen; the UNet is frozen but for its LoRA; the adapter is trained. Embedder and adapter are
    the two parts of a kind of prompts (`osdface.prompts`).
    """

    def __init__(self, base: Base, embedder: Embedder, adapter: nn.Module, timestep: int):
        super().__init__()
        self.vae = base.vae.requires_grad_(False)
        self.unet = base.unet.requires_grad_(False)
        self.embedder = embedder.requires_grad_(False)
        self.adapter = adapter
        self.timestep = timestep
        self.alpha_bar = base.scheduler.alphas_cumprod[timestep].clone()  # no buffer: it keeps its precision in `to`

    @classmethod
    def from_parts(
        cls, preset: Preset, base: Base, embedder: Embedder | None = None, seed: int = 0
    ) -> "OneStepGenerator":
        """A generator with LoRA and a fresh adapter, both initialised from `seed`: the untrained generator.

        embedder: the frozen part of the preset's kind of prompts, with its weights (`osdface.prompts.read_embedder`);
        None will do where it has none. Raises UserError where it is of another kind, or its shape not the preset's.
        """
        width = base.unet.config.cross_attention_dim
        if embedder is None:
            embedder = new_embedder(preset.prompt, preset.vre, width)
            if embedder.state_dict():
                raise UserError(f"prompts of kind '{preset.prompt}' need a trained embedder; none is given")
        if embedder.kind != preset.prompt:
            raise UserError(f"the embedder is for prompts of kind '{embedder.kind}', not '{preset.prompt}'")
        if embedder.kind in VISUAL_PROMPTS and embedder.shape != preset.vre:
            raise UserError(f"the VRE was not trained with preset '{preset.name}': its shape differs from vre: there")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapter = new_adapter(preset.prompt, preset.vre, width)
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

    def codes(self, lq: Tensor) -> Tensor:
        """What the prompt is made of: (B, 3, H, W) in [-1, 1] -> (B, n, d), without gradient.

        Of an LQ picture they never change, and may be kept.
        """
        with torch.no_grad():
            return self.embedder(lq)

    def prompt(self, codes: Tensor) -> Tensor:
        """p_L: codes (B, n, d) -> (B, m, cross-attention width)."""
        return self.adapter(codes)

    def denoise(self, z: Tensor, prompt: Tensor) -> Tensor:
        """Eq. 2: (B, 4, h, w) -> the predicted clean latent, same shape."""
        epsilon = self.unet(z, self.timestep, prompt).sample
        return one_step(z, epsilon, self.alpha_bar)

    def decode(self, z: Tensor) -> Tensor:
        """Eq. 3: scaled latent -> picture (B, 3, H, W), about [-1, 1], not clamped."""
        return self.vae.decode(z / self.vae.config.scaling_factor).sample

    def forward(
        self, lq: Tensor, noise: Tensor | None = None, codes: Tensor | None = None, z: Tensor | None = None
    ) -> Restored:
        """(B, 3, H, W) in [-1, 1] -> Restored; `noise` as in `encode`.

        codes, z: what the methods `codes` and `encode` give for these pictures, where that is known.
        """
        prompt = self.prompt(self.codes(lq) if codes is None else codes)
        z = self.denoise(self.encode(lq, noise) if z is None else z, prompt)
        return Restored(self.decode(z), z, prompt)

    def enable_gradient_checkpointing(self) -> None:
        """From now on keep no activations inside the blocks of UNet and VAE for the backward pass: compute them again.

        By diffusers' own methods: whole blocks of the VAE, residual blocks and attentions of the UNet; same gradients.
        """
        self.unet.enable_gradient_checkpointing()
        self.vae.enable_gradient_checkpointing()
