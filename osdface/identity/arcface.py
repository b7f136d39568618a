"""ArcFace in torch: the residual networks of insightface, and the grey one of the ancestors.

Which of them the paper's identity loss has ("a pretrained ArcFace model") is not published. Names of modules, and so of
tensors, are those of the published files.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface import weights
from osdface.errors import UserError
from osdface.faces import TEMPLATE_OF_FIVE, similarity
from osdface.identity.network import IdentityNetwork
from osdface.tensors import check, read_pickle, shapes

# Where insightface's `norm_crop` puts eyes, tip of the nose and corners of the mouth in its picture of 112 pixels.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
SIDE, GREY_SIDE = 112, 128
# From the unit square of an FFHQ-aligned picture to pixels of the chip: the least-squares similarity that takes FFHQ's
# five points to ArcFace's, as insightface finds one for the landmarks of a photograph. No similarity takes the one
# template to the other: the eyes come to lie 1 pixel off, nose and mouth 2 to 2.5.
MATRIX = similarity(TEMPLATE_OF_FIVE, TEMPLATE)
DEPTHS = {"arcface_r50": (3, 4, 14, 3), "arcface_r100": (3, 13, 30, 3)}
WIDTHS = (64, 128, 256, 512)


def _conv(channels: int, width: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, width, size, stride, size // 2, bias=False)


def _shortcut(channels: int, width: int, stride: int) -> nn.Module:
    if stride == 1 and channels == width:
        return nn.Identity()
    return nn.Sequential(_conv(channels, width, stride, 1), nn.BatchNorm2d(width))


class _Block(nn.Module):
    """insightface's: norm - conv - norm - prelu - conv - norm, added to the input."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), _conv(channels, width)
        self.bn2, self.prelu = nn.BatchNorm2d(width), nn.PReLU(width)
        self.conv2, self.bn3 = _conv(width, width, stride), nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(h)) + self.downsample(x)


class _GreyBlock(nn.Module):
    """The grey network's, without squeeze and excitation: one slope for all channels, and a prelu after the sum."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.bn0, self.conv1 = nn.BatchNorm2d(channels), _conv(channels, channels)
        self.bn1, self.prelu = nn.BatchNorm2d(channels), nn.PReLU()
        self.conv2, self.bn2 = _conv(channels, width, stride), nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = self.prelu(self.bn1(self.conv1(self.bn0(x))))
        return self.prelu(self.bn2(self.conv2(h)) + self.downsample(x))


def _stage(block: type[nn.Module], channels: int, width: int, count: int, stride: int) -> nn.Sequential:
    return nn.Sequential(block(channels, width, stride), *(block(width, width, 1) for _ in range(count - 1)))


class ArcFace(IdentityNetwork):
    """insightface's IResNet: chips (B, 3, 112, 112) in [0, 1], RGB -> descriptors (B, 512)."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.conv1, self.bn1, self.prelu = _conv(3, 64), nn.BatchNorm2d(64), nn.PReLU(64)
        one, two, three, four = DEPTHS[name]
        self.layer1 = _stage(_Block, 64, 64, one, 2)
        self.layer2 = _stage(_Block, 64, 128, two, 2)
        self.layer3 = _stage(_Block, 128, 256, three, 2)
        self.layer4 = _stage(_Block, 256, 512, four, 2)
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512)
        self.freeze()

    def chips(self, images: Tensor) -> Tensor:
        """By MATRIX: the picture is resized, with antialiasing, to the chip's own scale, then turned and shifted."""
        scale = float(np.hypot(*MATRIX[:, 0]))  # pixels of the chip for the whole side of the picture
        frame = round(scale)
        images = F.interpolate(images.float(), (frame, frame), mode="bilinear", antialias=True)
        theta = images.new_tensor(_theta(MATRIX)).expand(len(images), -1, -1)
        grid = F.affine_grid(theta, [len(images), 3, SIDE, SIDE], align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def forward(self, chips: Tensor) -> Tensor:
        return self.embed(2 * chips - 1)

    def embed(self, x: Tensor) -> Tensor:
        """From the input as insightface normalises it, (pixel - 127.5) / 127.5."""
        h = self.prelu(self.bn1(self.conv1(x)))
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        return self.features(self.fc(self.bn2(h).flatten(1)))


class GreyArcFace(IdentityNetwork):
    """The 18-layer grey network of GFPGAN, VQFR and DAEFR: chips (B, 1, 128, 128) in [0, 1] -> descriptors (B, 512).

    It is also the network of the metric Deg.: a generator trained with it is measured by what it was trained for.
    """

    name = "arcface_r18"

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.prelu = _conv(1, 64), nn.BatchNorm2d(64), nn.PReLU()
        self.layer1 = _stage(_GreyBlock, 64, 64, 2, 1)
        self.layer2 = _stage(_GreyBlock, 64, 128, 2, 2)
        self.layer3 = _stage(_GreyBlock, 128, 256, 2, 2)
        self.layer4 = _stage(_GreyBlock, 256, 512, 2, 2)
        self.bn4 = nn.BatchNorm2d(512)
        self.fc5 = nn.Linear(512 * 8 * 8, 512)
        self.bn5 = nn.BatchNorm1d(512)
        self.freeze()

    def chips(self, images: Tensor) -> Tensor:
        """As GFPGAN does: luma of the whole aligned picture, resized without antialiasing."""
        images = images.float()
        grey = (images * images.new_tensor([0.2989, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
        return F.interpolate(grey, (GREY_SIDE, GREY_SIDE), mode="bilinear", align_corners=False)

    def forward(self, chips: Tensor) -> Tensor:
        return self.embed(2 * chips - 1)

    def embed(self, x: Tensor) -> Tensor:
        """From grey pictures in [-1, 1]."""
        h = F.max_pool2d(self.prelu(self.bn1(self.conv1(x))), 2)
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        return self.bn5(self.fc5(self.bn4(h).flatten(1)))


def _theta(matrix: np.ndarray) -> np.ndarray:
    """For `affine_grid`: from [-1, 1] over the chip to [-1, 1] over the picture. Pixel centres lie at whole numbers."""
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))  # pixels of the chip to the unit square
    to_pixels = np.array([[SIDE / 2, 0, SIDE / 2 - 0.5], [0, SIDE / 2, SIDE / 2 - 0.5], [0, 0, 1]])
    from_unit = np.array([[2, 0, -1], [0, 2, -1], [0, 0, 1]])
    return (from_unit @ inverse @ to_pixels)[:2]


def load(name: str, path: Path | None = None) -> IdentityNetwork:
    """The network of a published file: a state dict, with or without `module.` before every name.

    Raises MissingWeights where there is none, UserError naming the file and how it differs where it is another's.
    """
    path = path or weights.find(name)
    with torch.device("meta"):
        network: IdentityNetwork = GreyArcFace() if name == GreyArcFace.name else ArcFace(name)
    read = read_pickle(path)
    if not isinstance(read, dict) or not all(isinstance(value, Tensor) for value in read.values()):
        raise UserError(f"{path}: not {name}'s weights: it holds something else than a state dict")
    tensors = {key.removeprefix("module."): value.float() for key, value in read.items() if not _counts(key)}
    wanted = {key: shape for key, shape in shapes(network.state_dict()).items() if not _counts(key)}
    check(f"{path}: not {name}'s weights", wanted, tensors)
    network.load_state_dict(tensors, strict=False, assign=True)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.num_batches_tracked = torch.tensor(0)
    network.freeze()
    return network


def _counts(key: str) -> bool:
    """What only training looks at, and the oldest files do not have."""
    return key.endswith("num_batches_tracked")
