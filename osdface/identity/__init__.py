"""Networks that say who somebody is: dlib's, which comes with a package and is free to use, and ArcFace in torch."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from osdface import weights
from osdface.errors import MissingWeights, UsageError
from osdface.identity import arcface
from osdface.identity.dlib import DlibIdentity, chips_from_aligned
from osdface.identity.network import IdentityNetwork

__all__ = ["NAMES", "DlibIdentity", "IdentityNetwork", "chips_from_aligned", "choose", "load", "similarities"]

NAMES = ("dlib", "arcface_r50", "arcface_r100", "arcface_r18")


def load(name: str, path: Path | None = None) -> IdentityNetwork:
    """The network called `name`, from its file or from `path`, frozen.

    Raises UsageError for an unknown name, MissingWeights where its file is not on this machine, UserError for another.
    """
    _known(name)
    return DlibIdentity(path) if name == "dlib" else arcface.load(name, path)


def choose(name: str) -> str:
    """The name itself, or for "auto" what this machine has: insightface's ArcFace if its file is there, else dlib's.

    Never the grey network, which is that of the metric Deg.: it is trained with where it is asked for by name.
    """
    if name != "auto":
        return _known(name)
    return next((arc for arc in ("arcface_r100", "arcface_r50") if weights.present(arc)), "dlib")


def _known(name: str) -> str:
    if name not in NAMES:
        raise UsageError(f"identity network '{name}' does not exist; known: {', '.join(NAMES)}")
    return name


def similarities(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> list[float | None]:
    """How much each FFHQ-aligned face (S, S, 3) uint8 is still the same person's: cosine of dlib's descriptors.

    1 for the same picture; different people still have 0.8 to 0.9. None where dlib's weights are not on this machine.
    """
    network = _network()
    if network is None:
        return [None] * len(before)
    compared: list[float | None] = []
    for pair in zip(before, after, strict=True):
        images = torch.from_numpy(np.stack(pair)).permute(0, 3, 1, 2) / 255
        compared.append(float(F.cosine_similarity(*network(network.chips(images))[:, None])))
    return compared


@functools.cache
def _network() -> IdentityNetwork | None:
    try:
        return load("dlib")
    except MissingWeights:
        return None
