"""Metrics that pyiqa has, by its own networks and formulas, and DISTS and LPIPS over dlib's features.

Each function makes one from its files: pictures (B, H, W, 3) uint8 RGB, and references for the first four -> (B,).
pyiqa takes seconds to import, so it is imported inside them.
"""

import functools
import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from torch import nn

from osdface import weightfile
from osdface.losses.perceptual import LPIPS_WIDTHS, PerceptualDistance, read_dists, read_lpips
from pipelines.metrics.measures import Values
from pipelines.metrics.networks import fill, frozen, replaced, tensor, torchvision

BACKBONES = {"vgg": "vgg16", "alex": "alexnet"}


def lpips(kind: Literal["vgg", "alex"], device: str, calibration: Path, backbone: Path) -> Values:
    """LPIPS 0.1 over VGG16 or AlexNet."""
    from pyiqa.archs import lpips_arch

    name = BACKBONES[kind]
    with replaced(lpips_arch.models, name, lambda **_: torchvision(name, backbone)):
        network = lpips_arch.LPIPS(net=kind, pretrained=False)
    weights = read_lpips(calibration, LPIPS_WIDTHS[f"lpips_{kind}"])
    for layer, weight in zip(network.lins, weights, strict=True):
        layer.model[-1].weight.data.copy_(weight.reshape(1, -1, 1, 1))
    return _values(network, device)


def dists(device: str, calibration: Path, backbone: Path) -> Values:
    """DISTS over VGG16."""
    from pyiqa.archs import dists_arch

    with replaced(dists_arch.models, "vgg16", lambda **_: torchvision("vgg16", backbone)):
        network = dists_arch.DISTS(pretrained=False)
    for parameter, weight in zip((network.alpha, network.beta), read_dists(calibration), strict=True):
        parameter.data.copy_(weight.reshape(parameter.shape))
    return _values(network, device)


def over_dlib(kind: Literal["dists", "lpips"], device: str, path: Path) -> Values:
    """The same formulas over the features of dlib's face network, with uniform weights: under their own names."""
    return _values(PerceptualDistance(kind, "dlib").distance, device)


def niqe(device: str, parameters: Path) -> Values:
    """NIQE as pyiqa's default has it: of the luma of YIQ, in blocks of 96 pixels.

    The one file of pyiqa's that is always here: so pyiqa waits for the first pictures that are large enough.
    """
    weightfile.verify("niqe", parameters)

    @functools.cache
    def measure() -> Values:
        from pyiqa.archs.niqe_arch import NIQE

        return _values(NIQE(pretrained_model_path=str(parameters)), device)

    def values(images: np.ndarray) -> Sequence[float]:
        try:
            return measure()(images)
        except torch.linalg.LinAlgError:  # a flat picture has no value, and in pyiqa neither has its batch
            return [values(images[i : i + 1])[0] for i in range(len(images))] if len(images) > 1 else [math.nan]

    return values


def musiq(device: str, path: Path) -> Values:
    """MUSIQ trained on KonIQ-10k."""
    from pyiqa.archs.musiq_arch import MUSIQ

    network = MUSIQ(pretrained=False)
    fill(network, path, "MUSIQ")
    return _values(network, device)


def maniqa(device: str, path: Path) -> Values:
    """MANIQA trained on KonIQ-10k, over 20 crops of 224 pixels; pyiqa enlarges smaller pictures to 225.

    The file has the weights of the vision transformer too, which pyiqa first fetches without them.
    """
    from pyiqa.archs import maniqa_arch

    make = maniqa_arch.timm.create_model
    with replaced(maniqa_arch.timm, "create_model", lambda name, **_: make(name, pretrained=False)):
        network = maniqa_arch.MANIQA(pretrained=False, scale=0.8)
    fill(network, path, "MANIQA")
    return _values(network, device)


def clipiqa(device: str, path: Path) -> Values:
    """CLIP-IQA over CLIP's ResNet-50, without position embedding, averaged over pyiqa's five pairs of prompts.

    The file is a TorchScript archive, so its digest is checked before it is opened.
    """
    weightfile.verify("clip_rn50", path)
    _import_clip()
    from pyiqa.archs.clipiqa_arch import CLIPIQA

    network = CLIPIQA(backbone=str(path))
    network.clip_model[0].to(device)  # kept in a list, which is no part of the module
    return _values(network, device)


def _import_clip() -> None:
    """openai-clip takes `packaging` from pkg_resources, which setuptools no longer has."""
    if "clip" in sys.modules or importlib.util.find_spec("pkg_resources"):
        return
    import packaging.version

    stand_in = ModuleType("pkg_resources")
    stand_in.packaging = packaging  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = stand_in
    try:
        importlib.import_module("clip")
    finally:
        del sys.modules["pkg_resources"]


def _values(network: nn.Module, device: str) -> Values:
    network = frozen(network, device)

    def values(*pictures: np.ndarray) -> Sequence[float]:
        with torch.inference_mode():
            found: list[float] = network(*(tensor(images, device) for images in pictures)).reshape(-1).tolist()
        return found

    return values
