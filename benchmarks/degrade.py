"""How fast pictures are degraded, against a straightforward implementation (benchmarks/reference/degrade.py).

Both follow the same parameters on the same photographs of 512 pixels, on one core, one after the other, picture by
picture. Every operator's pixels are compared too. Exits with 1 below 2x, or where an operator is off by more than one
8-bit step.
"""

import argparse
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from statistics import mean, median
from typing import Any

import cv2
import numpy as np
import skimage.data

from benchmarks import record
from benchmarks.reference import degrade as reference
from degradations.degrade import degrade, replay
from degradations.operators.noise import COUNTS, NORMAL, words
from degradations.recipe import Recipe, load, names

FLOOR, AIM = 2.0, 3.0  # times as fast
HELD_TO_IT = ("gfpgan twice", "realesrgan")


def photographs() -> dict[str, np.ndarray]:
    """Real pictures, 512 x 512 RGB."""
    crowd = cv2.imread(str(files("insightface") / "data" / "images" / "t1.jpg"))[..., ::-1]
    astronaut = skimage.data.astronaut()
    face = cv2.resize(astronaut[:256, 100:356], (512, 512), interpolation=cv2.INTER_CUBIC)
    crops = {"astronaut": astronaut, "astronaut's face": face, "crowd, left": crowd[150:662, 100:612]}
    crops |= {"crowd, right": crowd[150:662, 700:1212], "crowd": cv2.resize(crowd[:, 197:1083], (512, 512))}
    return {name: np.ascontiguousarray(crop) for name, crop in crops.items()}


def twice(recipe: Recipe) -> Recipe:
    return Recipe(name=f"{recipe.name} twice", stages=recipe.stages * 2)


def timed(function: Callable[..., Any], *arguments: Any) -> float:
    """Milliseconds of this process."""
    start = time.process_time()
    function(*arguments)
    return (time.process_time() - start) * 1000


def race(recipe: Recipe, draws: int, repeat: int) -> dict[str, Any]:
    """Each picture's median time over the repeats, ours and the reference's, and what they come to."""
    pairs = []
    for name, image in photographs().items():
        bgr = np.ascontiguousarray(image[..., ::-1])
        for draw in range(draws):
            key = (0, name, draw)
            trace = degrade(image, recipe, key).trace
            runs = [(timed(degrade, image, recipe, key), timed(reference.degrade, bgr, trace)) for _ in range(repeat)]
            pairs.append([median(side) for side in zip(*runs, strict=True)])
    ours, theirs = zip(*pairs, strict=True)
    return {
        "recipe": recipe.name,
        "pictures": len(pairs),
        "ours, ms": mean(ours),
        "reference, ms": mean(theirs),
        "times as fast": mean(theirs) / mean(ours),
        "median picture": median(their / our for our, their in pairs),
        "slowest tenth": float(np.percentile([their / our for our, their in pairs], 10)),
    }


def compared(recipe: Recipe, draws: int) -> dict[str, list[float]]:
    """For each operator, how far each picture of ours is from the reference's, in 8-bit steps, given the same picture,
    parameters and noise: the largest difference before the reference rounds to 8 bits."""
    off = defaultdict(list)
    for name, image in photographs().items():
        for draw in range(draws):
            trace, current = degrade(image, recipe, (0, name, draw)).trace, image
            for entry in trace:
                after = replay(image, [entry]) if entry["op"] == "Patch" else replay(current, [entry])
                if entry["op"] != "Patch":  # whose own trace is of operators that are compared anyway
                    off[entry["op"]].append(
                        float(np.abs(after - _plain(current, entry))[_settled(current, entry)].max())
                    )
                current = after
    return off


