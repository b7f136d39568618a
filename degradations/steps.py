"""What a recipe is made of: one typed step for each operator, with the ranges that its parameters are drawn from.

A step knows its ranges and how they are drawn; `degradations.operators` has the arithmetic. Lengths (kernel sizes,
sigmas, shifts) are pixels of a picture of 512 pixels; `at` scales them.
"""

from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field

from degradations.operators.kernels import Kind
from degradations.operators.size import SMALLEST, Mode
from degradations.ranges import (
    TINY,
    Chance,
    Fraction,
    IntRange,
    NotNegative,
    OddRange,
    Positive,
    Range,
    Shares,
    Strict,
    odd,
    pick,
    scaled,
    uniform,
    whole,
    within,
)

Size = tuple[int, ...]  # height, width, ...
Parameters = dict[str, Any]  # plain JSON


class Step(Strict):
    """One operator of a recipe; p: how likely it is applied."""

    p: Chance = 1.0
    op: str

    def at(self, scale: float) -> Self:
        """This step for a picture `scale` times as large as 512 pixels."""
        return self

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        """Parameters for a picture of `size`, plain JSON; `full` is the size of the picture the recipe was given."""
        return {}


class Blur(Step):
    """Blur by a kernel drawn by shares from six families; beta shapes the generalised and plateau ones.

    kernel_size: odd, pixels. sigma: pixels, drawn for each axis, with an angle in [-pi, pi], unless the kernel is round
    (`iso`). Half of the betas are drawn below 1, half above, as BasicSR does.
    """

    op: Literal["Blur"] = "Blur"
    kernel_size: OddRange = (41, 41)
    kernels: Annotated[dict[Kind, float], Shares] = {"iso": 0.5, "aniso": 0.5}
    sigma: Positive = (0.1, 10)
    beta_generalized: Positive = (0.5, 4)
    beta_plateau: Positive = (1, 2)

    def at(self, scale: float) -> Self:
        return self.model_copy(update={"kernel_size": odd(self.kernel_size, scale), "sigma": scaled(self.sigma, scale)})

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        kind = pick(rng, self.kernels)
        taps = whole(rng, self.kernel_size, 2)
        sigma_x = sigma_y = uniform(rng, self.sigma)
        angle = 0.0
        if "aniso" in kind:
            sigma_y, angle = uniform(rng, self.sigma), uniform(rng, (-np.pi, np.pi))
        return {
            "kind": kind, "kernel_size": taps, "sigma_x": sigma_x, "sigma_y": sigma_y, "angle": angle,
            "beta": self._beta(rng, kind),
        }  # fmt: skip

    def _beta(self, rng: np.random.Generator, kind: Kind) -> float:
        bounds = {"g": self.beta_generalized, "p": self.beta_plateau}.get(kind[0])
        if bounds is None:
            return 1.0
        return uniform(rng, (bounds[0], 1) if rng.random() < 0.5 else (1, bounds[1]))


class Sinc(Step):
    """A circular low-pass filter, which rings as sharpening and compression do.

    kernel_size: odd, pixels. cutoff: in units of pi radians per pixel, so an inverse length.
    """

    op: Literal["Sinc"] = "Sinc"
    kernel_size: OddRange = (7, 21)
    cutoff: Annotated[Range, within(TINY, 1, "a cutoff is above 0, up to 1")] = (1 / 3, 1)

    def at(self, scale: float) -> Self:
        low, high = (min(bound / scale, 1.0) for bound in self.cutoff)
        return self.model_copy(update={"kernel_size": odd(self.kernel_size, scale), "cutoff": (low, high)})

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        taps = whole(rng, self.kernel_size, 2)
        return {"kernel_size": taps, "cutoff": uniform(rng, self.cutoff)}


class USM(Step):
    """Unsharp masking, where the picture differs from its blur by more than a threshold.

    radius: kernel size of the blur, pixels (its sigma is OpenCV's for that size). threshold: in 1/255.
    """

    op: Literal["USM"] = "USM"
    weight: float = 0.5
    radius: Annotated[int, Field(ge=1)] = 51
    threshold: float = 10

    def at(self, scale: float) -> Self:
        return self.model_copy(update={"radius": odd((self.radius, self.radius), scale)[0]})

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        return {"weight": self.weight, "radius": self.radius | 1, "threshold": self.threshold}


class Downsample(Step):
    """To 1 / factor of the size, bilinear; a factor below 1 enlarges."""

    op: Literal["Downsample"] = "Downsample"
    factor: Positive = (1, 8)

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        return {"factor": uniform(rng, self.factor)}


