"""What a version must hold to become the champion, as YAML files say it."""

from typing import Literal

from pydantic import Field, field_validator

from osdface.config import Strict


class Bound(Strict):
    """Of a metric, in its own units. max_regression: how much worse than the champion's it may be."""

    min: float | None = None
    max: float | None = None
    max_regression: float | None = Field(default=None, ge=0)


class Trial(Strict):
    """Self-test pictures restored before anything else, each alone.

    pictures: how many, 2 to 8. deviation: least standard deviation of a restored picture, in levels of 255: black is 0.
    max: seconds of a picture, the fastest of them; max_ratio: to the champion's, in the same place.
    """

    pictures: int = Field(default=4, ge=2, le=8)
    deviation: float = Field(default=1.0, ge=0)
    max: float | None = Field(default=None, gt=0)
    max_ratio: float | None = Field(default=None, ge=1)


class Licences(Strict):
    """use: "commercial" takes nothing whose licence forbids that, or that states none. accept: names of things or of
    licences that are taken all the same, since you have asked their owners."""

    use: Literal["research", "commercial"] = "research"
    accept: list[str] = []


class Live(Strict):
    """Of the answers to live requests. requests: least number to judge by. errors: share of them that may fail beyond
    the champion's share. p50_ratio, p95_ratio: the model's seconds at most, to the champion's; p95: seconds at most."""

    requests: int = Field(default=20, ge=1)
    errors: float = Field(default=0.01, ge=0, le=1)
    p50_ratio: float | None = Field(default=2.0, ge=1)
    p95_ratio: float | None = Field(default=3.0, ge=1)
    p95: float | None = Field(default=None, gt=0)


class Gates(Strict):
    """All gates. A key that is null asks for nothing.

    metrics: by name, or by what comes before the dot: then all of that family that were measured. dataset: digest, or
    its first digits, that evaluations must have been made on; null: any, the champion's if both have it. runs: the
    stages whose runs must be recorded; those that are recorded must have finished.
    """

    metrics: dict[str, Bound] = {}
    dataset: str | None = Field(default=None, min_length=8)
    bundle: bool = True
    trial: Trial | None = Trial()
    runs: list[str] | None = []
    licences: Licences | None = None
    live: Live = Live()

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: dict[str, Bound]) -> dict[str, Bound]:
        from pipelines.promotion.evaluations import directions

        for name in metrics:
            if name not in directions():
                raise ValueError(f"no metric '{name}'; known: {', '.join(sorted(directions()))}")
        return metrics
