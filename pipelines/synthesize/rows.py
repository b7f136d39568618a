"""A planned row -> a pair. Pure but for reading the source."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from osdface.errors import UserError
from osdface.imagefile import ImageError
from pipelines import sources
from pipelines.pairs.manifest import Spec
from pipelines.pairs.schema import as_stored, encode
from pipelines.prepare import prepare
from pipelines.sources import Source
from pipelines.synthesize.config import Work
from pipelines.synthesize.ingest import reject

Row = dict[str, Any]


class Prepared(NamedTuple):
    """A source picture, brought to size: hq is what a reader will see, since LQ is made from that."""

    hq: np.ndarray
    hq_bytes: bytes | None
    target_bytes: bytes | None


def pairs(
    planned: Sequence[Row], spec: Spec, places: Sequence[Source], work: Work, rejects: list[Row]
) -> Iterator[Row]:
    """The rows of a dataset, in the plan's order; each picture is read and decoded once for all its variants.

    A picture that turns out damaged is added to `rejects`. Raises UserError for one that changed since it was hashed,
    for the digest must not depend on when a file was read.
    """
    for _, group in itertools.groupby(planned, lambda row: row["source_sha256"]):
        variants = list(group)
        try:
            picture = prepared(variants[0], spec, places, work)
        except ImageError as error:
            if variants[0]["variant"] == 0:  # its variants may lie in two shards
                rejects.append(reject(variants[0]["source_uri"], error.fault, error.reason))
            continue
        for row in variants:
            yield _pair(row, picture, spec)


def prepared(row: Row, spec: Spec, places: Sequence[Source], work: Work) -> Prepared:
    """Read and prepare a planned row's picture, and its target. Raises ImageError, or UserError for changed bytes."""
    where = f"{places[row['source']].uri}/{row['source_uri']}"
    hq = _read(row["at"], row["source_sha256"], where, row, spec, work)
    target = None
    if row["target_at"]:
        target = _read(row["target_at"], row["target_sha256"], f"target of {where}", row, spec, work)
    if spec.store != "hq":
        return Prepared(hq, None, None)
    hq_bytes = encode(hq, spec.hq_format)
    return Prepared(as_stored(hq, spec.hq_format), hq_bytes, None if target is None else encode(target, spec.hq_format))


def _read(at: str, hashed: str, where: str, row: Row, spec: Spec, work: Work) -> np.ndarray:
    try:
        data = sources.read(at, work.max_bytes)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{where}: cannot be read any more ({reason}); run the same command again") from None
    if hashlib.sha256(data).hexdigest() != hashed:
        raise UserError(f"{where}: changed while the dataset was being made; run the same command again")
    return prepare(data, spec.size, spec.fit, spec.crop, row["landmarks"], work.max_pixels)


def _pair(row: Row, picture: Prepared, spec: Spec) -> Row:
    from degradations.degrade import degrade  # here, in the worker, since Albumentations is slow to import

    lq = trace = None
    if spec.store != "virtual":
        degraded = degrade(picture.hq, spec.recipe, (spec.seed, row["source_sha256"], row["variant"]))
        lq, trace = encode(degraded.lq, spec.lq_format), json.dumps(degraded.trace)
    return {
        "key": f"{row['source_sha256']}-{row['variant']:03d}",
        "source_uri": row["source_uri"],
        "source_sha256": row["source_sha256"],
        "variant": row["variant"],
        "split": row["split"],
        "hq": picture.hq_bytes,
        "lq": lq,
        "target": picture.target_bytes,
        "target_uri": row["target_uri"] or None,
        "target_sha256": row["target_sha256"] or None,
        "height": picture.hq.shape[0],
        "width": picture.hq.shape[1],
        "trace": trace,
        "recipe_digest": spec.recipe.digest,
    }
