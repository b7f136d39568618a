"""What every kind of prompts has: a frozen part that may look at the picture, and a part that stage 2 trains."""

from typing import Protocol

from torch import Tensor, nn

from osdface.presets import PromptKind, VREShape


class Embedder(nn.Module):
    """The frozen part: (B, 3, H, W) in [-1, 1] -> codes (B, n, d).

    This one, that of kinds which neither look at the picture nor keep anything, has no weights and gives (B, 0, 0).
    """

    def __init__(self, kind: PromptKind):
        super().__init__()
        self.kind = kind

    def forward(self, lq: Tensor) -> Tensor:
        return lq.new_zeros(len(lq), 0, 0)


class Kind(Protocol):
    """A kind of prompts: a module of this package. `width` is that of the UNet's cross-attention."""

    def embedder(self, shape: VREShape, width: int) -> Embedder:
        """The frozen part, its weights to be filled in."""

    def adapter(self, shape: VREShape, width: int) -> nn.Module:
        """The trained part, fresh: codes (B, n, d) -> prompt (B, m, width). Raises UserError where widths disagree."""
