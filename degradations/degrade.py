"""A pair is a pure function: lq = degrade(hq, recipe, key), and lq = replay(hq, trace)."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import albumentations as A
import cv2
import numpy as np

from degradations.recipe import Recipe, Stage
from degradations.transforms import JPEG, OPERATORS, Blur, Downsample, Noise, ResizeTo, _as, _as_float

REFERENCE = 512  # pixels that a recipe's lengths are given at

Trace = list[dict[str, Any]]


class Degraded(NamedTuple):
    """lq: uint8 RGB of the picture's size; trace: every operator with every parameter it drew, plain JSON."""

    lq: np.ndarray
    trace: Trace


def degrade(image: np.ndarray, recipe: Recipe, key: tuple[int, str, int]) -> Degraded:
    """Degrade a picture (H, W, 3) uint8 RGB. key = (seed, sha256 of the source's bytes, variant).

    All randomness comes from the key by counter-based Philox: the result depends on the arguments alone. Kernel sizes
    and sigmas scale by H / 512 (an odd kernel of at least 3 is kept); factors, noise and JPEG quality do not. Between
    operators pictures are float32 in [0, 1], as in the published programs. Raises ValueError for another image type.
    """
    _check(image)
    rng = _generator(key)
    current, trace = _as_float(image), []
    for transform in _transforms(recipe, rng, image.shape):
        transform.random_generator = rng
        parameters = transform.get_params()
        current = transform.apply(current, **parameters)
        trace.append({"op": type(transform).__name__, **parameters})
    return Degraded(_as(np.dtype(np.uint8), current), trace)


def replay(image: np.ndarray, trace: Trace) -> np.ndarray:
    """The LQ picture that `degrade` made of this image with this trace, pixel for pixel.

    Raises ValueError for an operator that does not exist.
    """
    _check(image)
    current = _as_float(image)
    for entry in trace:
        parameters = {name: value for name, value in entry.items() if name != "op"}
        operator = OPERATORS.get(str(entry.get("op")))
        if operator is None:
            raise ValueError(f"trace: no operator '{entry.get('op')}'; known: {', '.join(OPERATORS)}")
        current = operator().apply(current, **parameters)
    return _as(np.dtype(np.uint8), current)


def _generator(key: tuple[int, str, int]) -> np.random.Generator:
    seed, source, variant = key
    words = hashlib.sha256(f"{seed}/{source}/{variant}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=np.frombuffer(words, np.uint64)))


def _transforms(recipe: Recipe, rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[A.ImageOnlyTransform]:
    """The operators to run, in order, ending with the resize back to the picture's size."""
    if recipe.mode == "mixture":
        stages = [recipe.stages[rng.choice(len(recipe.stages), p=[stage.prob for stage in recipe.stages])]]
    else:
        stages = [stage for stage in recipe.stages if rng.random() < stage.prob]
    for stage in stages:
        yield from _round(stage, shape[0] / REFERENCE)
    yield ResizeTo(shape[0], shape[1])


def _round(stage: Stage, scale: float) -> list[A.ImageOnlyTransform]:
    sizes = [max(3, 2 * int(size * scale / 2) + 1) for size in stage.kernel_size]
    sigma = [value * scale for value in stage.sigma]
    return [
        Blur(sizes, stage.kernels, stage.kernel_prob, sigma),
        Downsample(stage.downsample),
        Noise(stage.noise),
        JPEG(stage.jpeg),
    ]


def _check(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a picture is uint8 RGB of shape (H, W, 3), not {image.dtype} of shape {image.shape}")


cv2.setNumThreads(
    1
)  # one picture is small work: threads cost more than they bring, and results must not depend on them
