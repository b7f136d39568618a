"""One trained prompt for all pictures, as DFOSD has it: the first row of table 4."""

import torch
from torch import Tensor, nn

from osdface.presets import VREShape
from osdface.prompts.protocol import Embedder


class LearnedPrompt(nn.Module):
    """A parameter (n, width), the same for every picture: codes (B, 0, 0) -> (B, n, width).

    It starts as N(0, 0.02^2), as CoOp's learned context does; how DFOSD starts its own is not published.
    """

    def __init__(self, count: int, width: int):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(count, width))
        nn.init.normal_(self.tokens, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        return self.tokens.expand(len(codes), -1, -1)


def embedder(shape: VREShape, width: int) -> Embedder:
    return Embedder("learned")


def adapter(shape: VREShape, width: int) -> LearnedPrompt:
    return LearnedPrompt(shape.prompts, width)
