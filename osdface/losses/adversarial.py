"""Adversarial losses: patch losses of stage 1 (eq. 7 and 8), latent losses of stage 2 (eq. 15 and 16)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PatchLoss = Literal["hinge", "log"]
# Of the latent discriminator. softplus: published, eq. 15 and 16. hinge: the ancestors' of stage 1 (VQGAN, DAEFR); no
# published program has it here.
LatentLoss = Literal["softplus", "hinge"]


def patch_generator_loss(fake: Tensor, kind: PatchLoss = "hinge") -> Tensor:
    """What the autoencoder minimises, from logits of its reconstructions.

    "hinge": -mean D, as VQGAN and DAEFR train; "log": the non-saturating form of eq. 7's logarithms.
    """
    return -fake.mean() if kind == "hinge" else generator_loss(fake)


def patch_discriminator_loss(real: Tensor, fake: Tensor, kind: PatchLoss = "hinge") -> Tensor:
    """What the patch discriminator minimises. "hinge": half the sum of both hinges; "log": eq. 7, negated."""
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    return discriminator_loss(real, fake)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, limit: float = 1e4) -> Tensor:
    """|grad of reconstruction| / (|grad of adversarial| + 1e-4) at the decoder's last layer, at most `limit`.

    VQGAN's balance, which DAEFR keeps; the paper's lambda_dis of eq. 8 multiplies it. Carries no gradient.
    """
    (by_reconstruction,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (by_adversarial,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (by_reconstruction.norm() / (by_adversarial.norm() + 1e-4)).clamp(0, limit).detach()


def generator_loss(fake: Tensor, kind: LatentLoss = "softplus") -> Tensor:
    """L_G, averaged over patches. "softplus": -E log D of eq. 15, with D = sigmoid(logit); "hinge": -E logit."""
    return F.softplus(-fake).mean() if kind == "softplus" else -fake.mean()


def discriminator_loss(real: Tensor, fake: Tensor, kind: LatentLoss = "softplus") -> Tensor:
    """L_D, averaged over patches. "softplus": -E log(1 - D(fake)) - E log D(real) of eq. 16; "hinge": half of both."""
    if kind == "hinge":
        return patch_discriminator_loss(real, fake, "hinge")
    return F.softplus(fake).mean() + F.softplus(-real).mean()
