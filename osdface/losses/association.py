"""The feature association loss of stage 1 (eq. 9 and 10)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from osdface import ranks

DAEFR_SCALE = 1 / 0.07
# Which similarity matrix: one for each picture, as eq. 9 is written; or one of all rows at hand (a rank's micro-batch),
# as in DAEFR's code, whose loss then depends on the number of ranks; or one of all ranks' micro-batches.
Over = Literal["picture", "batch", "all"]


def similarity(hq: Tensor, lq: Tensor) -> Tensor:
    """M_assoc of eq. 9: cosines of the positions of hq (rows) and lq (columns), (B, d, h, w) each: (B, h*w, h*w)."""
    rows_hq, rows_lq = (F.normalize(x.flatten(2).transpose(1, 2), dim=-1) for x in (hq, lq))
    return rows_hq @ rows_lq.transpose(1, 2)


def association_loss(hq: Tensor, lq: Tensor, over: Over = "picture", scale: float = DAEFR_SCALE) -> Tensor:
    """Cross-entropy both ways of the similarity matrix of HQ and LQ features, matched by position; a scalar.

    hq, lq: encoder features, (B, d, h, w), of the same pictures. `over="picture"` builds the K x K matrix of eq. 9 for
    each picture (K = h*w); "batch" builds one (B*K) x (B*K); "all" one of the rows of all ranks, the same on each.
    `scale` multiplies the cosine similarities: eq. 9 names none (1), DAEFR holds it at 1 / 0.07.
    """
    if over == "all":
        hq, lq = ranks.gathered(hq), ranks.gathered(lq)
    if over != "picture":
        hq, lq = (x.transpose(0, 1).flatten(1)[None, ..., None] for x in (hq, lq))
    logits = scale * similarity(hq, lq)
    target = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    along_lq = F.cross_entropy(logits.transpose(1, 2), target)
    along_hq = F.cross_entropy(logits, target)
    return (along_hq + along_lq) / 2


def found(hq: Tensor, lq: Tensor) -> Tensor:
    """Where each position of lq finds the most similar one of hq, (B, d, h, w) each, in its picture: (B, h*w) int64."""
    return similarity(hq, lq).argmax(1)


def hit_rate(hq: Tensor, lq: Tensor) -> Tensor:
    """The share of positions of lq that find their own in hq; by chance 1 / (h*w)."""
    where = found(hq, lq)
    return (where == torch.arange(where.shape[1], device=where.device)).float().mean()
