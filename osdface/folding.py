"""One-step folding: what is constant at one fixed timestep is computed once, when a restorer is loaded.

LoRA is merged; the timestep's embedding and every residual block's projection of it go into biases; the scaling of
latents and eq. 2 go into the weights beside them, so no scheduler is left. Each step agrees with the unfolded one to
1e-5 in float32.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from osdface.errors import UserError
from osdface.fused import fuse, plain
from osdface.generator import OneStepGenerator, Restored


class FoldedUNet(nn.Module):
    """diffusers' UNet at one timestep: (B, 4, h, w), (B, n, d) -> (B, 4, h, w), h and w multiples of its step."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.config = unet.config
        self.conv_in, self.conv_out = unet.conv_in, unet.conv_out
        self.down_blocks, self.mid_block, self.up_blocks = unet.down_blocks, unet.mid_block, unet.up_blocks
        self.conv_norm_out = unet.conv_norm_out

    def forward(self, z: Tensor, prompt: Tensor) -> Tensor:
        h = self.conv_in(z)
        skips = [h]
        for block in self.down_blocks:
            h, made = block(h, None, **_crossed(block, prompt))
            skips += made
        h = self.mid_block(h, None, **_crossed(self.mid_block, prompt))
        for block in self.up_blocks:
            taken = tuple(skips[-len(block.resnets) :])
            del skips[-len(block.resnets) :]
            h = block(h, taken, None, **_crossed(block, prompt))
        return self.conv_out(F.silu(self.conv_norm_out(h), inplace=True))


def _crossed(block: nn.Module, prompt: Tensor) -> dict[str, Tensor]:
    """Only blocks with cross-attention take a prompt."""
    return {"encoder_hidden_states": prompt} if getattr(block, "has_cross_attention", False) else {}


