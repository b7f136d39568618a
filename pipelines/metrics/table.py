"""Every metric: its labels, the files that it needs, and the function that makes it of them.

Nothing that takes long is imported before a metric is made.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.metrics import classical, fid, iqa, people
from pipelines.metrics.fid import Convention
from pipelines.metrics.measures import FrechetDistance, Measure, Values
from pipelines.metrics.protocol import Better

GREY = (("deg", "arcface_r18"),)  # one network, handed out under two names
VGG, ALEX, RESNET, INCEPTION = "VGG16", "AlexNet", "grey ResNet-18", "Inception (2015)"


class Single(NamedTuple):
    """A metric of single pictures. network and what follows `reference`: see `Measure`.

    files: the weight files, as `osdface.weights` calls them; of a tuple of names the first that is there. make: from
    device and paths of those files.
    """

    name: str
    better: Better
    network: str
    reference: bool
    files: tuple[tuple[str, ...], ...]
    make: Callable[..., Values]
    smallest: int = 1
    least: float = -math.inf

    def build(self, device: str, paths: list[Path], digest: str) -> Measure:
        values = self.make(device, *paths)
        return Measure(self.name, self.better, self.network, digest, self.reference, values, self.smallest, self.least)


class Set(NamedTuple):
    """FID in a convention; to the references, or where there are two files to the statistics in the second."""

    name: str
    convention: Convention
    reference: bool
    files: tuple[tuple[str, ...], ...]

    def build(self, device: str, paths: list[Path], digest: str) -> FrechetDistance:
        extract = fid.extractor(self.convention, device, paths[0])
        known = None if self.reference else fid.statistics(self.convention, paths[1])
        return FrechetDistance(self.name, INCEPTION, digest, self.reference, extract, known)


def _each(value: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[str], Values]:
    """A formula of one picture and its reference, for batches."""
    return lambda device: lambda images, references: list(map(value, images, references))


def _identity(name: str, file: str) -> Single:
    return Single(f"identity.{name}", "higher", name, True, ((file,),), partial(people.identity, name))


DLIB = (("dlib_identity",),)
# Least sizes: SSIM's window; what leaves a feature map after the pools of VGG16, AlexNet and ResNet-50; NIQE's
# covariance is over blocks of 96 pixels, of which one alone has none.
SINGLES = (
    Single("psnr", "higher", "", True, (), _each(classical.psnr)),
    Single("ssim", "higher", "", True, (), _each(classical.ssim), classical.WINDOW),
    Single("lpips.vgg", "lower", VGG, True, (("lpips_vgg",), ("vgg16",)), partial(iqa.lpips, "vgg"), 16),
    Single("lpips.alex", "lower", ALEX, True, (("lpips_alex",), ("alexnet",)), partial(iqa.lpips, "alex"), 32),
    Single("lpips.dlib", "lower", "dlib", True, DLIB, partial(iqa.over_dlib, "lpips")),
    Single("dists", "lower", VGG, True, (("dists",), ("vgg16",)), iqa.dists, 16),
    Single("dists.dlib", "lower", "dlib", True, DLIB, partial(iqa.over_dlib, "dists")),
    Single("musiq", "higher", "MUSIQ (KonIQ-10k)", False, (("musiq",),), iqa.musiq),
    Single("niqe", "lower", "natural scene statistics", False, (("niqe",),), iqa.niqe, 192),
    Single("clipiqa", "higher", "CLIP RN50", False, (("clip_rn50",),), iqa.clipiqa, 32),
    Single("maniqa", "higher", "MANIQA (KonIQ-10k)", False, (("maniqa",),), iqa.maniqa),
    Single("deg", "lower", RESNET, True, GREY, people.deg, least=1),
    Single("lmd", "lower", "AWing FAN (WFLW)", True, (("lmd",),), people.lmd),
    Single("ida", "lower", RESNET, True, GREY, people.ida),
    _identity("dlib", "dlib_identity"),
    _identity("arcface_r100", "arcface_r100"),
    _identity("arcface_r50", "arcface_r50"),
)
SETS = (
    Set("fid.vqfr", "vqfr", True, (("inception",),)),
    Set("fid.clean", "clean", True, (("inception",),)),
    Set("fid_ffhq.vqfr", "vqfr", False, (("inception",), ("fid_ffhq_vqfr",))),
    Set("fid_ffhq.clean", "clean", False, (("inception",), ("fid_ffhq_clean",))),
)
