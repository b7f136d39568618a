"""Restoring a face the direct way: diffusers' parts put together as the published program does.

What osdface/folding.py is measured against. LoRA is added to the UNet's weights after loading, the timestep goes into
the UNet as a number, eq. 2 is done in float64 with the scheduler's alphas, and every part is called as it comes.
The visual embedder, which diffusers doesn't have, is the project's own on both sides. The published program samples the
latent and takes one picture at a time; here its mean is taken, so that pictures can be compared, and batches go whole.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from osdface import bundle
from osdface.presets import preset
from osdface.prompts.vre import PromptAdapter, VisualEmbedder


class Direct:
    """The restorer of a bundle folder: (B, 3, H, W) in [-1, 1] -> the same, clamped."""

    def __init__(self, folder: Path):
        config = bundle.read_config(folder)
        base, shape = bundle.base_folder(folder, config), preset(config.preset)
        self.vae = AutoencoderKL.from_pretrained(base / "vae").eval()
        self.unet = UNet2DConditionModel.from_pretrained(base / "unet").eval()
        self.scheduler = DDIMScheduler.from_pretrained(base / "scheduler")
        self.embedder = VisualEmbedder(shape.vre).eval()
        self.embedder.load_state_dict(load_file(folder / bundle.VRE))
        self.adapter = PromptAdapter(shape.vre.width, shape.vre.adapter_width, self.unet.config.cross_attention_dim)
        self.adapter.load_state_dict(load_file(folder / bundle.ADAPTER))
        self.adapter.eval()
        self.timestep = shape.timestep
        self._merge(load_file(folder / bundle.LORA), shape.lora.alpha / shape.lora.rank)

    @torch.no_grad()
    def _merge(self, lora: dict[str, Tensor], scale: float) -> None:
        weights = self.unet.state_dict()
        for name, down in lora.items():
            for narrow, wide in ((".lora_A.weight", ".lora_B.weight"), (".lora.down.weight", ".lora.up.weight")):
                if name.endswith(narrow):
                    up = lora[name.replace(narrow, wide)]
                    key = name.removeprefix("unet.").replace(narrow, ".weight")
                    delta = up.flatten(1) @ down.flatten(1)
                    weights[key] += scale * delta.reshape(weights[key].shape)

    def encode(self, images: Tensor) -> Tensor:
        return self.vae.encode(images).latent_dist.mode() * self.vae.config.scaling_factor

    def denoise(self, z: Tensor, prompt: Tensor) -> Tensor:
        noise = self.unet(z, self.timestep, encoder_hidden_states=prompt).sample
        kept = self.scheduler.alphas_cumprod.to(torch.float64)[self.timestep]
        return ((z.double() - (1 - kept) ** 0.5 * noise.double()) / kept**0.5).float()

    def decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z / self.vae.config.scaling_factor).sample.clamp(-1, 1)
