"""Visual prompts without an adapter: twice as many positions, nearest first, in pairs that lie side by side."""

import torch
from torch import Tensor, nn

from osdface.errors import UserError
from osdface.presets import VREShape
from osdface.prompts.vre import VisualEmbedder


class PairedEmbedder(VisualEmbedder):
    """The codes of the 2n positions nearest to theirs, a code as often as it comes: (B, 2n, d).

    The published program's `--cat_prompt_embedding`.
    """

    def __init__(self, shape: VREShape):
        super().__init__(shape, "vre_cat")

    def select(self, features: Tensor) -> Tensor:
        return self.quantize.nearest_positions(features, 2 * self.shape.prompts)


class SideBySide(nn.Module):
    """The second half of the rows beside the first: (B, 2n, d) -> (B, n, 2d). It has no weights."""

    def forward(self, codes: Tensor) -> Tensor:
        return torch.cat(codes.chunk(2, dim=1), dim=2)


def embedder(shape: VREShape, width: int) -> PairedEmbedder:
    return PairedEmbedder(shape)


def adapter(shape: VREShape, width: int) -> SideBySide:
    if 2 * shape.width != width:
        raise UserError(
            f"paired codes make prompts {2 * shape.width} wide, the base's UNet takes {width}; take prompts of kind "
            "'vre', which have an adapter"
        )
    return SideBySide()
