"""What a synthesis is asked to make, and how it may go about it."""

import hashlib
import os
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from degradations.recipe import Recipe
from osdface.config import Strict
from pipelines.pairs.manifest import Keep, Location, Spec
from pipelines.pairs.schema import Format
from pipelines.prepare import Fit
from pipelines.sources import Source


class Split(Strict):
    """Shares of the pictures (by hash) that go to validation and test; the rest is for training."""

    val: float = Field(default=0.0, ge=0, le=1)
    test: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> "Split":
        if self.val + self.test > 1:
            raise ValueError(f"val {self.val:g} and test {self.test:g} are more than everything together")
        return self

    def of(self, identity: str) -> str:
        """The split of a picture, from the hash of its group or content."""
        position = unit(identity)
        return "test" if position < self.test else "val" if position < self.test + self.val else "train"


def unit(text: str) -> float:
    """A number in [0, 1) from a text's hash."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


class Work(Strict):
    """How the work is done; nothing here changes a row.

    cpus_per_worker: what Ray reserves for each of `workers`. max_pixels, max_bytes: larger files are rejected unread.
    max_rejects: a count, or below 1 a share of the files, at which the job stops.
    """

    workers: int = Field(default=2, ge=1)
    cpus_per_worker: float = Field(default=0.5, gt=0)
    max_pixels: int = Field(default=100_000_000, ge=1)
    max_bytes: int = Field(default=256_000_000, ge=1)
    max_rejects: float | None = Field(default=None, ge=0)


class _Pairs(Work):
    """Which pairs.

    sources: places of pictures, each a URI or a `Source`. size: pixels of a side. limit: pictures at most, by order of
    hash. shard_rows: rows of a shard, which is also what a killed run has to make again at most.
    """

    sources: list[Source]
    recipe: str = "dual_sequential"
    seed: int = 0
    variants: int = Field(default=1, ge=1)
    size: int = Field(default=512, ge=16, le=4096)
    fit: Fit = "crop"
    crop: Literal["none", "face"] = "none"
    split: Split = Split()
    limit: int | None = Field(default=None, ge=1)
    shard_rows: int = Field(default=256, ge=1)
    hq_format: Format = "png"
    lq_format: Format = "png"

    @field_validator("sources", mode="before")
    @classmethod
    def _named(cls, sources: Any) -> Any:
        if not sources:
            raise ValueError("give one folder, archive or list of pictures at least")
        return [{"uri": os.fspath(s)} if isinstance(s, str | os.PathLike) else s for s in sources]

    def _spec(self, recipe: Recipe, store: Keep) -> Spec:
        return Spec(
            recipe=recipe, seed=self.seed, variants=self.variants, size=self.size, fit=self.fit, crop=self.crop,
            hq_format=self.hq_format, lq_format=self.lq_format, store=store, val=self.split.val,
            test=self.split.test, shard_rows=self.shard_rows,
        )  # fmt: skip


class SynthConfig(_Pairs):
    """Configuration of `osdface data synth`: which pairs, where they go, and whether rows hold their pictures."""

    out: Location
    store: Keep = "hq"

    def spec(self, recipe: Recipe) -> Spec:
        """What the dataset's digest covers."""
        return self._spec(recipe, self.store)


class Virtual(_Pairs):
    """Pairs that training makes as it reads them: an index of their keys is all that is written."""

    mode: Literal["virtual"]

    def index(self, out: str) -> SynthConfig:
        """The synthesis that writes the index to `out`."""
        return SynthConfig(**self.model_dump(exclude={"mode"}), out=out, store="virtual")
