"""The pictures of a row, whether it holds them, refers to its sources, or is virtual."""

import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np

from osdface.errors import UserError
from osdface.imagefile import MAX_PIXELS, read_image
from pipelines import sources
from pipelines.pairs.manifest import Manifest
from pipelines.pairs.schema import as_stored
from pipelines.prepare import prepare

MAX_BYTES = 1 << 30  # of one file
Row = dict[str, Any]


class Pictures(NamedTuple):
    """A pair: (H, W, 3) uint8 RGB each. target: what a restorer should give; hq itself where no twin is aimed at."""

    hq: np.ndarray
    lq: np.ndarray
    target: np.ndarray


class Originals:
    """Reads the pictures of a dataset's rows; lists its sources once a row needs them.

    twins: the share of rows, chosen by their keys, that aim at their twin where they have one; the others at `hq`.

    Methods raise UserError naming a source picture that is gone or has changed.
    """

    def __init__(self, manifest: Manifest, twins: float = 1.0):
        self.manifest, self.twins = manifest, twins

    def pictures(self, row: Row) -> Pictures:
        """All three of a row."""
        hq = self.hq(row)
        return Pictures(hq, self._lq(row, hq), self._target(row, hq))

    def hq(self, row: Row) -> np.ndarray:
        """The picture that the row's LQ picture is made from."""
        if row["hq"] is not None:
            return read_image(row["hq"])
        spec = self.manifest.spec
        hq = self._original(row, "at", row["source_sha256"])
        return as_stored(hq, spec.hq_format) if spec.store == "virtual" else hq

    def _lq(self, row: Row, hq: np.ndarray) -> np.ndarray:
        if row["lq"] is not None:
            return read_image(row["lq"])
        from degradations.degrade import degrade  # here, since Albumentations is slow to import

        spec = self.manifest.spec
        lq = degrade(hq, spec.recipe, (spec.seed, row["source_sha256"], row["variant"])).lq
        return as_stored(lq, spec.lq_format)

    def _target(self, row: Row, hq: np.ndarray) -> np.ndarray:
        if row["target_sha256"] is None or _share(row["key"]) >= self.twins:
            return hq
        if row["target"] is not None:
            return read_image(row["target"])
        return as_stored(self._original(row, "target_at", row["target_sha256"]), self.manifest.spec.hq_format)

    def _original(self, row: Row, locator: str, hashed: str) -> np.ndarray:
        spec = self.manifest.spec
        for file in self._files.get(row["source_uri"], []):
            try:
                data = sources.read(file[locator], MAX_BYTES)
            except OSError:
                continue
            if hashlib.sha256(data).hexdigest() == hashed:
                return prepare(data, spec.size, spec.fit, spec.crop, file["landmarks"], MAX_PIXELS)
        raise UserError(
            f"{row['source_uri']}: gone from the sources, or changed; the dataset holds only references to them"
        )

    @functools.cached_property
    def _files(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for addition in self.manifest.additions:
            for index, source in enumerate(addition.sources):
                for file in sources.files(source, index):
                    if not file["reason"]:
                        found.setdefault(file["source_uri"], []).append(file)
        return found


def _share(key: str) -> float:
    """A number in [0, 1) for each key, evenly spread."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
