"""Residual blocks and upsamplers of diffusers' VAE and UNet, for inference alone: the same numbers with less traffic.

Each takes over the layers of the block that it stands for, under the same names, so that a state dict still fits.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from osdface import winograd

ROWS = 4096  # pixels whose squares are summed at a time: a few MiB, which stay in the cache


def group_scale(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """GroupNorm as one multiplication and one addition: (B, C, H, W) channels last -> scale and shift, (B, C) each."""
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    mean = pixels.mean(1)
    spread = torch.stack([_squares(picture, centre) for picture, centre in zip(pixels, mean, strict=True)])
    groups = (len(x), norm.num_groups, -1)
    mean, variance = mean.view(groups), (spread / pixels.shape[1]).view(groups)
    centre = mean.mean(-1, keepdim=True)
    variance = (variance + (mean - centre).square()).mean(-1, keepdim=True)
    inverse = (variance + norm.eps).rsqrt()
    scale = norm.weight.view(groups[1:]) * inverse
    return scale.flatten(1), (norm.bias.view(groups[1:]) - centre * scale).flatten(1)


def _squares(pixels: Tensor, mean: Tensor) -> Tensor:
    """Sums over pixels of squared distances from each channel's mean: (n, C), (C,) -> (C,)."""
    return sum((part - mean).square_().sum(0) for part in pixels.split(ROWS))  # type: ignore[return-value]


def norm_silu_conv(x: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
    """conv(silu(norm(x))) of (B, C, H, W); without the two maps in between where winograd suits."""
    if not winograd.suits(x, conv):
        return conv(F.silu(norm(x), inplace=True))
    x = x.contiguous(memory_format=torch.channels_last)
    scale, shift = group_scale(x, norm)
    return winograd.convolve(
        x, conv, lambda rows, index: F.silu(torch.addcmul(shift[index], rows, scale[index]), inplace=True)
    )


class FusedResBlock(nn.Module):
    """diffusers' ResnetBlock2D, whose time embedding, if it had one, is in conv1's bias."""

    def __init__(self, block: ResnetBlock2D):
        super().__init__()
        self.norm1, self.conv1 = block.norm1, block.conv1
        self.norm2, self.conv2 = block.norm2, block.conv2
        self.conv_shortcut = block.conv_shortcut

    def forward(self, x: Tensor, temb: None = None) -> Tensor:
        """(B, C, H, W) -> (B, N, H, W); diffusers' blocks pass `temb`, which is in the bias."""
        h = norm_silu_conv(x, self.norm1, self.conv1)
        h = norm_silu_conv(h, self.norm2, self.conv2)
        return h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


class FusedUpsample(nn.Module):
    """diffusers' Upsample2D: nearest x2, then 3x3; the doubled map is not written to memory where winograd suits."""

    def __init__(self, block: Upsample2D):
        super().__init__()
        self.conv = block.conv

    def forward(self, x: Tensor, output_size: None = None) -> Tensor:
        """(B, C, H, W) -> (B, N, 2H, 2W); diffusers' blocks pass `output_size`, None where sizes are multiples."""
        if winograd.suits(x, self.conv, double=True):
            return winograd.convolve(x.contiguous(memory_format=torch.channels_last), self.conv, double=True)
        return self.conv(F.interpolate(x, scale_factor=2.0))


def plain(block: Any) -> bool:
    """Whether a block of diffusers is of the plain kind that the classes above stand for."""
    if isinstance(block, Upsample2D):
        return block.use_conv and block.interpolate and block.norm is None and block.name == "conv"
    timeless = block.time_emb_proj is None and block.time_embedding_norm != "scale_shift"  # "group" in a VAE
    return (
        (timeless or block.time_embedding_norm == "default")
        and block.upsample is block.downsample is None
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.output_scale_factor == 1
    )


def fuse(module: nn.Module) -> None:
    """Replace every plain residual block and upsampler inside `module`; a block with a time embedding stays."""
    for name, child in list(module.named_children()):
        if isinstance(child, ResnetBlock2D) and plain(child) and child.time_emb_proj is None:
            setattr(module, name, FusedResBlock(child))
        elif isinstance(child, Upsample2D) and plain(child):
            setattr(module, name, FusedUpsample(child))
        else:
            fuse(child)
