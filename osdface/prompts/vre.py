"""Visual prompts: the distinct dictionary items nearest to an LQ picture's features, through the prompt adapter."""

import torch.nn.functional as F
from torch import Tensor, nn

from osdface.autoencoder import Encoder, VQAutoencoder
from osdface.presets import PromptKind, VREShape
from osdface.prompts.protocol import Embedder
from osdface.quantizer import VectorQuantizer


class VisualEmbedder(Embedder):
    """VRE(I_L) of section 3.2: an LQ picture's distinct dictionary items, nearest first (eq. 5 and 6)."""

    def __init__(self, shape: VREShape, kind: PromptKind = "vre"):
        super().__init__(kind)
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
        """(B, 3, H, W) in [-1, 1] -> codes, nearest first (B, n, d)."""
        size = (self.shape.size, self.shape.size)
        if lq.shape[-2:] != size:
            lq = F.interpolate(lq, size, mode="bilinear", align_corners=False)
        if self.shape.input == "twice":
            lq = 2 * lq - 1
        return self.select(self.quant_conv(self.encoder(lq)))

    def select(self, features: Tensor) -> Tensor:
        """(B, d, h, w) -> the dictionary items that become the prompt (B, n, d)."""
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


def embedder(shape: VREShape, width: int) -> VisualEmbedder:
    return VisualEmbedder(shape)


def adapter(shape: VREShape, width: int) -> PromptAdapter:
    return PromptAdapter(shape.width, shape.adapter_width, width)
