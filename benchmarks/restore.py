"""How fast and in how much memory a face is restored, against a direct assembly of diffusers' parts
(benchmarks/reference/restore.py): full size, random weights, 512 pixels, float32, this CPU.

Every run is a process of its own, so that its peak memory is its own too; the sides take turns. Time is the processor
time of all threads over their number, which other programs on the machine disturb less than the clock; the clock's is
recorded beside it. "folded" keeps everything in memory, "lean" reads the UNet's blocks at every pass. Exits with 1
where either is below 1.15x the speed or above 0.9x the memory, or a picture differs by more than 1e-3.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import record
from osdface import bundle, folding, lean, profile
from osdface.base import new_base, save_base
from osdface.generator import OneStepGenerator
from osdface.presets import Preset, preset
from osdface.prompts.vre import VisualEmbedder

FASTER, SMALLER, SAME = 1.15, 0.9, 1e-3
AIMS = "aimed at 1.3x the speed and 0.7x the memory"
SIDES = ("reference", "folded", "lean")


def make(shape: Preset, folder: Path) -> Path:
    """A bundle with random weights and a LoRA that is not zero, its base beside it."""
    torch.manual_seed(0)
    base = new_base(shape)
    save_base(base, folder / "base")
    generator = OneStepGenerator.from_parts(shape, base, VisualEmbedder(shape.vre))
    for name, parameter in generator.unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    none = bundle.Provenance()
    bundle.save(generator, folder / "bundle", preset=shape.name, seed=0, base=folder / "base", provenance=none)
    return folder / "bundle"


def load(side: str, folder: Path) -> Any:
    if side == "reference":
        from benchmarks.reference.restore import Direct

        return Direct(folder)
    return lean.load(folder) if side == "lean" else folding.fold(bundle.load(folder, check=False)[1])


def pictures(batch: int, size: int) -> torch.Tensor:
    """Smooth pictures, each another, in [-1, 1]."""
    waves = torch.linspace(0, 20, size)
    images = [torch.stack([waves.sin().outer((waves * (i + c + 1) / 3).cos()) for c in range(3)]) for i in range(batch)]
    return torch.stack(images)


@torch.inference_mode()
def run(side: str, folder: Path, batch: int, passes: int, picture: Path) -> dict[str, Any]:
    """Load, restore `passes` times, and write the last pictures; what it took."""
    start = time.perf_counter()
    generator = load(side, folder)
    loaded = time.perf_counter() - start
    images = pictures(batch, preset(bundle.read_config(folder).preset).size)
    spent: dict[str, list[tuple[float, float]]] = defaultdict(list)

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        clock, processor = time.perf_counter(), time.process_time()
        yield
        spent[step].append((time.perf_counter() - clock, time.process_time() - processor))

    for _ in range(passes):
        with timed("total"):
            restored = profile.walk(generator, images, timed).clamp(-1, 1)
    np.save(picture, restored.numpy())
    threads = torch.get_num_threads()
    best = {step: (min(c for c, _ in times), min(p for _, p in times) / threads) for step, times in spent.items()}
    return {
        "load": loaded,
        "clock": {step: clock for step, (clock, _) in best.items()},
        "processor": {step: processor for step, (_, processor) in best.items()},
        "memory": profile.peak_memory(torch.device("cpu")),
    }


def alone(*arguments: Any) -> dict[str, Any]:
    """What `run` returns in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.restore", "--run", *map(str, arguments)]
    waiting = os.environ | {"OMP_WAIT_POLICY": "passive"}  # a thread that waits for another takes no processor time
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=waiting)
    return json.loads(done.stdout.splitlines()[-1])


def race(folder: Path, batch: int, rounds: int, passes: int, work: Path) -> dict[str, Any]:
    """Every side in turn, `rounds` times: medians of time, the most memory, the largest difference in a picture."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _ in range(rounds):
        for side in SIDES:
            runs[side].append(alone(side, folder, batch, passes, work / f"{side}.npy"))
            print(batch, side, {key: runs[side][-1][key] for key in ("processor", "memory")}, file=sys.stderr)
    expected = np.load(work / "reference.npy")
    return {
        side: {
            "load": median(one["load"] for one in those),
            "clock": {step: median(one["clock"][step] for one in those) for step in those[0]["clock"]},
            "processor": {step: median(one["processor"][step] for one in those) for step in those[0]["processor"]},
            "memory": max(one["memory"] for one in those),
            "difference": float(np.abs(np.load(work / f"{side}.npy") - expected).max()) / 2,  # of a range of 1
        }
        for side, those in runs.items()
    }


@torch.inference_mode()
def peak_rate(size: int = 3072, repeat: int = 5) -> float:
    """Multiply-accumulates a second and thread, of a product of two square matrices: the best of a few."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    taken = []
    for _ in range(repeat):
        start = time.process_time()
        torch.mm(a, b)
        taken.append(time.process_time() - start)
    return size**3 / min(taken)


