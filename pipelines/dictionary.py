"""Health of stage 1's dictionaries: which codes are in use, how far features lie from them; and pictures of it."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from osdface.losses.association import found, similarity
from pipelines.report import sheet, to_uint8

BINS = 40
Columns = dict[str, Sequence[np.ndarray] | np.ndarray]  # pictures, uint8 RGB, by title


class CodeUse(nn.Module):
    """How many optimisation steps ago each code was last used, by any rank; part of a checkpoint."""

    age: Tensor

    def __init__(self, codes: int):
        super().__init__()
        self.register_buffer("age", torch.zeros(codes, dtype=torch.long))

    def observe(self, counts: Tensor, new_step: bool) -> None:
        """Note how often a micro-batch used each code, (codes,); `new_step`: it is an optimisation step's first."""
        if new_step:
            self.age += 1
        self.age[counts > 0] = 0

    def dead(self, window: int) -> Tensor:
        """Indices of the codes that none of the last `window` optimisation steps used."""
        return (self.age >= window).nonzero().flatten()


class Health(NamedTuple):
    """A dictionary on some pictures.

    counts: use of each code, (codes,); to_code: squared distance of each position to its code; between: of each code
    to its nearest other one; age: see CodeUse.
    """

    counts: Tensor
    to_code: Tensor
    between: Tensor
    age: Tensor


def draw_health(dictionaries: dict[str, Health]) -> np.ndarray:
    """Use of codes, distances to and between them, and steps since their last use: a row for each dictionary."""
    from matplotlib.figure import Figure  # without pyplot, whose state is process-wide

    figure = Figure((12, 3 * len(dictionaries)), layout="constrained")
    rows = figure.subplots(len(dictionaries), 3, squeeze=False)
    for (use, distance, unused), (name, health) in zip(rows, dictionaries.items(), strict=True):
        counts, to_code, between, age = (tensor.detach().float().cpu().numpy() for tensor in health)
        use.bar(np.arange(len(counts)), np.sort(counts)[::-1], width=1)
        use.set_title(f"{name}: positions of each code, {(counts > 0).sum()} of {len(counts)} used", fontsize=9)
        edges = np.histogram_bin_edges(np.concatenate([to_code, between]), BINS)
        distance.hist(to_code, edges, alpha=0.6, label="position to its code")
        distance.hist(between, edges, alpha=0.6, label="code to the nearest other")
        distance.set_yscale("log")
        distance.set_title(f"{name}: squared distances", fontsize=9)
        distance.legend(fontsize=8)
        unused.hist(age, BINS)
        unused.set_yscale("log")
        unused.set_title(f"{name}: steps since a code's last use", fontsize=9)
    coded = io.BytesIO()
    figure.savefig(coded, format="png", dpi=80)
    return np.asarray(Image.open(coded).convert("RGB"))


def draw_association(images: dict[str, Tensor], hq: Tensor, lq: Tensor) -> np.ndarray:
    """Pictures, their similarity matrix, and where LQ positions find the most similar HQ one; misses are dark.

    images: "hq" and "lq", (B, 3, S, S) in [-1, 1]; hq, lq: features (B, d, s, s). A place has a colour (right: red,
    down: green); where all positions find their own, "found" looks like "places".
    """
    height, width = hq.shape[-2:]
    matrices, where = similarity(hq, lq).float().cpu().numpy(), found(hq, lq).cpu().numpy()
    y, x = np.divmod(np.arange(height * width), width)
    colours = np.stack([255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), np.full(len(x), 96)], -1)
    places = colours.astype(np.uint8).reshape(height, width, 3)
    columns: Columns = {
        "HQ": to_uint8(images["hq"]),
        "LQ": to_uint8(images["lq"]),
        "similarity": [_heat(matrix) for matrix in matrices],
        "found": [places.reshape(-1, 3)[row].reshape(places.shape) for row in where],
        "places": [places] * len(where),
        "hits": [
            _dimmed(image, (row == np.arange(len(row))).reshape(height, width))
            for image, row in zip(to_uint8(images["lq"]), where, strict=True)
        ],
    }
    return _grid(columns)


def draw_attention(images: dict[str, Tensor], attention: dict[str, Tensor], features: dict[str, Tensor]) -> np.ndarray:
    """Fig. 4's "att" and "enc" for each kind of picture: what the last self-attention layer looks at, and the features.

    attention: (B, s*s, s*s), shown as what each position gives to all others; features: (B, d, s, s), as their length.
    """
    columns: Columns = {}
    for name, pictures in images.items():
        given = attention[name].mean(1).reshape(len(pictures), *features[name].shape[-2:])
        columns[name.upper()] = to_uint8(pictures)
        columns[f"{name.upper()} att"] = [_heat(row) for row in given.float().cpu().numpy()]
        columns[f"{name.upper()} enc"] = [_heat(row) for row in features[name].norm(dim=1).float().cpu().numpy()]
    return _grid(columns)


def _grid(columns: Columns) -> np.ndarray:
    return sheet(list(zip(*columns.values(), strict=True)), list(columns))


def _heat(values: np.ndarray) -> np.ndarray:
    """(h, w) -> uint8 RGB, from the smallest to the largest value."""
    scaled = cv2.normalize(values, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(scaled, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def _dimmed(image: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """A uint8 picture at a quarter of its brightness where the coarser mask `kept` (h, w) does not hold."""
    mask = cv2.resize(kept.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return (image * np.where(mask, 1.0, 0.25)[..., None]).astype(np.uint8)
