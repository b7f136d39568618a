"""Perceptual losses: VGG19 features (eq. 7) and edge-aware DISTS (eq. 14)."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface import weights
from osdface.errors import UserError

Grey = Literal["mean", "luma"]


class VGG19Distance(nn.Module):
    """L_per of eq. 7: mean squared difference of VGG19's conv5_4 features.

    Pictures (B, 3, H, W) in [-1, 1] -> scalar. The paper names the network, not the layer: conv5_4 is inferred.
    Raises MissingWeights where torchvision's weight file is not on this machine.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import vgg19

        path = weights.find("vgg19")
        with torch.device("meta"):
            self.features = vgg19().features[:35]
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        kept = {name: tensors.get(f"features.{name}") for name in self.features.state_dict()}
        if missing := [name for name, tensor in kept.items() if tensor is None]:
            raise UserError(f"{path}: not VGG19's weights (features.{missing[0]} is missing)")
        self.features.load_state_dict(kept, assign=True)
        self.features.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1))

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(*(self.features((x / 2 + 0.5 - self.mean) / self.std) for x in (image, target)))


def sobel(images: Tensor, grey: Grey = "mean") -> Tensor:
    """S of eq. 14: Sobel edge magnitude, (B, 3, H, W) in [0, 1] -> (B, 1, H, W), not clamped.

    `grey`: channel mean or luma; the published program has both.
    """
    weight = [1 / 3] * 3 if grey == "mean" else [0.2989, 0.587, 0.114]
    one = (images * images.new_tensor(weight).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    across = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    gx, gy = F.conv2d(one, torch.stack([across, across.T])[:, None], padding=1).chunk(2, dim=1)
    return (gx.square() + gy.square() + 1e-6).sqrt()


@contextlib.contextmanager
def _hub_holding(file: Path) -> Iterator[None]:
    """torch's hub cache with just this file in it: pyiqa takes VGG16 from there, and would download what isn't."""
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Path(folder) / "checkpoints"
        checkpoints.mkdir()
        (checkpoints / file.name).symlink_to(file.absolute())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)


class EdgeAwareDISTS(nn.Module):
    """L_EA-DISTS of eq. 14: DISTS of the pictures plus DISTS of their Sobel edges, by pyiqa's network.

    Pictures (B, 3, H, W) in [0, 1] -> scalar. Raises MissingWeights where DISTS's or VGG16's file is absent.
    """

    def __init__(self, grey: Grey = "mean"):
        super().__init__()
        calibration, backbone = weights.find("dists"), weights.find("vgg16")
        from pyiqa.archs.dists_arch import DISTS

        self.grey: Grey = grey
        with _hub_holding(backbone):
            self.dists = DISTS(pretrained=False)
        tensors = torch.load(calibration, map_location="cpu", weights_only=True)
        if set(tensors) != {"alpha", "beta"}:
            raise UserError(f"{calibration}: not DISTS's weights (it holds {', '.join(sorted(tensors)[:3])})")
        self.dists.load_state_dict(tensors, strict=False)
        self.dists.eval().requires_grad_(False)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        # DISTS normalises three channels: a one-channel edge map is spread over them by broadcasting.
        edges = (sobel(x, self.grey).expand(-1, 3, -1, -1) for x in (image, target))
        return (self.dists(image, target) + self.dists(*edges)).mean()
