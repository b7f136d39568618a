"""What a restorer has to beat: a plain UNet of as many parameters, trained with L1 alone for the same time.

Residual blocks, strided convolutions and skip connections at four scales, the picture itself added to what comes out.
It needs torch and the pair dataset, no more, so that it can be trained on another machine than it is judged on.
"""

import bisect
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised
from torch import Tensor, nn

from osdface import files, tensors
from osdface.errors import UserError
from pipelines.pairs.manifest import read_manifest
from pipelines.pairs.reading import PairDataset
from pipelines.report import to_uint8

SHARES = (8, 4, 2, 1)  # of the width, its parts at full size, a half, a quarter, an eighth: the usual doubling
WARMUP = 0.02  # of the time, over which the learning rate rises; then it falls as a cosine
ON_DEVICE = 4 << 30  # bytes of pictures that are kept on an accelerator; more stay in the machine's memory
LOGGED = 200  # points of the loss's curve in a file
BATCH = 64  # pictures restored at once


class Pairs(NamedTuple):
    """One split in memory: keys (N), and uint8 RGB pictures (N, H, W, 3)."""

    keys: list[str]
    lq: np.ndarray
    hq: np.ndarray


def read(folder: str | Path, split: str, limit: int | None = None) -> Pairs:
    """The pairs of a split, in the dataset's order. Raises UserError where it is empty."""
    data = PairDataset(folder, split)
    rows = range(len(data) if limit is None else min(limit, len(data)))
    if not rows:
        raise UserError(f"{folder}: its {split} split is empty; make the dataset with a share for it (split: {split})")
    parts = [data.batch(rows[start : start + 256]) for start in range(0, len(rows), 256)]
    pictures = [np.concatenate([to_uint8(part[name]) for part in parts]) for name in ("lq", "hq")]
    return Pairs([key for part in parts for key in part["key"]], *pictures)


class Block(nn.Module):
    """Two convolutions on normalised features, added to what came in."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(1, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1),
            nn.GroupNorm(1, after), nn.SiLU(), nn.Conv2d(after, after, 3, padding=1),
        )  # fmt: skip
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class UNet(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> the same, H and W multiples of 8. Before training it changes nothing.

    width: channels where the picture is smallest, 8 at least.
    """

    def __init__(self, width: int):
        super().__init__()
        widths = [width // share for share in SHARES]
        inner = list(itertools.pairwise(widths))
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(Block(w, w) for w in widths[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(w, deeper, 3, stride=2, padding=1) for w, deeper in inner)
        self.middle = nn.Sequential(Block(widths[-1], widths[-1]), Block(widths[-1], widths[-1]))
        self.grow = nn.ModuleList(nn.Conv2d(deeper, w, 3, padding=1) for w, deeper in inner)
        self.up = nn.ModuleList(Block(2 * w, w) for w in widths[:-1])
        self.last = nn.Sequential(nn.GroupNorm(1, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], 3, 3, padding=1))
        for parameter in self.last[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        x, kept = self.first(images), []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            kept.append(x := block(x))
            x = shrink(x)
        x = self.middle(x)
        for grow, block in zip(reversed(self.grow), reversed(self.up), strict=True):
            x = block(torch.cat([grow(F.interpolate(x, scale_factor=2.0)), kept.pop()], 1))
        return images + self.last(x)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def size_of(width: int) -> int:
    """Parameters of a UNet of this width."""
    with torch.device("meta"):
        return parameters(UNet(width))


def closest_width(wanted: int) -> int:
    """The width at which a UNet comes closest to `wanted` parameters."""
    above = bisect.bisect_left(range(8, 8192), wanted, key=size_of) + 8
    return min((above - 1, above), key=lambda width: abs(size_of(width) - wanted))


def clock(seconds: float) -> Iterator[float]:
    """The share of the time that has passed, until none is left."""
    start = time.perf_counter()
    while (share := (time.perf_counter() - start) / seconds) < 1:
        yield share


def train(
    pairs: Pairs, width: int, rate: float, shares: Iterable[float], batch: int, device: str
) -> tuple[UNet, list[float]]:
    """Adam on the mean absolute difference, a step for each of `shares`, the training's progress from 0 to 1.

    Returns the network and the loss of every step. Every epoch has every pair once.
    """
    torch.manual_seed(0)
    network = UNet(width).to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), rate)
    lq, hq = (_kept(images, device) for images in (pairs.lq, pairs.hq))
    losses: list[float] = []
    for share, rows in zip(shares, _order(len(lq), batch), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, share / WARMUP) * (1 + math.cos(math.pi * share)) / 2
        given, wanted = (_batch(images, rows, device) for images in (lq, hq))
        loss = F.l1_loss(network(given), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())  # waits for the device, so that its queue never runs ahead of the clock
    return network.eval(), losses


