"""VQGAN's adaptive weight of the adversarial term, which DAEFR keeps; lambda_dis of eq. 8 multiplies it."""

from typing import Literal

from torch import Tensor
from torch.nn.grad import conv2d_weight

from osdface import ranks

# Whose gradients count: "rank", those of a rank's own micro-batch, as under the ancestors' data parallelism: the weight
# then depends on how many ranks there are; "all", their mean over ranks: the same weight on each; "none": the weight is
# 1, eq. 8 as written. Of micro-batches that are accumulated one after another each has its own.
Adaptive = Literal["all", "rank", "none"]


def adaptive_weight(
    by_reconstruction: Tensor, by_adversarial: Tensor, last: Tensor, limit: float = 1e4, over: Adaptive = "all"
) -> Tensor:
    """|grad of reconstruction| / (|grad of adversarial| + 1e-4) at the decoder's last weights, at most `limit`.

    by_*: gradients of the two terms at the picture (B, 3, H, W), which a 3x3 convolution made of `last` (B, C, H, W).
    The weights' gradients follow from these without touching the weights, which DeepSpeed may have partitioned.
    """
    if over == "none":
        return by_reconstruction.new_ones(())
    shape = (by_reconstruction.shape[1], last.shape[1], 3, 3)
    at_weights = [conv2d_weight(last, shape, g, padding=1) for g in (by_reconstruction, by_adversarial)]
    reconstruction, adversarial = (ranks.mean(g) if over == "all" else g for g in at_weights)
    return (reconstruction.norm() / (adversarial.norm() + 1e-4)).clamp(0, limit)
