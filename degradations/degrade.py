"""A pair is a pure function: lq = degrade(hq, recipe, key), and lq = replay(hq, trace)."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from degradations.chain import OneOf, Patch
from degradations.operators import RUN
from degradations.ranges import hint, pick
from degradations.recipe import Recipe
from degradations.steps import Parameters, Step

REFERENCE = 512  # pixels that a recipe's lengths are given at

Trace = list[dict[str, Any]]


class Degraded(NamedTuple):
    """lq: uint8 RGB of the picture's size; trace: every operator with every parameter it drew, plain JSON."""

    lq: np.ndarray
    trace: Trace


def degrade(image: np.ndarray, recipe: Recipe, key: tuple[int, str, int]) -> Degraded:
    """Degrade a picture (H, W, 3) uint8 RGB. key = (seed, sha256 of the source's bytes, variant).

    All randomness comes from the key by counter-based Philox: the result depends on the arguments alone. Lengths scale
    by H / 512; factors, noise and JPEG quality do not. Between operators pictures are uint8. Raises ValueError for
    another image type.
    """
    _check(image)
    rng = _generator(key)
    current, trace = image, []
    for steps in _stages(recipe, rng):
        current, done = _chain(image, current, steps, rng)
        trace += done
    if current.shape != image.shape:
        back = {"op": "Resize", "height": image.shape[0], "width": image.shape[1], "mode": "bilinear"}
        current, trace = _apply(current, back), [*trace, back]
    return Degraded(current, trace)


def replay(image: np.ndarray, trace: Trace) -> np.ndarray:
    """The LQ picture that `degrade` made of this image with this trace, pixel for pixel.

    Raises ValueError for an operator that does not exist.
    """
    _check(image)
    current = image
    for entry in trace:
        if entry.get("op") == "Patch":
            current = _pasted(current, replay(image, entry["trace"]), entry)
        else:
            current = _apply(current, entry)
    return current


def _chain(
    source: np.ndarray, current: np.ndarray, steps: Sequence[Step | OneOf], rng: np.random.Generator
) -> tuple[np.ndarray, Trace]:
    """The steps drawn and applied one after another; `source` is the picture that the recipe was given."""
    trace: Trace = []
    for step in _leaves(steps, rng):
        drawn = step.at(source.shape[0] / REFERENCE).draw(rng, current.shape, source.shape)
        entry: Parameters = {"op": step.op, **drawn}
        if isinstance(step, Patch):
            patch, entry["trace"] = _chain(source, source, step.steps, rng)
            current = _pasted(current, patch, entry)
        else:
            current = _apply(current, entry)
        trace.append(entry)
    return current, trace


def _apply(image: np.ndarray, entry: Parameters) -> np.ndarray:
    parameters = dict(entry)
    name = str(parameters.pop("op", None))
    if name not in RUN:
        raise ValueError(f"trace: no operator '{name}'; {hint(name, RUN)}")
    return RUN[name](image, **parameters)


def _pasted(image: np.ndarray, patch: np.ndarray, entry: Parameters) -> np.ndarray:
    rows, columns = (slice(entry[start], entry[start] + entry["size"]) for start in ("top", "left"))
    out = image.copy()
    out[rows, columns] = patch[rows, columns]
    return out


def _stages(recipe: Recipe, rng: np.random.Generator) -> Iterator[Sequence[Step | OneOf]]:
    if recipe.mode == "mixture":
        yield recipe.stages[pick(rng, {i: stage.prob for i, stage in enumerate(recipe.stages)})].steps
    else:
        yield from (stage.steps for stage in recipe.stages if rng.random() < stage.prob)


def _leaves(steps: Sequence[Step | OneOf], rng: np.random.Generator) -> Iterator[Step]:
    """The steps that are applied, chances and choices drawn as they come."""
    for step in steps:
        if step.p < 1 and rng.random() >= step.p:
            continue
        if isinstance(step, OneOf):
            chosen = pick(rng, {i: choice.share for i, choice in enumerate(step.one_of)})
            yield from _leaves(step.one_of[chosen].steps, rng)
        else:
            yield step


def _generator(key: tuple[int, str, int]) -> np.random.Generator:
    seed, source, variant = key
    words = hashlib.sha256(f"{seed}/{source}/{variant}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=np.frombuffer(words, "<u8")))


def _check(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a picture is uint8 RGB of shape (H, W, 3), not {image.dtype} of shape {image.shape}")


# One picture is small work: threads cost more than they bring.
cv2.setNumThreads(1)
# glibc gives each large array back to the system when it is freed, and the next one costs page faults, a third of the
# time of a blur. Once it has seen a block of 32 MiB freed it keeps them.
np.empty(31 << 20, np.uint8)