class Resize(Step):
    """To `factor` times the size, by a mode drawn with equal chance.

    chances: how likely the factor is drawn above 1 (up), below 1 (down), or is 1 (keep); without them it is uniform in
    `factor`. base: the factor multiplies this fraction of the size of the picture that the recipe was given (1: back to
    its size); without it, the size that the picture has now.
    """

    op: Literal["Resize"] = "Resize"
    factor: Positive = (1, 1)
    chances: Annotated[dict[Literal["up", "down", "keep"], float], Shares] | None = None
    modes: Annotated[list[Mode], Field(min_length=1)] = ["bilinear"]
    base: Annotated[float, Field(gt=0)] | None = None

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        factor = self._factor(rng)
        start = [side * self.base for side in full[:2]] if self.base else size[:2]
        height, width = (max(SMALLEST, int(side * factor)) for side in start)
        return {"height": height, "width": width, "mode": self.modes[int(rng.integers(len(self.modes)))]}

    def _factor(self, rng: np.random.Generator) -> float:
        low, high = self.factor
        if self.chances is None:
            return uniform(rng, self.factor)
        ranges = {"up": (1.0, high), "down": (low, 1.0), "keep": (1.0, 1.0)}
        return uniform(rng, ranges[pick(rng, self.chances)])


class Shift(Step):
    """Moves the picture by whole pixels, up to `limit` each way; what comes in is mirrored."""

    op: Literal["Shift"] = "Shift"
    limit: Annotated[int, Field(ge=0)] = 32

    def at(self, scale: float) -> Self:
        return self.model_copy(update={"limit": round(self.limit * scale)})

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        dx, dy = rng.integers(-self.limit, self.limit + 1, size=2).tolist()
        return {"dx": dx, "dy": dy}


class GaussianNoise(Step):
    """sigma: standard deviation in 1/255. grey: how likely the three channels share one noise."""

    op: Literal["GaussianNoise"] = "GaussianNoise"
    sigma: NotNegative = (0, 20)
    grey: Chance = 0.0

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        return {"sigma": uniform(rng, self.sigma), "grey": rng.random() < self.grey, "seed": _seed(rng)}


class PoissonNoise(Step):
    """Shot noise, `scale` times what counting photons gives. grey: how likely the three channels share one noise."""

    op: Literal["PoissonNoise"] = "PoissonNoise"
    scale: NotNegative = (0.05, 3)
    grey: Chance = 0.0

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        return {"scale": uniform(rng, self.scale), "grey": rng.random() < self.grey, "seed": _seed(rng)}


class JPEG(Step):
    """JPEG compression; quality: whole numbers from 1 to 100."""

    op: Literal["JPEG"] = "JPEG"
    quality: Annotated[IntRange, within(1, 100, "a quality is between 1 and 100")] = (60, 100)

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        return {"quality": whole(rng, self.quality)}


class ColourShift(Step):
    """A constant added to each channel, up to `limit` each way, in 1/255."""

    op: Literal["ColourShift"] = "ColourShift"
    limit: Annotated[float, Field(ge=0)] = 20

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        return {"shift": rng.uniform(-self.limit, self.limit, 3).tolist()}


class ColourJitter(Step):
    """Brightness, contrast, saturation and hue changed in an order drawn too, as torchvision does.

    The first three are factors; hue is turned by a fraction of the circle.
    """

    op: Literal["ColourJitter"] = "ColourJitter"
    brightness: NotNegative = (0.5, 1.5)
    contrast: NotNegative = (0.5, 1.5)
    saturation: NotNegative = (0, 1.5)
    hue: Annotated[Range, within(-0.5, 0.5, "a hue is between -0.5 and 0.5")] = (-0.1, 0.1)

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        changes = list(zip(("brightness", "contrast", "saturation", "hue"), ranges, strict=True))
        order = rng.permutation(len(changes)).tolist()
        return {"changes": [[changes[i][0], uniform(rng, changes[i][1])] for i in order]}


class Grey(Step):
    """Three equal channels of luma."""

    op: Literal["Grey"] = "Grey"


class Haze(Step):
    """Mixed with white; alpha: what is left of the picture."""

    op: Literal["Haze"] = "Haze"
    alpha: Fraction = (0.75, 0.95)

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        return {"alpha": uniform(rng, self.alpha)}


class UnevenLight(Step):
    """Light that rises linearly across the picture in a direction drawn too, from 1 - strength to 1 + strength."""

    op: Literal["UnevenLight"] = "UnevenLight"
    strength: Fraction = (0, 0.5)

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        return {"strength": uniform(rng, self.strength), "angle": uniform(rng, (-np.pi, np.pi))}


OPERATORS: tuple[type[Step], ...] = (
    Blur, Sinc, USM, Downsample, Resize, Shift, GaussianNoise, PoissonNoise, JPEG,
    ColourShift, ColourJitter, Grey, Haze, UnevenLight,
)  # fmt: skip


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**53))  # a whole number that JSON keeps
