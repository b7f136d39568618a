"""The visual representation embedder in use (stage 2 and inference): tokenizer, dictionary, prompt adapter."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface.autoencoder import Encoder, VQAutoencoder
from osdface.errors import UserError
from osdface.presets import VREShape
from osdface.quantizer import VectorQuantizer


class VisualEmbedder(nn.Module):
    """VRE(I_L) of section 3.2: an LQ picture's distinct dictionary items, nearest first (eq. 5 and 6)."""

    def __init__(self, shape: VREShape):
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape)
        self.quant_conv = nn.Conv2d(shape.width, shape.width, 1)
        self.quantize = VectorQuantizer(shape.codes, shape.width)

    @classmethod
    def from_autoencoder(cls, autoencoder: VQAutoencoder) -> "VisualEmbedder":
        """The part of a stage-1 autoencoder that stage 2 keeps."""
        embedder = cls(autoencoder.shape)
        tensors = autoencoder.state_dict()
        embedder.load_state_dict({name: tensors[name] for name in embedder.state_dict()})
        return embedder

    def forward(self, lq: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> visual prompt before the adapter (B, prompts, d); twice as many rows if paired."""
        size = (self.shape.size, self.shape.size)
        if lq.shape[-2:] != size:
            lq = F.interpolate(lq, size, mode="bilinear", align_corners=False)
        if self.shape.input == "twice":
            lq = 2 * lq - 1
        features = self.quant_conv(self.encoder(lq))
        if self.shape.kind == "paired":
            return self.quantize.nearest_positions(features, 2 * self.shape.prompts)
        return self.quantize.nearest_distinct(features, self.shape.prompts)


class PromptAdapter(nn.Module):
    """Two 1x1 convolutions over tokens, SiLU after each: (B, n, d) -> (B, n, width of the UNet's cross-attention).

    In the published weights (512 -> 256 -> 1024), not in the paper's text.
    """

    def __init__(self, width: int, hidden: int, out_width: int):
        super().__init__()
        self.conv1 = nn.Conv1d(width, hidden, 1)
        self.conv2 = nn.Conv1d(hidden, out_width, 1)

    def forward(self, codes: Tensor) -> Tensor:
        return F.silu(self.conv2(F.silu(self.conv1(codes.transpose(1, 2))))).transpose(1, 2)


class SideBySide(nn.Module):
    """The second half of the rows beside the first: (B, 2n, d) -> (B, n, 2d). Paired prompts need no weights."""

    def forward(self, codes: Tensor) -> Tensor:
        return torch.cat(codes.chunk(2, dim=1), dim=2)


def new_adapter(shape: VREShape, width: int) -> nn.Module:
    """From the shape's codes to a prompt `width` wide, that of the UNet's cross-attention.

    Raises UserError where paired codes have another width.
    """
    if shape.kind == "distinct":
        return PromptAdapter(shape.width, shape.adapter_width, width)
    if 2 * shape.width != width:
        raise UserError(
            f"paired codes make prompts {2 * shape.width} wide, the base's UNet takes {width}; give an adapter"
        )
    return SideBySide()
