"""Vector quantisation: the dictionary of section 3.2 (eq. 5 and 6) and its loss (last line of eq. 7)."""

import contextlib
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

BetaTerm = Literal["commitment", "codebook"]


class Quantized(NamedTuple):
    """z: (B, d, h, w), gradient passed straight through; loss: scalar; indices: (B, h*w) int64."""

    z: Tensor
    loss: Tensor
    indices: Tensor


def quantization_loss(z: Tensor, codes: Tensor, beta: float = 0.25, beta_on: BetaTerm = "commitment") -> Tensor:
    """L_VQ of eq. 7, averaged over elements.

    With `beta_on="commitment"` (the paper) beta weighs the term that moves the encoder; "codebook" is what the
    published ancestors (VQGAN's legacy mode, DAEFR) compute: beta on the term that moves the dictionary.
    """
    codebook = (z.detach() - codes).square().mean()
    commitment = (z - codes.detach()).square().mean()
    return codebook + beta * commitment if beta_on == "commitment" else commitment + beta * codebook


def _has_autocast(z: Tensor) -> bool:
    return torch.amp.is_autocast_available(z.device.type) and not z.is_meta


class VectorQuantizer(nn.Module):
    """A dictionary of `codes` vectors of `width` elements, U(-1/codes, 1/codes) at first."""

    def __init__(self, codes: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def distances(self, z: Tensor) -> Tensor:
        """Squared distances of the positions of z (B, d, h, w) to every code: (B, h*w, codes), in fp32."""
        tokens = z.float().flatten(2).transpose(1, 2)
        codes = self.embedding.weight.float()
        exact = torch.autocast(z.device.type, enabled=False) if _has_autocast(z) else contextlib.nullcontext()
        with exact:  # half precision takes one code for another
            return tokens.square().sum(-1, keepdim=True) + codes.square().sum(-1) - 2 * tokens @ codes.T

    def forward(self, z: Tensor, beta: float = 0.25, beta_on: BetaTerm = "commitment") -> Quantized:
        """Replace every position of z (B, d, h, w) by its nearest code."""
        indices = self.distances(z.detach()).argmin(-1)
        codes = self.embedding(indices).transpose(1, 2).reshape_as(z)
        loss = quantization_loss(z, codes, beta, beta_on)
        return Quantized(z + (codes - z).detach(), loss, indices)

    def nearest_distinct(self, z: Tensor, count: int) -> Tensor:
        """The `count` distinct codes nearest to any position of z (B, d, h, w): (B, count, d).

        As the published program selects its visual prompt: every position keeps its nearest code, each code its
        smallest distance, rows go by ascending distance; where fewer codes are in use the last rows are zero.
        """
        nearest, index = self.distances(z).min(-1)
        best = nearest.new_full((len(z), self.embedding.num_embeddings), torch.inf)
        best = best.scatter_reduce(1, index, nearest, "amin")
        distance, order = best.sort(dim=1, stable=True)
        rows = self.embedding(order[:, :count])
        return rows * distance[:, :count, None].isfinite()

    def nearest_positions(self, z: Tensor, count: int) -> Tensor:
        """The nearest codes of the `count` positions of z (B, d, h, w) that lie closest to theirs: (B, count, d).

        Rows go by ascending distance; a code comes as often as positions have it. The published program's prompt
        without an adapter.
        """
        nearest, index = self.distances(z).min(-1)
        order = nearest.sort(dim=1, stable=True).indices[:, :count]
        return self.embedding(index.gather(1, order))


def code_counts(indices: Tensor, codes: int) -> Tensor:
    """How often each of `codes` codes comes: (codes,) int64."""
    return torch.bincount(indices.flatten(), minlength=codes)


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of code use: 1 when one code does everything, their number when all are used alike."""
    share = counts / counts.sum()
    return (-(share * (share + 1e-10).log()).sum()).exp()
