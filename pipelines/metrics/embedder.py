"""A face network for evaluation alone, trained on procedural faces, and the metrics over it, named `.procedural`.

No training uses it as a loss, so a model cannot have learnt to please it. `python -m benchmarks.embedder` trains it;
its file lies beside this one. It has seen no photograph: on real faces its figures only compare methods.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface.errors import MissingWeights
from osdface.files import sha256
from osdface.tensors import check, read_safetensors, shapes
from pipelines.metrics.protocol import Better, Metric, Missing, Suite

FILE = Path(__file__).with_name("embedder.safetensors")
NAMES = ("identity.procedural", "lpips.procedural", "dists.procedural", "fid.procedural")


class _Stage(nn.Module):
    """Two convolutions, the first with the stride, the second around a shortcut."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.down = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.down_norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down_norm(self.down(x)))
        return F.relu(x + self.norm(self.conv(x)))


class Embedder(nn.Module):
    """FFHQ-aligned faces (B, 3, H, W) in [0, 1] -> unit descriptors (B, 128); pictures are brought to 64 px first.

    The end is that of MobileFaceNet (Chen et al. 2018): every channel weighs the positions of the last map by itself.
    """

    SIDE = 64
    WIDTHS = (16, 32, 64, 128, 160)  # of the maps, which have 64, 32, 16, 8 and 4 pixels a side
    DESCRIPTOR = 128

    def __init__(self) -> None:
        super().__init__()
        strides, last = (1, 2, 2, 2, 2), self.WIDTHS[-1]
        sizes = zip((3, *self.WIDTHS), self.WIDTHS, strides, strict=False)
        self.stages = nn.ModuleList(_Stage(*size) for size in sizes)
        self.pool = nn.Conv2d(last, last, self.SIDE // 16, groups=last, bias=False)
        self.pool_norm = nn.BatchNorm2d(last)
        self.descriptor = nn.Linear(last, self.DESCRIPTOR)

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.pool_norm(self.pool(self.maps(images)[-1])).flatten(1)
        return F.normalize(self.descriptor(pooled).float())

    def maps(self, images: Tensor) -> list[Tensor]:
        """What the five stages see, (B, width, side, side) each, not negative."""
        maps, h = [], self.sized(images) * 2 - 1
        for stage in self.stages:
            maps.append(h := stage(h))
        return maps

    def sized(self, images: Tensor) -> Tensor:
        """The pictures as the network takes them, (B, 3, 64, 64)."""
        if images.shape[-2:] == (self.SIDE, self.SIDE):
            return images
        return F.interpolate(images, (self.SIDE, self.SIDE), mode="bilinear", antialias=True)


def load(path: Path | None = None) -> Embedder:
    """The network from the file in this package, or from `path`, frozen.

    Raises MissingWeights where it is not there, UserError where it is damaged or another network's.
    """
    path = path or FILE
    if not path.exists():
        raise MissingWeights(f"{path}: is not there; `python -m benchmarks.embedder --out {path}` trains it")
    network, read = Embedder(), read_safetensors(path)
    check(f"{path}: not the evaluation network's weights", shapes(kept(network)), read)
    network.load_state_dict(read, strict=False)  # all but what `kept` leaves out
    return network.eval().requires_grad_(False)


def kept(network: Embedder) -> dict[str, Tensor]:
    """The tensors that its file has: all but counts of training steps."""
    return {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}


def metrics(device: str = "cpu") -> Suite:
    """NAMES over the network in this package, or those as missing.

    identity: cosine of the descriptors; two procedural people have about 0. lpips and dists: those formulas over its
    maps, with uniform weights. fid: the Frechet distance of the means of its last map.
    """
    from osdface.losses.perceptual import DISTS, LPIPS  # after torch, what takes longest
    from pipelines.metrics.measures import FrechetDistance, Measure
    from pipelines.metrics.networks import tensor

    if not FILE.exists():
        return Suite([], missing=[Missing(name, FILE.name, str(FILE.parent)) for name in NAMES])
    network, digest = load().to(device), sha256(FILE)[:16]

    def compared(values: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Sequence[float]]:
        def of(*pictures: np.ndarray) -> Sequence[float]:
            with torch.inference_mode():
                found: list[float] = values(*(network.sized(tensor(images, device)) for images in pictures)).tolist()
            return found

        return of

    def pooled(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            features: np.ndarray = network.maps(tensor(images, device))[-1].mean((2, 3)).double().cpu().numpy()
        return features

    def measure(name: str, better: Better, values: Callable[[Tensor, Tensor], Tensor]) -> Metric:
        return Measure(name, better, "procedural", digest, True, compared(values))

    identity, lpips, dists, fid = NAMES
    return Suite(
        [
            measure(identity, "higher", lambda a, b: F.cosine_similarity(network(a), network(b))),
            measure(lpips, "lower", LPIPS(network.maps)),
            measure(dists, "lower", DISTS(network.maps)),
        ],
        [FrechetDistance(fid, "procedural", digest, True, pooled)],
    )
