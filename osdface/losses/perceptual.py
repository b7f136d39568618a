"""Perceptual losses: VGG19 features (eq. 7), DISTS and LPIPS, and their edge-aware forms (eq. 14).

DISTS and LPIPS are formulas over the feature maps of a network. The published ones are over VGG16's, with weights
calibrated by people's judgements; where those files are not on this machine, dlib's face network stands in under its
own name, with uniform weights. Never a random one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface import weights
from osdface.identity.dlib import DlibIdentity
from osdface.tensors import check, read_pickle

Grey = Literal["mean", "luma"]
Kind = Literal["ea_dists", "dists", "ea_lpips", "lpips"]
Features = Literal["vgg16", "dlib"]
FeatureChoice = Literal["auto", "vgg16", "dlib"]
StageOneKind = Literal["vgg19", "lpips", "dlib"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of pictures in [0, 1]
LPIPS_WIDTHS = {"lpips_vgg": (64, 128, 256, 512, 512), "lpips_alex": (64, 192, 384, 256, 256)}


def _torchvision(name: str, layers: int) -> nn.Sequential:
    """The first layers of a torchvision VGG's `features`, frozen, from its published file.

    Raises MissingWeights where that is not on this machine, UserError where it is another network's.
    """
    from torchvision.models import get_model

    path = weights.find(name)
    with torch.device("meta"):
        features = get_model(name).features[:layers]
    read = read_pickle(path)
    wanted = {f"features.{key}": tensor.shape for key, tensor in features.state_dict().items()}
    check(f"{path}: not {name}'s weights", wanted, {key: read[key] for key in wanted if key in read})
    features.load_state_dict({key.removeprefix("features."): read[key] for key in wanted}, assign=True)
    return features.eval().requires_grad_(False)


class _Normalised(nn.Module):
    """Pictures in [0, 1] as torchvision's networks were trained on them."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in zip(("mean", "deviation"), IMAGENET, strict=True):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.deviation


class VGG19Distance(nn.Module):
    """L_per of eq. 7: mean squared difference of VGG19's conv5_4 features.

    Pictures (B, 3, H, W) in [-1, 1] -> scalar. The paper names the network, not the layer: conv5_4 is inferred.
    Raises MissingWeights where torchvision's weight file is not on this machine.
    """

    name = "vgg19"

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(_Normalised(), *_torchvision("vgg19", 35))

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(*(self.features(x.float() / 2 + 0.5) for x in (image, target)))


class _L2Pool(nn.Module):
    """DISTS's pooling by half: square root of the squares blurred by a 3x3 Hann window."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        hann = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("window", hann[:, None] * hann)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        window = self.window.expand(channels, 1, -1, -1)
        return (F.conv2d(x.square(), window, stride=2, padding=1, groups=channels) + 1e-12).sqrt()


class VGG16Features(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] -> the maps relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of VGG16.

    smooth: with DISTS's pooling in place of the largest of four.
    """

    ENDS = (4, 9, 16, 23, 30)  # layers of torchvision's `features`; a pooling opens all stages but the first

    def __init__(self, smooth: bool):
        super().__init__()
        layers = _torchvision("vgg16", self.ENDS[-1])
        self.normalise = _Normalised()
        self.stages = nn.ModuleList()
        for begin, end in zip((0, *self.ENDS), self.ENDS, strict=False):
            stage = [_L2Pool() if smooth and isinstance(layer, nn.MaxPool2d) else layer for layer in layers[begin:end]]
            self.stages.append(nn.Sequential(*stage))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, h = [], self.normalise(images)
        for stage in self.stages:
            maps.append(h := stage(h))
        return maps


