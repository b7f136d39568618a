"""Trains the face network that evaluation alone uses (`pipelines.metrics.embedder`), on procedural faces.

`python -m benchmarks.embedder --out FILE` draws the faces, keeping them beside FILE, trains with margin softmax
(CosFace, Wang et al. 2018), measures verification on identities that training never saw, and writes FILE, whose
metadata says all that. Seeds have ranges of their own: no restoration model is trained or tested on them.
"""

import argparse
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from osdface import files
from osdface.procedural import VERSION, render, sample
from pipelines.metrics.embedder import Embedder, kept

TRAINING, VERIFICATION, END = 50_000_000, 60_000_000, 70_000_000  # first seeds; from END on restoration is tested
SCALE, MARGIN = 30.0, 0.3  # CosFace's: of the cosines, and what the right one must be above the others


def faces(folder: Path, first: int, identities: int, per_identity: int, workers: int) -> np.ndarray:
    """(identities, per_identity, 64, 64, 3) uint8 of the seeds from `first` on; drawn once, then read from `folder`."""
    path = folder / f"faces-{VERSION}-{first}-{identities}x{per_identity}.npy"
    if not path.exists():
        seeds = range(first, first + identities * per_identity)
        people = [seed - (seed - first) % per_identity for seed in seeds]
        with ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
            drawn = np.stack(list(pool.map(_draw, seeds, people, chunksize=16)))
        temporary = files.aside(path).with_suffix(".npy")
        np.save(temporary, drawn.reshape(identities, per_identity, *drawn.shape[1:]))
        temporary.replace(path)
    return np.load(path)


def _draw(seed: int, identity: int) -> np.ndarray:
    return render(sample(seed, identity), Embedder.SIDE)


