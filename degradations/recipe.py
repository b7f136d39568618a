"""Degradation recipes: typed YAML with a digest. Numbers live in recipes/*.yaml, never in code."""

import difflib
import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

FOLDER = Path(__file__).parent / "recipes"
KERNELS = ("iso", "aniso")


class RecipeError(ValueError):
    """A recipe that cannot be used; one sentence that names the file and the field."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                hint = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(cls.model_fields)
                raise ValueError(f"unknown key '{key}'; {hint}")
        return data


def _ordered(bounds: tuple) -> tuple:
    if not 0 <= bounds[0] <= bounds[1]:
        raise ValueError(f"a range is two numbers [low, high] with 0 <= low <= high, not {list(bounds)}")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
IntRange = Annotated[tuple[int, int], AfterValidator(_ordered)]


class Stage(_Strict):
    """One round of blur - downsample - noise - JPEG, every parameter drawn uniformly from its range.

    prob: how likely the round is (sequential), or its share (mixture). kernel_size (odd) and sigma: pixels at 512.
    downsample: factor r, the picture becomes 1/r as large. noise: standard deviation in 1/255. jpeg: quality.
    """

    prob: float = 1.0
    kernel_size: IntRange
    kernels: list[Literal["iso", "aniso"]] = ["iso", "aniso"]
    kernel_prob: list[float] = [0.5, 0.5]
    sigma: Range
    downsample: Range
    noise: Range
    jpeg: IntRange

    @model_validator(mode="after")
    def _check(self) -> "Stage":
        if not 0 <= self.prob <= 1:
            raise ValueError(f"prob is between 0 and 1, not {self.prob}")
        if len(self.kernels) != len(self.kernel_prob) or abs(sum(self.kernel_prob) - 1) > 1e-6:
            raise ValueError("kernel_prob has one share for each of kernels, and they sum to 1")
        if not (self.kernel_size[0] % 2 and self.kernel_size[1] % 2):
            raise ValueError(f"kernel_size is odd, not {list(self.kernel_size)}")
        if self.downsample[0] <= 0 or self.sigma[0] <= 0:
            raise ValueError("downsample and sigma are above 0")
        if not 1 <= self.jpeg[0] <= self.jpeg[1] <= 100:
            raise ValueError(f"jpeg quality is between 1 and 100, not {list(self.jpeg)}")
        return self


class Recipe(_Strict):
    """A model of degradation: stages applied one after another, or one of them picked for each picture."""

    name: str
    mode: Literal["sequential", "mixture"]
    stages: list[Stage]

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if not self.stages:
            raise ValueError("stages is empty: a recipe needs one at least")
        if self.mode == "mixture" and abs(sum(stage.prob for stage in self.stages) - 1) > 1e-6:
            raise ValueError("in a mixture the stages' prob sum to 1")
        return self

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the content: comments and layout of the YAML do not count."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def names() -> list[str]:
    """The recipes that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(ref: str | Path) -> Recipe:
    """The recipe of a shipped name or a YAML file. Raises RecipeError naming the file and the field at fault."""
    path = Path(ref)
    if str(ref) in names():
        path = FOLDER / f"{ref}.yaml"
    elif not path.is_file():
        raise RecipeError(f"recipe '{ref}' is neither a file nor one that ships ({', '.join(names())})")
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise RecipeError(f"{path}: {field + ': ' if field else ''}{message}") from None