class DlibFeatures(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] -> five maps of dlib's face network, 32, 32, 64, 128 and 256 channels wide.

    Pictures keep their size, so that what is compared is the texture of these very pixels, as with VGG16: at the scale
    of the network's own training, a face of 150 pixels, one of 512 would lose its detail, and one of 64 take twelve
    times as long. Only below SMALLEST they are enlarged to it, where the last map has one position.
    """

    STAGES = 4  # the fifth and last needs pictures of 128 pixels to have a map at all
    SMALLEST = 64

    def __init__(self) -> None:
        super().__init__()
        self.network = DlibIdentity()

    def forward(self, images: Tensor) -> list[Tensor]:
        if (side := min(images.shape[-2:])) < self.SMALLEST:
            size = [round(length * self.SMALLEST / side) for length in images.shape[-2:]]
            images = F.interpolate(images, size, mode="bilinear")
        return self.network.maps(images, self.STAGES)


Maps = Callable[[Tensor], list[Tensor]]  # pictures (B, 3, H, W) in [0, 1] -> feature maps


class DISTS(nn.Module):
    """DISTS: 1 - the weighted sum of agreement in mean and in structure, by channel, of pictures and feature maps.

    (B, 3, H, W) twice -> (B,), 0 for equal pictures. calibration: alpha and beta; without, every map counts the same,
    and in it every channel.
    """

    def __init__(self, features: Maps, calibration: tuple[Tensor, Tensor] | None = None):
        super().__init__()
        self.features = features
        self.calibration: nn.ParameterDict | None = None
        if calibration:
            alpha, beta = calibration
            total = alpha.sum() + beta.sum()
            self.calibration = nn.ParameterDict({"alpha": alpha / total, "beta": beta / total}).requires_grad_(False)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        agreements = [_agreement(x, y) for x, y in zip(self._maps(image), self._maps(target), strict=True)]
        if self.calibration is None:
            return 1 - torch.stack([(mean + structure).mean(1) / 2 for mean, structure in agreements]).mean(0)
        means, structures = (torch.cat(parts, 1) for parts in zip(*agreements, strict=True))
        return 1 - means @ self.calibration["alpha"] - structures @ self.calibration["beta"]

    def _maps(self, images: Tensor) -> list[Tensor]:
        return [images, *self.features(images)]


def _agreement(x: Tensor, y: Tensor, floor: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Of two maps (B, C, H, W): agreement of means and of structure, each (B, C), 1 where equal."""
    x, y = x.flatten(2), y.flatten(2)
    mean_x, mean_y = x.mean(2), y.mean(2)
    of_means = (2 * mean_x * mean_y + floor) / (mean_x.square() + mean_y.square() + floor)
    # Centred first: where a map hardly varies, the difference of large means would be coarser than the floor.
    x, y = x - mean_x[..., None], y - mean_y[..., None]
    covariance, variances = (x * y).mean(2), x.square().mean(2) + y.square().mean(2)
    return of_means, (2 * covariance + floor) / (variances + floor)


class LPIPS(nn.Module):
    """LPIPS: squared differences of feature maps normalised to length 1 at every position, weighted by channel.

    (B, 3, H, W) twice -> (B,), 0 for equal pictures. calibration: the channels' weights by map; without, all are 1.
    """

    def __init__(self, features: Maps, calibration: Sequence[Tensor] | None = None):
        super().__init__()
        self.features = features
        self.calibration = nn.ParameterList(calibration).requires_grad_(False) if calibration else None

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        differences = [
            (_unit(x) - _unit(y)).square().mean((2, 3))
            for x, y in zip(self.features(image), self.features(target), strict=True)
        ]
        if self.calibration is None:
            return torch.stack([difference.sum(1) for difference in differences]).sum(0)
        return torch.stack([d @ weight for d, weight in zip(differences, self.calibration, strict=True)]).sum(0)


def _unit(x: Tensor) -> Tensor:
    return x / ((x.square().sum(1, keepdim=True) + 1e-20).sqrt() + 1e-10)


def read_dists(path: Path) -> tuple[Tensor, Tensor]:
    """DISTS's alpha and beta, (1475,) each. Raises UserError where the file holds something else."""
    read = read_pickle(path)
    shape = torch.Size([1, 3 + sum(LPIPS_WIDTHS["lpips_vgg"]), 1, 1])
    check(f"{path}: not DISTS's weights", {"alpha": shape, "beta": shape}, read if isinstance(read, dict) else {})
    return read["alpha"].flatten(), read["beta"].flatten()


def read_lpips(path: Path, widths: Sequence[int]) -> list[Tensor]:
    """LPIPS's weights of every channel, a vector for each map. Raises UserError where the file holds something else."""
    read = read_pickle(path)
    wanted = {f"lin{index}.model.1.weight": torch.Size([1, width, 1, 1]) for index, width in enumerate(widths)}
    check(f"{path}: not LPIPS's weights", wanted, read if isinstance(read, dict) else {})
    return [read[name].flatten() for name in wanted]


