"""What every identity network offers."""

from typing import Self

from torch import Tensor, nn


class IdentityNetwork(nn.Module):
    """Face chips -> identity descriptors (B, d). Frozen; differentiable in its input.

    `name` is what configurations, logs and reports call it.
    """

    name: str

    def chips(self, images: Tensor) -> Tensor:
        """FFHQ-aligned pictures (B, 3, S, S) in [0, 1], RGB, of any size -> what `forward` takes; differentiable."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Nothing: it stays as `freeze` left it, also as a part of a module that is trained."""
        return self

    def freeze(self) -> None:
        """No dropout, no statistics of the batch, no gradient to the parameters."""
        super().train(False)
        self.requires_grad_(False)
