"""How steps are put together: in lists, with alternatives, and with patches that have lists of their own."""

from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from degradations.ranges import Chance, IntRange, Strict, hint, whole, within
from degradations.steps import (
    JPEG,
    OPERATORS,
    USM,
    Blur,
    ColourJitter,
    ColourShift,
    Downsample,
    GaussianNoise,
    Grey,
    Haze,
    Parameters,
    PoissonNoise,
    Resize,
    Shift,
    Sinc,
    Size,
    Step,
    UnevenLight,
)  # fmt: skip


class Patch(Step):
    """A square of the picture that the recipe was given, degraded by its own draw of `steps`, over the present one.

    size: side in pixels. The steps must end at the picture's full size. Only recipes have it: it is no transform.
    """

    op: Literal["Patch"] = "Patch"
    size: Annotated[IntRange, within(1, 512, "a patch is 1 to 512 pixels")] = (128, 256)
    steps: "Steps"

    def at(self, scale: float) -> Self:
        low, high = (max(1, round(side * scale)) for side in self.size)
        return self.model_copy(update={"size": (low, high)})

    def draw(self, rng: np.random.Generator, size: Size, full: Size) -> Parameters:
        side = min(whole(rng, self.size), *size[:2])
        top, left = (whole(rng, (0, length - side)) for length in size[:2])
        return {"top": top, "left": left, "size": side}


class Choice(Strict):
    """One alternative: its share and its steps, none for leaving the picture alone."""

    share: Chance
    steps: "Steps"


class OneOf(Strict):
    """One of several lists of steps, drawn by their shares; p: how likely any is."""

    p: Chance = 1.0
    one_of: Annotated[list[Choice], Field(min_length=2)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(sum(choice.share for choice in self.one_of) - 1) > 1e-6:
            raise ValueError("in one_of the shares sum to 1")
        return self


def _tag(value: Any) -> str:
    if isinstance(value, dict):
        return "one_of" if "one_of" in value else str(value.get("op"))
    return "one_of" if isinstance(value, OneOf) else value.op


def _known(value: Any) -> Any:
    known = [*(step.__name__ for step in OPERATORS), "Patch"]
    if not isinstance(value, dict | Strict):
        raise ValueError(f"a step is {{op: ..., ...}} or {{one_of: [...]}}, not {value!r}")
    if _tag(value) not in (*known, "one_of"):
        raise ValueError(f"no operator '{_tag(value)}'; {hint(_tag(value), known)}")
    return value


AnyStep = Annotated[
    Annotated[Blur, Tag("Blur")]
    | Annotated[Sinc, Tag("Sinc")]
    | Annotated[USM, Tag("USM")]
    | Annotated[Downsample, Tag("Downsample")]
    | Annotated[Resize, Tag("Resize")]
    | Annotated[Shift, Tag("Shift")]
    | Annotated[GaussianNoise, Tag("GaussianNoise")]
    | Annotated[PoissonNoise, Tag("PoissonNoise")]
    | Annotated[JPEG, Tag("JPEG")]
    | Annotated[ColourShift, Tag("ColourShift")]
    | Annotated[ColourJitter, Tag("ColourJitter")]
    | Annotated[Grey, Tag("Grey")]
    | Annotated[Haze, Tag("Haze")]
    | Annotated[UnevenLight, Tag("UnevenLight")]
    | Annotated[Patch, Tag("Patch")]
    | Annotated[OneOf, Tag("one_of")],
    Discriminator(_tag),
]
Steps = list[Annotated[AnyStep, BeforeValidator(_known)]]
Patch.model_rebuild()
Choice.model_rebuild()
OneOf.model_rebuild()
