"""The facial identity loss (eq. 13)."""

import torch.nn.functional as F
from torch import Tensor, nn


def identity_loss(network: nn.Module, restored_chips: Tensor, target_chips: Tensor) -> Tensor:
    """L_ID of eq. 13: 1 - cos of the identity descriptors, averaged over pictures.

    `network` maps face chips to descriptors; the paper's is an ArcFace. Only the restored side carries a gradient.
    """
    target = network(target_chips).detach()
    return (1 - F.cosine_similarity(network(restored_chips), target)).mean()
