"""The types that recipes are written in: ranges, shares, and models that refuse unknown keys."""

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

T = TypeVar("T")


def hint(word: object, known: Iterable[str]) -> str:
    """What to say of an unknown word."""
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(known)


class Strict(BaseModel):
    """Refuses unknown keys, naming the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(f"unknown key '{key}'; {hint(key, cls.model_fields)}")
        return data


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) else value


def _ordered(bounds: tuple) -> tuple:
    if not bounds[0] <= bounds[1]:
        raise ValueError(f"a range is one number, or two [low, high] with low <= high, not {list(bounds)}")
    return bounds


def within(low: float, high: float, name: str) -> AfterValidator:
    """Both ends of the range lie in [low, high]; `name` says so."""

    def check(bounds: tuple) -> tuple:
        if bounds[0] < low or bounds[1] > high:
            raise ValueError(f"{name}, not {list(bounds)}")
        return bounds

    return AfterValidator(check)


def _odd(bounds: tuple[int, int]) -> tuple[int, int]:
    if not (bounds[0] % 2 and bounds[1] % 2):
        raise ValueError(f"a kernel size is odd, not {list(bounds)}")
    return bounds


def _shares(shares: dict) -> dict:
    if abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise ValueError(f"shares are not below 0 and sum to 1, unlike {shares}")
    return shares


INFINITY = float("inf")
TINY = 1e-6
Chance = Annotated[float, Field(ge=0, le=1)]
Shares = AfterValidator(_shares)
Range = Annotated[tuple[float, float], BeforeValidator(_pair), AfterValidator(_ordered)]
Positive = Annotated[Range, within(TINY, INFINITY, "a range is above 0 here")]
NotNegative = Annotated[Range, within(0, INFINITY, "a range is not below 0 here")]
Fraction = Annotated[Range, within(0, 1, "a range is between 0 and 1 here")]
IntRange = Annotated[tuple[int, int], BeforeValidator(_pair), AfterValidator(_ordered)]
OddRange = Annotated[IntRange, AfterValidator(_odd), within(1, INFINITY, "a kernel size is 1 at least")]


def uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(rng.uniform(*bounds))


def whole(rng: np.random.Generator, bounds: tuple[int, int], step: int = 1) -> int:
    """low, low + step, ..., high with equal chance."""
    low, high = bounds
    return low + step * int(rng.integers((high - low) // step + 1))


def pick(rng: np.random.Generator, shares: dict[T, float]) -> T:
    """A key by its share, whatever order the keys are in: YAML and digests sort them."""
    keys = sorted(shares)  # type: ignore[type-var]
    return keys[int(rng.choice(len(keys), p=[shares[key] for key in keys]))]


def scaled(bounds: tuple[float, float], scale: float) -> tuple[float, float]:
    return bounds[0] * scale, bounds[1] * scale


def odd(bounds: tuple[int, int], scale: float) -> tuple[int, int]:
    """Kernel sizes at another scale: odd, 3 at least."""
    low, high = (max(3, 2 * int(size * scale / 2) + 1) for size in bounds)
    return low, high
