"""A prompt that holds nothing: what the generator does by its LoRA alone."""

from torch import Tensor, nn

from osdface.presets import VREShape
from osdface.prompts.protocol import Embedder


class Nothing(Embedder):
    """Zeros (B, n, width): keys and values of cross-attention are zero, it adds no more than its output's bias.

    Not the features of an empty text, which differ from zero and need a text encoder: kind "clip" has those.
    """

    def __init__(self, count: int, width: int):
        super().__init__("empty")
        self.count, self.width = count, width

    def forward(self, lq: Tensor) -> Tensor:
        return lq.new_zeros(len(lq), self.count, self.width)


def embedder(shape: VREShape, width: int) -> Nothing:
    return Nothing(shape.prompts, width)


def adapter(shape: VREShape, width: int) -> nn.Identity:
    return nn.Identity()
