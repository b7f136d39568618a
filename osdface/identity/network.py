"""What every identity network offers."""

from torch import Tensor, nn


class IdentityNetwork(nn.Module):
    """Face chips -> identity descriptors (B, d). Frozen; differentiable in its input.

    `name` is what configurations, logs and reports call it.
    """

    name: str

    def chips(self, images: Tensor) -> Tensor:
        """FFHQ-aligned pictures (B, 3, S, S) in [0, 1], RGB, of any size -> what `forward` takes; differentiable."""
        raise NotImplementedError

    def freeze(self) -> None:
        """No dropout, no statistics of the batch, no gradient to the parameters."""
        self.eval().requires_grad_(False)
