"""Degradation recipes: typed YAML with a digest. Numbers live in recipes/*.yaml, never in code."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Literal

import yaml
from pydantic import ValidationError, model_validator

from degradations.chain import Steps
from degradations.ranges import Chance, Strict

FOLDER = Path(__file__).parent / "recipes"


class RecipeError(ValueError):
    """A recipe that cannot be used; one sentence that names the file and the field."""


class Stage(Strict):
    """One round of degradation. prob: how likely it is (sequential), or its share (mixture)."""

    prob: Chance = 1.0
    steps: Steps


class Recipe(Strict):
    """A model of degradation: stages applied one after another, or one of them picked for each picture.

    A picture that the last step leaves at another size is brought back to its own, bilinear.
    """

    name: str
    mode: Literal["sequential", "mixture"] = "sequential"
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