def first_picture(folder: Path, work: Path) -> dict[str, float]:
    """Seconds on the clock from the start of a process to its end, for the help and for one picture with `lean`."""
    taken = {}
    commands = {
        "osdface --help": ["-m", "jobs.cli", "--help"],
        "import of the restorer": ["-c", "import osdface.lean"],
        "one picture, lean": ["-m", "benchmarks.restore", "--run", "lean", str(folder), "1", "1", str(work / "x.npy")],
        "one picture, folded": [
            "-m", "benchmarks.restore", "--run", "folded", str(folder), "1", "1", str(work / "x.npy"),
        ],
        "one picture, reference": [
            "-m", "benchmarks.restore", "--run", "reference", str(folder), "1", "1", str(work / "x.npy"),
        ],
    }  # fmt: skip
    for name, words in commands.items():
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        taken[name] = time.perf_counter() - start
    return taken


def rows(races: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The table: every side of every batch, beside the reference."""
    return [
        {
            "batch": batch,
            "side": side,
            "s, processor / threads": result["processor"]["total"],
            "s, clock": result["clock"]["total"],
            "times as fast": sides["reference"]["processor"]["total"] / result["processor"]["total"],
            "peak memory, GiB": result["memory"] / 2**30,
            "of the reference's": result["memory"] / sides["reference"]["memory"],
            "largest difference": f"{result['difference']:.1e}",
            "load, s": result["load"],
        }
        for batch, sides in races.items()
        for side, result in sides.items()
    ]


def parts(
    sides: dict[str, Any], counted: dict[str, int], rate: float, batch: int, threads: int
) -> list[dict[str, Any]]:
    """Seconds of each part (processor time over threads), and what its MACs take at the rate of a matrix product."""
    return [
        {"part": step}
        | {side: result["processor"][step] for side, result in sides.items()}
        | {"floor, if convolved directly": batch * counted[step] / rate / threads}
        for step in (*profile.STEPS, "total")
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restore", description=__doc__)
    parser.add_argument("--preset", default="sd21", help="tiny tries the program out")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side and batch, whose median counts")
    parser.add_argument("--passes", type=int, default=2, help="passes in a process, of which the faster counts")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of restore.json and restore.md")
    parser.add_argument("--work", type=Path, help="folder for the weights, 4 GB, kept for another run; else a new one")
    parser.add_argument("--run", nargs=5, metavar=("SIDE", "BUNDLE", "BATCH", "PASSES", "PICTURE"), help="one process")
    options = parser.parse_args()
    if options.run:
        side, folder, batch, passes, picture = options.run
        print(json.dumps(run(side, Path(folder), int(batch), int(passes), Path(picture))))
        return 0
    shape, threads, rate = preset(options.preset), torch.get_num_threads(), peak_rate()
    with tempfile.TemporaryDirectory() as name:
        work = options.work or Path(name)
        folder = work / "bundle" if (work / "bundle").is_dir() else make(shape, work)
        races = {str(batch): race(folder, batch, options.rounds, options.passes, work) for batch in options.batches}
        start = first_picture(folder, work)
    counted = profile.count(shape)["macs"][profile.WITH_ATTENTION]
    table = rows(races)
    by_part = {batch: parts(sides, counted, rate, int(batch), threads) for batch, sides in races.items()}
    machine = record.machine(["torch", "diffusers", "safetensors"])
    facts = {"preset": shape.name, "threads": threads, "peak_gmacs_per_thread": rate / 1e9, "macs": counted}
    result = {**machine, **facts, "races": races, "parts": by_part, "start_up_seconds": start}
    text = report(machine, facts, table, by_part, start)
    record.write("restore", result, text, options.out)
    print(text)
    return 0 if all(good(row) for row in table if row["side"] != "reference") else 1


def good(row: dict[str, Any]) -> bool:
    fast, small = row["times as fast"] >= FASTER, row["of the reference's"] <= SMALLER
    return fast and small and float(row["largest difference"]) <= SAME


def report(machine: dict, facts: dict, table: list[dict], by_part: dict[str, list[dict]], start: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    sections = [
        f"# Restoring faces, {facts['preset']}, {facts['threads']} threads",
        f"{machine['date']}; {machine['cpu']}; Python {machine['python']}, {versions}. Random weights, float32.",
        f"Held to {FASTER}x the speed, {SMALLER}x the memory and {SAME:g} of the picture's range; {AIMS}.",
        record.table(table),
        *(f"Where the time goes, batch {batch}, s:\n\n{record.table(rows)}" for batch, rows in by_part.items()),
        f"The floor: multiply-accumulates with attention, at the {facts['peak_gmacs_per_thread']:.0f} GMAC/s a thread "
        "that a matrix product reaches here. Fast convolution takes a quarter of the products, so it can be below.",
        "From the start of a process to its end, s on the clock:\n\n" + record.table([start]),
    ]
    return "\n\n".join(sections)


if __name__ == "__main__":
    sys.exit(main())