def _plain(image: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    """The reference's picture, RGB in [0, 255], not rounded."""
    parameters = {key: value for key, value in entry.items() if key != "op"} | _same_noise(image, entry)
    bgr = np.ascontiguousarray(image[..., ::-1]).astype(np.float32) / 255
    return np.clip(reference.OPERATORS[entry["op"]](bgr, **parameters) * 255.0, 0, 255)[..., ::-1]


def _settled(image: np.ndarray, entry: dict[str, Any]) -> Any:
    """The pixels to compare. Grey shot noise is left out where luma lies on the edge between two levels: either is
    right, and their photon rates differ."""
    if entry["op"] == "PoissonNoise" and entry["grey"]:
        return np.abs(image @ [0.299, 0.587, 0.114] % 1 - 0.5) > 0.02
    return ...


def _same_noise(image: np.ndarray, entry: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the reference takes, for BGR, in place of noise of its own."""
    if "seed" not in entry:
        return {}
    drawn = words(entry["seed"], image.shape[:2]) if entry["grey"] else words(entry["seed"], image.shape)[..., ::-1]
    return {"normal": NORMAL[drawn]} if entry["op"] == "GaussianNoise" else {"share": ((drawn >> 4) + 0.5) / COUNTS}


def where_the_time_goes(recipe: Recipe, draws: int) -> list[dict[str, Any]]:
    """Milliseconds per picture of each operator, ours and the reference's."""
    spent: dict[str, Counter[str]] = {"ours": Counter(), "reference": Counter()}
    images = photographs()
    for name, image in images.items():
        for draw in range(draws):
            current = image
            for entry in degrade(image, recipe, (0, name, draw)).trace:
                bgr = np.ascontiguousarray(current[..., ::-1]).astype(np.float32) / 255
                spent["ours"][entry["op"]] += timed(replay, current, [entry])
                spent["reference"][entry["op"]] += timed(reference.follow, bgr, [entry])
                current = replay(current, [entry])
    pictures = len(images) * draws
    return [
        {"operator": op, "ours, ms": spent["ours"][op] / pictures, "reference, ms": total / pictures}
        for op, total in spent["reference"].most_common()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.degrade", description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each picture, whose median counts")
    parser.add_argument("--draws", type=int, default=20, help="draws of parameters for each of five photographs")
    parser.add_argument("--recipes", nargs="*", default=names(), help="beside 'gfpgan twice' and realesrgan")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of degrade.json and degrade.md")
    options = parser.parse_args()
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    cv2.setNumThreads(1)
    held = [twice(load("gfpgan")), load("realesrgan")]
    recipes = held + [load(name) for name in options.recipes if name != "realesrgan"]
    for recipe in recipes:  # tables of quantiles are made once in a process
        race(recipe, 2, 1)
    races = [race(recipe, options.draws, options.repeat) for recipe in recipes]
    few = max(1, options.draws // 4)
    off = defaultdict(list)
    for recipe in recipes:
        for op, values in compared(recipe, few).items():
            off[op] += values
    steps = [
        {"operator": op, "pictures": len(values), "largest": max(values), "mean of largest": mean(values)}
        for op, values in sorted(off.items())
    ]
    profiles = {recipe.name: where_the_time_goes(recipe, few) for recipe in held}
    machine = record.machine(["opencv-python-headless", "numpy", "scipy", "albumentations"])
    text = report(machine, races, steps, profiles)
    record.write("degrade", {**machine, "races": races, "steps": steps, "profiles": profiles}, text, options.out)
    print(text)
    slow = [entry["recipe"] for entry in races if entry["recipe"] in HELD_TO_IT and entry["times as fast"] < FLOOR]
    far = [entry["operator"] for entry in steps if entry["largest"] > 1]
    return 1 if slow or far else 0


def report(machine: dict, races: list[dict], steps: list[dict], profiles: dict[str, list[dict]]) -> str:
    parts = [
        f"# Degradation, one core\n\n{machine['date']}; {machine['cpu']}; Python {machine['python']}, "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        f"Five photographs of 512 x 512 pixels. Held to {FLOOR:g}x, aimed at {AIM:g}x: {', '.join(HELD_TO_IT)}.",
        record.table(races),
        "Largest difference in a picture from the reference at each operator, in 8-bit steps, before the reference is "
        "rounded to 8 bits (rounding alone makes 0.5):",
        record.table(steps),
        *(f"Where the time goes, {name}, per picture:\n\n{record.table(rows)}" for name, rows in profiles.items()),
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