def train(
    pictures: np.ndarray, steps: int, batch: int, rate: float, seed: int, device: torch.device, bf16: bool
) -> tuple[Embedder, list[float]]:
    """A network trained to tell the identities of `pictures` (N, K, 64, 64, 3) uint8 apart, and each step's loss.

    A function of its arguments, up to the order in which a device sums. bf16: convolutions in bfloat16.
    """
    torch.manual_seed(seed)
    draw = torch.Generator(device).manual_seed(seed)
    identities, each = pictures.shape[:2]
    data = torch.from_numpy(pictures).flatten(0, 1).to(device)
    network = Embedder().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    centres = nn.Parameter(torch.randn(identities, Embedder.DESCRIPTOR).to(device))
    optimizer = torch.optim.AdamW([*network.parameters(), centres], rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.15)
    losses = []
    for step in range(steps):
        index = torch.randint(len(data), (batch,), generator=draw, device=device)
        seen = spoiled(data[index].permute(0, 3, 1, 2) / 255, draw)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            descriptors = network(seen.contiguous(memory_format=torch.channels_last))
        cosines = descriptors.float() @ F.normalize(centres).T
        margin = MARGIN * min(1.0, 3 * step / steps)  # from the start, it would hold the network where it began
        right = F.one_hot(index // each, identities)
        loss = F.cross_entropy(SCALE * (cosines - margin * right), index // each)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if step % 100 == 99:
            print(f"step {step + 1} of {steps}, loss {torch.stack(losses[-100:]).mean():.3f}", flush=True)
    return network.eval(), torch.stack(losses).tolist()


def spoiled(x: Tensor, draw: torch.Generator) -> Tensor:
    """Pictures (B, 3, 64, 64) in [0, 1], each turned, shifted, coloured, and a little blurred, noisy and compressed.

    So that the network judges restored pictures by whose face they show, and not by how sharp they are.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(x), *(shape or (1, 1, 1)), generator=draw, device=x.device)

    turn, zoom = uniform(-0.05, 0.05, 1), uniform(0.92, 1.06, 1)
    flip = torch.where(uniform(0, 1, 1) < 0.5, -1.0, 1.0)
    shift = uniform(-0.05, 0.05, 2)
    rows = [flip * zoom * turn.cos(), -zoom * turn.sin(), shift[:, :1], flip * zoom * turn.sin(), zoom * turn.cos()]
    matrix = torch.cat([*rows, shift[:, 1:]], 1).reshape(-1, 2, 3)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    x = (x * uniform(0.92, 1.08, 3, 1, 1) - 0.5) * uniform(0.85, 1.15) + 0.5 + uniform(-0.05, 0.05)
    soft = F.avg_pool2d(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), 3, 1, 1, count_include_pad=False)
    x = x.lerp(soft, uniform(-0.7, 1).clamp(min=0))
    coarse = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    x = torch.where(uniform(0, 1) < 0.2, coarse, x)
    x = x + torch.randn(x.shape, generator=draw, device=x.device) * uniform(-0.04, 0.06).clamp(min=0)
    return _compressed(x, uniform(-0.1, 0.15, 1, 1, 1, 1, 1)).clamp(0, 1)


def _compressed(x: Tensor, quantum: Tensor) -> Tensor:
    """As by JPEG: the cosine transform of 8x8 blocks rounded to multiples of `quantum` where that is above 0."""
    at = torch.arange(8, device=x.device)
    transform = torch.cos(math.pi / 8 * at[:, None] * (at + 0.5)) / 2
    transform[0] /= math.sqrt(2)
    blocks = x.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))
    waves = torch.einsum("ui,bcyixj,vj->bcyuxv", transform, blocks, transform)
    rounded = (waves / quantum).round() * quantum
    kept = torch.where(quantum > 0, rounded, waves)
    return torch.einsum("ui,bcyuxv,vj->bcyixj", transform, kept, transform).reshape(x.shape)


def verification(network: Embedder, pictures: np.ndarray, first: int, device: torch.device) -> dict[str, float]:
    """Accuracy of "the same person?" on pairs of `pictures` (N, K, 64, 64, 3) uint8, K even, one half of them of one.

    The other half are of two by chance, or, in `lookalikes`, each person and the most similar one by hair style, beard,
    and the colours of skin and hair. The threshold is chosen on half the identities and tried on the others, both ways.
    """
    halves = [_scores(network, part, start, device) for part, start in _halves(pictures, first)]
    figures = {}
    for impostors in ("accuracy", "lookalikes"):
        tried = [
            _accuracy(there["same"], there[impostors], _threshold(here["same"], here[impostors]))
            for here, there in (halves, halves[::-1])
        ]
        figures[impostors] = sum(tried) / 2
    return figures


def _halves(pictures: np.ndarray, first: int) -> list[tuple[np.ndarray, int]]:
    middle = len(pictures) // 2
    return [(pictures[:middle], first), (pictures[middle:], first + middle * pictures.shape[1])]


@torch.inference_mode()
def _scores(network: Embedder, pictures: np.ndarray, first: int, device: torch.device) -> dict[str, np.ndarray]:
    """Cosines of pairs of one person, of two by chance, and of two who look alike, (N, K / 2) each."""
    flat = torch.from_numpy(pictures).flatten(0, 1).permute(0, 3, 1, 2)
    embedded = torch.cat([network(part.to(device) / 255) for part in flat.split(256)]).cpu().numpy()
    descriptors = embedded.reshape(*pictures.shape[:2], -1)

    def scores(partner: np.ndarray) -> np.ndarray:
        return (descriptors[:, ::2] * descriptors[partner, 1::2]).sum(-1)

    everybody = np.arange(len(pictures))
    alike = _lookalikes(range(first, first + pictures.shape[0] * pictures.shape[1], pictures.shape[1]))
    return {"same": scores(everybody), "accuracy": scores(np.roll(everybody, 1)), "lookalikes": scores(alike)}


def _lookalikes(seeds: Sequence[int]) -> np.ndarray:
    """For each identity the index of the most similar other."""
    people = [sample(seed).identity for seed in seeds]
    styles = np.array([f"{person.hair_style} {person.beard_style}" for person in people])
    colours = np.array([(*person.skin, *person.hair) for person in people])
    distance = np.linalg.norm(colours[:, None] - colours, axis=-1) + 9.0 * (styles[:, None] != styles)
    np.fill_diagonal(distance, np.inf)
    return distance.argmin(1)


def _threshold(same: np.ndarray, different: np.ndarray) -> float:
    return max(np.concatenate([same, different]).ravel(), key=lambda at: _accuracy(same, different, at))


def _accuracy(same: np.ndarray, different: np.ndarray, threshold: float) -> float:
    return float((same >= threshold).mean() + (different < threshold).mean()) / 2


def write(network: Embedder, path: Path, about: dict[str, str]) -> None:
    """The network in half precision, and what is known about it as JSON in the file's metadata.

    One entry of it: safetensors puts several in a random order, and the same training would give another digest.
    """
    tensors = {name: tensor.cpu().half().contiguous() for name, tensor in kept(network).items()}
    files.write(path, save(tensors, {"about": json.dumps(about)}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--identities", type=int, default=4000)
    parser.add_argument("--per-identity", type=int, default=5, help="pictures of each")
    parser.add_argument("--verify", type=int, default=500, help="unseen identities of 4 pictures each")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw")
    parser.add_argument("--bf16", action="store_true", help="convolutions in bfloat16")
    chosen = parser.parse_args(arguments)
    if chosen.identities * chosen.per_identity > VERIFICATION - TRAINING or chosen.verify * 4 > END - VERIFICATION:
        parser.error(f"training has {VERIFICATION - TRAINING} seeds and verification {END - VERIFICATION}; give fewer")
    device, folder = torch.device(chosen.device), chosen.out.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    unseen = faces(folder, VERIFICATION, chosen.verify, 4, chosen.workers)
    pictures = faces(folder, TRAINING, chosen.identities, chosen.per_identity, chosen.workers)
    network, _ = train(pictures, chosen.steps, chosen.batch, chosen.rate, chosen.seed, device, chosen.bf16)
    network.half().float()  # as the file has it
    figures = verification(network, unseen, VERIFICATION, device)
    about = {
        "licence": "Apache-2.0",
        "generator": f"osdface.procedural {VERSION}",
        "training": f"{chosen.identities} identities of {chosen.per_identity} pictures, seeds from {TRAINING}",
        "loss": f"CosFace, scale {SCALE:g}, margin {MARGIN:g}",
        "steps": f"{chosen.steps} of {chosen.batch}, learning rate {chosen.rate:g}, seed {chosen.seed}",
        "verification": f"{chosen.verify} identities of 4 pictures, seeds from {VERIFICATION}",
        "verification_accuracy": f"{figures['accuracy']:.4f}",
        "lookalike_accuracy": f"{figures['lookalikes']:.4f}",
    }
    write(network, chosen.out, about)
    print("\n".join(f"{name}: {value}" for name, value in about.items()))


if __name__ == "__main__":
    main()