def _kept(images: np.ndarray, device: str) -> Tensor:
    """(N, 3, H, W) uint8, on the device where that leaves it room."""
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return tensor.to(device) if tensor.numel() <= ON_DEVICE else tensor


def _batch(images: Tensor, rows: Tensor, device: str) -> Tensor:
    return images[rows.to(images.device)].to(device).float() / 127.5 - 1


def _order(count: int, batch: int) -> Iterator[Tensor]:
    """Rows of each step: whole permutations, one after another."""
    rng, rows = torch.Generator().manual_seed(0), torch.empty(0, dtype=torch.long)
    while True:
        while len(rows) < batch:
            rows = torch.cat([rows, torch.randperm(count, generator=rng)])
        yield rows[:batch]
        rows = rows[batch:]


@torch.inference_mode()
def restore(network: UNet, lq: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 -> the same, restored."""
    device = str(next(network.parameters()).device)
    images = _kept(lq, "cpu")
    rows = torch.arange(len(images)).split(BATCH)
    return np.concatenate([to_uint8(network(_batch(images, some, device))) for some in rows])


def trained(
    data: str | Path, out: Path, wanted: int, rates: Iterable[float], seconds: float, batch: int, device: str
) -> list[Path]:
    """A file for each learning rate in `out`, with what it took and PSNR on the split "val"; those there are kept."""
    wanted_files = {rate: out / f"l1_{rate:g}.safetensors" for rate in rates}
    missing = {rate: file for rate, file in wanted_files.items() if not file.is_file()}
    if missing:
        pairs, val, width = read(data, "train"), read(data, "val"), closest_width(wanted)
        for rate, file in missing.items():
            start = time.perf_counter()
            network, losses = train(pairs, width, rate, clock(seconds), batch, device)
            note = {
                "width": width,
                "parameters": parameters(network),
                "rate": rate,
                "batch": batch,
                "seconds": seconds,
                "spent": time.perf_counter() - start,
                "steps": len(losses),
                "losses": [float(np.mean(some)) for some in np.array_split(losses, min(LOGGED, len(losses)))],
                "pairs": len(pairs.keys),
                "dataset": read_manifest(data).digest,
                "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
                "val_psnr": float(psnrs(restore(network, val.lq), val.hq).mean()),
            }
            save(network, note, file)
            print(file, {name: note[name] for name in ("parameters", "steps", "spent", "val_psnr")}, flush=True)
    return list(wanted_files.values())


def psnrs(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """dB of (N, H, W, 3) uint8 pictures, (N,)."""
    errors = (images.astype(np.float32) - references) ** 2
    return 10 * np.log10(255**2 / np.maximum(errors.mean((1, 2, 3)), 1e-6))


def save(network: UNet, note: dict[str, Any], file: Path) -> None:
    state = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    files.write(file, serialised(state, {"note": json.dumps(note)}))


def note_of(file: Path) -> dict[str, Any]:
    """What `trained` noted of a network. Raises UserError for another file."""
    try:
        with safe_open(file, "pt") as opened:
            return json.loads(opened.metadata()["note"])
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{file}: no baseline of `python -m benchmarks.quality --train-only` ({error})") from None


def load(file: Path, device: str) -> UNet:
    """Raises UserError for a file that is not of this network."""
    network, found = UNet(note_of(file)["width"]), tensors.read_safetensors(file)
    tensors.check(file, tensors.shapes(network.state_dict()), found)
    network.load_state_dict(found)
    return network.to(device).eval()


def best(candidates: Iterable[Path]) -> Path:
    """The one with the highest PSNR on the split "val"."""
    return max(candidates, key=lambda file: note_of(file)["val_psnr"])