def sobel(images: Tensor, grey: Grey = "mean") -> Tensor:
    """S of eq. 14: Sobel edge magnitude, (B, 3, H, W) in [0, 1] -> (B, 1, H, W), not clamped.

    `grey`: channel mean or luma; the published program has both.
    """
    weight = [1 / 3] * 3 if grey == "mean" else [0.2989, 0.587, 0.114]
    one = (images * images.new_tensor(weight).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    across = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    gx, gy = F.conv2d(one, torch.stack([across, across.T])[:, None], padding=1).chunk(2, dim=1)
    return (gx.square() + gy.square() + 1e-6).sqrt()


class PerceptualDistance(nn.Module):
    """L_per of stage 2: DISTS or LPIPS, for the "ea_" kinds of the pictures plus of their Sobel edges (eq. 14).

    Pictures (B, 3, H, W) in [0, 1] -> scalar, the mean over pictures. "ea_dists" is published, its weight in eq. 12 is
    not; "lpips" is the ancestors'. `name` tells kind and features, such as "ea_dists.dlib", for every log and report.
    Raises MissingWeights where a file that `needed` lists is not on this machine.
    """

    def __init__(self, kind: Kind, features: Features, grey: Grey = "mean"):
        super().__init__()
        self.name, self.grey, self.edges = f"{kind}.{features}", grey, kind.startswith("ea_")
        self.distance = _distance(kind, features)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        image, target = image.float(), target.float()
        distance = self.distance(image, target)
        if self.edges:
            # One channel, spread over the three that the networks take: what the published program does.
            edges = (sobel(x, self.grey).expand(-1, 3, -1, -1) for x in (image, target))
            distance = distance + self.distance(*edges)
        return distance.mean()


def _distance(kind: Kind, features: Features) -> DISTS | LPIPS:
    dists = kind.endswith("dists")
    if features == "dlib":
        return (DISTS if dists else LPIPS)(DlibFeatures())
    network = VGG16Features(smooth=dists)
    if dists:
        return DISTS(network, read_dists(weights.find("dists")))
    return LPIPS(network, read_lpips(weights.find("lpips_vgg"), LPIPS_WIDTHS["lpips_vgg"]))


def needed(kind: Kind, features: Features) -> list[str]:
    """The weight files of a PerceptualDistance, as `osdface.weights` calls them."""
    if features == "dlib":
        return ["dlib_identity"]
    return ["dists" if kind.endswith("dists") else "lpips_vgg", "vgg16"]


def choose_features(choice: FeatureChoice, kind: Kind = "ea_dists") -> Features:
    """The features by name, or for "auto" what this machine has: VGG16 with its calibration if both are there."""
    if choice != "auto":
        return choice
    return "vgg16" if all(map(weights.present, needed(kind, "vgg16"))) else "dlib"


class _OfSigned(nn.Module):
    """A distance of pictures in [0, 1], for pictures in [-1, 1]."""

    def __init__(self, distance: PerceptualDistance):
        super().__init__()
        self.name, self.distance = distance.name, distance

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        return self.distance(image / 2 + 0.5, target / 2 + 0.5)


def stage1_distance(kind: StageOneKind) -> nn.Module:
    """The feature term of eq. 7, with a `name`: pictures (B, 3, H, W) in [-1, 1] -> scalar.

    "vgg19": squared differences of VGG19's features, as published; "lpips": over VGG16, as the ancestors; "dlib": LPIPS
    over dlib's features, where neither is on this machine.
    """
    if kind == "vgg19":
        return VGG19Distance()
    return _OfSigned(PerceptualDistance("lpips", "vgg16" if kind == "lpips" else "dlib"))


def stage1_needed(kind: StageOneKind) -> list[str]:
    """The weight files of `stage1_distance`."""
    return ["vgg19"] if kind == "vgg19" else needed("lpips", "vgg16" if kind == "lpips" else "dlib")


def choose_stage1(choice: Literal["auto"] | StageOneKind) -> StageOneKind:
    """The kind by name, or for "auto" the first whose files are on this machine, in the order of the kinds."""
    if choice != "auto":
        return choice
    here = (kind for kind in get_args(StageOneKind) if all(map(weights.present, stage1_needed(kind))))
    return next(here, "dlib")
