"""The facial identity loss (eq. 13)."""

import torch.nn.functional as F
from torch import Tensor, nn


def identity_loss(network: nn.Module, restored_chips: Tensor, target_chips: Tensor) -> Tensor:
    """L_ID of eq. 13: 1 - cos of the identity descriptors, averaged over pictures; a scalar in [0, 2].

    `network` maps face chips, made of pictures by its own `chips`, to descriptors (B, d). The paper's is an ArcFace;
    where its weights are not on this machine, `dlib` stands in (`osdface.identity`), whose descriptors of different
    people still have a cosine of 0.8 to 0.9, so its loss is on a smaller scale. Only the restored side carries a
    gradient.
    """
    target = network(target_chips).detach()
    return (1 - F.cosine_similarity(network(restored_chips), target)).mean()