class FoldedGenerator(OneStepGenerator):
    """A OneStepGenerator for inference at its one timestep: the same methods, the same results. Made by `fold`.

    It takes over the generator's modules, whose weights it changes: the generator must not be used any more.
    """

    unet: FoldedUNet
    batches: Sequence[int] = ()  # as `compile` has it

    def __init__(self, generator: OneStepGenerator, unet: FoldedUNet):
        nn.Module.__init__(self)
        self.timestep = generator.timestep
        self.vae, self.embedder, self.adapter = generator.vae, generator.embedder, generator.adapter
        self.register_buffer("alpha_bar", generator.alpha_bar, persistent=False)
        self.unet = unet
        self.keep = float(generator.alpha_bar.double().rsqrt())
        fold_step(self.unet.conv_out, float(generator.alpha_bar.double()))
        fold_scaling(self.vae, float(self.vae.config.scaling_factor))
        fuse(self.vae)
        self.vae.decoder.conv_act = nn.SiLU(inplace=True)
        self.eval().requires_grad_(False)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """As OneStepGenerator.encode."""
        posterior = self._sliced_vae(images).encode(images.contiguous(memory_format=torch.channels_last)).latent_dist
        return posterior.mode() if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)

    def denoise(self, z: Tensor, prompt: Tensor) -> Tensor:
        """As OneStepGenerator.denoise: z / sqrt(alpha_bar), and the UNet's output already scaled as eq. 2 has it."""
        return self.unet(z.contiguous(memory_format=torch.channels_last), prompt).add_(z, alpha=self.keep)

    def decode(self, z: Tensor) -> Tensor:
        """As OneStepGenerator.decode."""
        return self._sliced_vae(z).decode(z.contiguous(memory_format=torch.channels_last)).sample

    def _sliced_vae(self, x: Tensor) -> AutoencoderKL:
        """On a CPU, where a batch is no faster, pictures go through one by one: the VAE's maps are the most memory."""
        self.vae.use_slicing = x.device.type == "cpu" and not self.batches
        return self.vae

    def tile(self, size: int, overlap: float = 0.25) -> None:
        """From now on the VAE takes pictures larger than `size` pixels in tiles of that size, blended where they
        overlap; a share of `overlap` on each side. Raises UserError where the size is no multiple of the VAE's step,
        or leaves the overlap no whole number of latent pixels.
        """
        step = 2 ** (len(self.vae.config.block_out_channels) - 1)
        if size % step or not 0 <= overlap < 1 or (size // step * overlap) % 1:
            raise UserError(f"tiles of {size} pixels with {overlap:g} overlap: not whole steps of {step} pixels")
        self.vae.enable_tiling()
        self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = size, size // step
        self.vae.tile_overlap_factor = overlap

    def compile(self, *args, batches: Sequence[int] = (1, 4, 16), **options) -> None:
        """torch.compile the UNet and the VAE (options are torch.compile's), for these sizes of a batch alone.

        A batch is filled up to the next of them by repeating its last picture: every other size, once met, would be
        compiled anew, for minutes. Larger batches go through in pieces of the largest.
        """
        self.batches = sorted(batches)
        options = {"dynamic": False} | options
        for part in (self.unet, self.vae.encoder, self.vae.decoder):
            part.compile(*args, **options)

    def forward(
        self, lq: Tensor, noise: Tensor | None = None, codes: Tensor | None = None, z: Tensor | None = None
    ) -> Restored:
        """As OneStepGenerator.forward."""
        if not self.batches:
            return super().forward(lq, noise, codes, z)
        largest = self.batches[-1]
        rows = range(len(lq))
        pieces = [self._filled(rows[i : i + largest], lq, noise, codes, z) for i in rows[::largest]]
        return Restored(*(torch.cat(same) for same in zip(*pieces, strict=True)))

    def _filled(self, rows: range, lq: Tensor, *others: Tensor | None) -> Restored:
        size = next(size for size in self.batches if size >= len(rows))
        fill = [*rows, *[rows[-1]] * (size - len(rows))]
        restored = super().forward(lq[fill], *(None if other is None else other[fill] for other in others))
        return Restored(*(same[: len(rows)] for same in restored))


def fold(generator: OneStepGenerator) -> FoldedGenerator:
    """The generator, folded; use what is returned in its place. Fold in float32, then move to a narrower type.

    Maps go through channels last. On a GPU give the weights that format too, `.to(memory_format=torch.channels_last)`;
    on a CPU it would only copy them, out of the mapped file.

    Raises UserError for a base whose blocks are of another kind than Stable Diffusion's.
    """
    unet = generator.unet
    merge_lora(unet)
    fold_time(unet, time_embedding(unet, generator.timestep))
    folded = FoldedUNet(unet)
    fuse(folded)
    return FoldedGenerator(generator, folded)


@torch.no_grad()
def merge_lora(unet: UNet2DConditionModel) -> None:
    """Add the adapters, where there are any, to the weights they adapt, and remove them.

    In place, which peft's own merging is not: the UNet would be in memory twice, in its mapped file and merged.
    """
    if getattr(unet, "peft_config", None):
        for layer in unet.modules():
            if isinstance(layer, BaseTunerLayer):
                for adapter in layer.active_adapters:
                    layer.get_base_layer().weight += layer.get_delta_weight(adapter)
        unet.unload_lora()


@torch.no_grad()
def time_embedding(unet: UNet2DConditionModel, timestep: int) -> Tensor:
    """What a UNet's residual blocks project: the embedding of the timestep after its activation, (1, width)."""
    weight = unet.time_embedding.linear_1.weight
    steps = unet.time_proj(torch.tensor([timestep], device=weight.device))
    return F.silu(unet.time_embedding(steps.to(weight.dtype)))


@torch.no_grad()
def fold_time(module: nn.Module, embedding: Tensor) -> None:
    """Add each residual block's projection of the timestep's embedding to its first convolution's bias."""
    for name, block in module.named_modules():
        if isinstance(block, ResnetBlock2D):
            if not plain(block) or block.skip_time_act:
                raise UserError(f"the base's UNet has a block that cannot be folded, {name}: not Stable Diffusion's")
            block.conv1.bias += block.time_emb_proj(embedding)[0]
            block.time_emb_proj = None


@torch.no_grad()
def fold_step(conv: nn.Conv2d, alpha_bar: float) -> None:
    """Scale the noise that a UNet's last convolution predicts to what eq. 2 adds to z / sqrt(alpha_bar)."""
    _scale(conv, -math.sqrt((1 - alpha_bar) / alpha_bar))


@torch.no_grad()
def fold_scaling(vae: AutoencoderKL, factor: float) -> None:
    """Let the VAE give and take scaled latents: mean and deviation of its posterior come times `factor`.

    The bounds that diffusers puts on the log variance, -30 and 20, then hold for the scaled one.
    """
    channels = vae.config.latent_channels
    vae.quant_conv.weight[:channels] *= factor
    vae.quant_conv.bias[:channels] *= factor
    vae.quant_conv.bias[channels:] += 2 * math.log(factor)
    vae.post_quant_conv.weight /= factor


def _scale(conv: nn.Conv2d, factor: float) -> None:
    conv.weight *= factor
    if conv.bias is not None:
        conv.bias *= factor
