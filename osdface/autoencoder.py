"""The stage-1 VQ autoencoder (section 3.2): VQGAN's convolutional encoder and decoder around a dictionary.

Modules carry the tensor names of the published checkpoint, so that its tensors load strictly.
"""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from osdface.presets import VREShape, preset
from osdface.quantizer import BetaTerm, VectorQuantizer


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Recomputable(nn.Module):
    """A block x -> `compute(x)` that keeps its input alone for the backward pass where `recomputed` is set."""

    recomputed = False

    def forward(self, x: Tensor) -> Tensor:
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(self.compute, x, use_reentrant=False, preserve_rng_state=False)
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class ResBlock(Recomputable):
    """norm - swish - 3x3 - norm - swish - 3x3, added to the (1x1-projected) input."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def compute(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(Recomputable):
    """Single-head self-attention over positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = _norm(channels)
        self.norm2 = _norm(channels).requires_grad_(False)  # in the published tensors, used by no forward pass
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def compute(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (project(h).flatten(2).transpose(1, 2) for project in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).reshape_as(x))

    def weights(self, x: Tensor) -> Tensor:
        """How much each position (rows) takes from each (columns): (B, C, h, w) -> (B, h*w, h*w), rows sum to 1."""
        h = self.norm1(x)
        q, k = self.q(h).flatten(2), self.k(h).flatten(2)
        return (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)


class Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """3x3 with stride 2, padded on the right and at the bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest x2, then 3x3."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Level(nn.Module):
    """The blocks at one resolution, with attention where the preset asks for it, then the change of resolution."""

    def __init__(self, channels: int, out_channels: int, blocks: int, attention: bool):
        super().__init__()
        widths = [channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResBlock(a, b) for a, b in itertools.pairwise(widths))
        self.attn = nn.ModuleList(Attention(out_channels) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.upsample(self.downsample(x))


class Encoder(nn.Module):
    """(B, 3, S, S) in [-1, 1] -> (B, width, s, s), s = S / 2^(levels - 1)."""

    def __init__(self, shape: VREShape):
        super().__init__()
        widths = [shape.channels * m for m in shape.multipliers]
        self.conv_in = nn.Conv2d(3, shape.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(itertools.pairwise([shape.channels, *widths])):
            level = Level(before, width, shape.blocks, shape.size >> i in shape.attention_at)
            if i < len(widths) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], shape.width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(self.mid(self._lowest(x)))))

    def attention(self, x: Tensor) -> Tensor:
        """The weights of the last self-attention layer ("att" of fig. 4): (B, 3, S, S) -> (B, s*s, s*s)."""
        return self.mid.attn_1.weights(self.mid.block_1(self._lowest(x)))

    def _lowest(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return h


class Decoder(nn.Module):
    """The encoder's mirror, one residual block a level deeper: (B, width, s, s) -> (B, 3, S, S)."""

    def __init__(self, shape: VREShape):
        super().__init__()
        widths = [shape.channels * m for m in shape.multipliers]
        self.conv_in = nn.Conv2d(shape.width, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        levels = []
        for i, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
            level = Level(before, width, shape.blocks + 1, shape.size >> i in shape.attention_at)
            if i > 0:
                level.upsample = Upsample(width)
            levels.append(level)
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The picture, and what the last convolution made it of: (B, channels, S, S)."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        last = F.silu(self.norm_out(h))
        return self.conv_out(last), last


class Autoencoded(NamedTuple):
    """image: (B, 3, S, S); last: what the decoder's last convolution made it of, (B, channels, S, S).

    features: (B, d, s, s) before quantisation; codes: the same after it, with the features' gradient; vq_loss: scalar;
    indices: (B, s*s).
    """

    image: Tensor
    last: Tensor
    features: Tensor
    codes: Tensor
    vq_loss: Tensor
    indices: Tensor


class VQAutoencoder(nn.Module):
    """Encoder, dictionary and decoder of one face domain (HQ or LQ)."""

    def __init__(self, shape: VREShape):
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape)
        self.quantize = VectorQuantizer(shape.codes, shape.width)
        self.quant_conv = nn.Conv2d(shape.width, shape.width, 1)
        self.post_quant_conv = nn.Conv2d(shape.width, shape.width, 1)

    @classmethod
    def from_preset(cls, name: str) -> "VQAutoencoder":
        """A freshly initialised autoencoder of the preset's shape."""
        return cls(preset(name).vre)

    def recompute_activations(self) -> None:
        """Keep only the blocks' inputs for the backward pass, and compute the rest again in it."""
        for module in self.modules():
            if isinstance(module, Recomputable):
                module.recomputed = True

    def features(self, x: Tensor) -> Tensor:
        """E(x) before quantisation: (B, 3, S, S) in [-1, 1] -> (B, d, s, s)."""
        return self.quant_conv(self.encoder(self._input(x)))

    def attention(self, x: Tensor) -> Tensor:
        """The weights of the encoder's last self-attention layer: (B, 3, S, S) in [-1, 1] -> (B, s*s, s*s)."""
        return self.encoder.attention(self._input(x))

    def _input(self, x: Tensor) -> Tensor:
        return 2 * x - 1 if self.shape.input == "twice" else x

    def forward(self, x: Tensor, beta: float = 0.25, beta_on: BetaTerm = "commitment") -> Autoencoded:
        """Encode, quantise, decode."""
        features = self.features(x)
        codes, loss, indices = self.quantize(features, beta, beta_on)
        image, last = self.decoder(self.post_quant_conv(codes))
        return Autoencoded(image, last, features, codes, loss, indices)
