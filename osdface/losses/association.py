"""The feature association loss of stage 1 (eq. 9 and 10)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

DAEFR_SCALE = 1 / 0.07


def association_loss(
    hq: Tensor, lq: Tensor, over: Literal["picture", "batch"] = "picture", scale: float = DAEFR_SCALE
) -> Tensor:
    """Cross-entropy both ways of the similarity matrix of HQ and LQ features, matched by position.

    hq, lq: encoder features before quantisation, (B, d, h, w), of the same pictures. `over="picture"` builds the
    K x K matrix of eq. 9 for each picture (K = h*w); "batch" builds one (B*K) x (B*K), as DAEFR's code does. `scale`
    multiplies the cosine similarities: eq. 9 names none (1), DAEFR holds it at 1 / 0.07.
    """
    rows_hq, rows_lq = (F.normalize(x.flatten(2).transpose(1, 2), dim=-1) for x in (hq, lq))
    if over == "batch":
        rows_hq, rows_lq = rows_hq.flatten(0, 1)[None], rows_lq.flatten(0, 1)[None]
    similarity = scale * rows_hq @ rows_lq.transpose(1, 2)
    target = torch.arange(similarity.shape[1], device=similarity.device).expand(len(similarity), -1)
    along_lq = F.cross_entropy(similarity.transpose(1, 2), target)
    along_hq = F.cross_entropy(similarity, target)
    return (along_hq + along_lq) / 2
