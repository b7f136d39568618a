"""FID by the Inception network of 2015, in two conventions that differ in how pictures get to 299 pixels.

"vqfr" is that of the field's papers on faces: bilinear without antialiasing, then [-1, 1]. "clean" is pyiqa's default,
clean-fid's: bicubic with antialiasing, then (value - 128) / 128.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from osdface.weightfile import read_statistics
from pipelines.metrics.frechet import Gaussian, published
from pipelines.metrics.networks import fill, frozen, replaced, tensor

Convention = Literal["vqfr", "clean"]
SIDE = 299


@functools.cache
def extractor(convention: Convention, device: str, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """(B, H, W, 3) uint8 RGB -> (B, 2048) float64, the features after the last pooling."""
    network = _inception(device, path)
    inputs = {"vqfr": _vqfr, "clean": _clean}[convention]

    def extract(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            features: np.ndarray = network(inputs(images, device))[0].flatten(1).double().cpu().numpy()
        return features

    return extract


def statistics(convention: Convention, path: Path) -> Gaussian:
    """Of FFHQ at 512 pixels, as published. Raises UserError where the file holds something else."""
    return published(*read_statistics(f"fid_ffhq_{convention}", path))


@functools.lru_cache(1)
def _inception(device: str, path: Path) -> nn.Module:
    from pyiqa.archs import inception

    def load(network: nn.Module, url: str) -> None:
        fill(network, path, "Inception")

    with replaced(inception, "load_pretrained_network", load):
        return frozen(inception.InceptionV3(), device)


def _vqfr(images: np.ndarray, device: str) -> Tensor:
    return F.interpolate(tensor(images, device) * 2 - 1, (SIDE, SIDE), mode="bilinear", align_corners=False)


def _clean(images: np.ndarray, device: str) -> Tensor:
    channels = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32).reshape(-1, *images.shape[1:3])
    small = [np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in channels]
    pictures = np.stack(small).clip(0, 255).reshape(len(images), 3, SIDE, SIDE)
    return (torch.from_numpy(pictures).to(device) - 128) / 128
