"""Metrics of faces: whether it is still the same person, and whether the features lie where they did.

Pictures are FFHQ-aligned faces (B, H, W, 3) uint8 RGB, references of the same shape -> (B,).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface import identity as networks
from osdface.identity.arcface import GREY_SIDE, GreyArcFace
from pipelines.metrics.measures import Values
from pipelines.metrics.networks import fill, frozen, tensor

LANDMARKS, HEATMAP, FAN_SIDE = 98, 64, 256  # of WFLW; pixels of a side of the heatmaps and of the network's input


def identity(name: str, device: str, path: Path) -> Values:
    """Cosine of the descriptors by an identity network of `osdface.identity`, in [-1, 1].

    Scales differ: descriptors of different people by "dlib" still have 0.8 to 0.9.
    """
    network = networks.load(name, path).to(device)

    def values(images: np.ndarray, references: np.ndarray) -> Sequence[float]:
        with torch.inference_mode():
            a, b = (network(network.chips(tensor(pictures, device))) for pictures in (images, references))
            return _cosines(a, b)

    return values


def deg(device: str, path: Path) -> Values:
    """VQFR's Deg.: the angle in degrees between descriptors of the whole pictures, grey, at 128 pixels."""
    network = _grey(device, path)

    def chips(images: np.ndarray) -> Tensor:
        small = [cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (GREY_SIDE, GREY_SIDE)) for image in images]
        return ((torch.from_numpy(np.stack(small))[:, None].float() - 127.5) / 127.5).to(device)

    def values(images: np.ndarray, references: np.ndarray) -> Sequence[float]:
        with torch.inference_mode():
            angles = np.arccos(_cosines(network.embed(chips(images)), network.embed(chips(references))))
        return [math.degrees(angle) for angle in angles]

    return values


def ida(device: str, path: Path) -> Values:
    """DAEFR's IDA: the angle in radians by the same network, which gets pictures in another way.

    As published it weights blue, green and red as if they were red, green and blue, and takes them in [0, 1].
    """
    network = _grey(device, path)

    def values(images: np.ndarray, references: np.ndarray) -> Sequence[float]:
        with torch.inference_mode():
            a, b = (network.embed(network.chips(tensor(p[..., ::-1], device))) for p in (images, references))
            return [float(angle) for angle in np.arccos(_cosines(a, b))]

    return values


def lmd(device: str, path: Path) -> Values:
    """VQFR's LMD: the mean distance of 98 landmarks in pixels of the pictures, found by a stack of four hourglasses.

    facexlib's network; `decode` is its decoding without its two slips at the border of a heatmap, where it shifts
    all points of a picture if one lies on the first or last row, and leaves the array if one lies in the last corner.
    """
    from facexlib.alignment.awing_arch import FAN

    network = FAN(num_modules=4, num_landmarks=LANDMARKS, device=device)
    fill(network, path, "the landmark network")
    frozen(network, device)

    def values(images: np.ndarray, references: np.ndarray) -> Sequence[float]:
        with torch.inference_mode():
            apart = landmarks(network, images, device) - landmarks(network, references, device)
        return [float(distance) for distance in np.linalg.norm(apart, axis=2).mean(1)]

    return values


def landmarks(network: nn.Module, images: np.ndarray, device: str) -> np.ndarray:
    """Pictures (B, H, W, 3) uint8 -> (B, 98, 2), x and y in their pixels."""
    small = np.stack([cv2.resize(image, (FAN_SIDE, FAN_SIDE)) for image in images])
    heatmaps, _ = network(tensor(small, device))
    height, width = images.shape[1:3]
    return decode(heatmaps[-1][:, :LANDMARKS]) * (width / HEATMAP, height / HEATMAP)  # after the last: a boundary


def decode(heatmaps: Tensor) -> np.ndarray:
    """Heatmaps (B, N, H, W) -> (B, N, 2), x and y in their pixels: the centre of the largest value's pixel, moved a
    quarter of a pixel along each axis towards the larger neighbour."""
    padded = F.pad(heatmaps.float(), (1, 1, 1, 1)).cpu().numpy()
    batch, count, height, width = heatmaps.shape
    rows, columns = np.unravel_index(heatmaps.flatten(2).argmax(2).cpu().numpy(), (height, width))
    b, n = np.ogrid[:batch, :count]
    right, left = padded[b, n, rows + 1, columns + 2], padded[b, n, rows + 1, columns]
    below, above = padded[b, n, rows + 2, columns + 1], padded[b, n, rows, columns + 1]
    shift = np.stack([np.sign(right - left), np.sign(below - above)], 2) / 4
    return np.stack([columns, rows], 2) + shift + 0.5


def _grey(device: str, path: Path) -> GreyArcFace:
    network = networks.load("arcface_r18", path).to(device)
    assert isinstance(network, GreyArcFace)
    return network


def _cosines(a: Tensor, b: Tensor) -> list[float]:
    """In float64, since the angle between nearly equal descriptors hangs on the last digits."""
    found: list[float] = F.cosine_similarity(a.double(), b.double()).clamp(-1, 1).tolist()
    return found
