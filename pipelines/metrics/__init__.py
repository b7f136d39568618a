"""How well faces are restored, by metrics of single pictures and of sets of them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from osdface import weights
from osdface.errors import UsageError
from osdface.files import sha256
from pipelines.metrics import embedder
from pipelines.metrics.classical import psnr, ssim
from pipelines.metrics.protocol import Distribution, Metric, Missing, Suite
from pipelines.metrics.table import SETS, SINGLES, Set, Single

__all__ = ["NAMES", "load", "psnr", "ssim"]

NEEDS_REFERENCES = {entry.name: entry.reference for entry in (*SINGLES, *SETS)} | dict.fromkeys(embedder.NAMES, True)
NAMES = tuple(NEEDS_REFERENCES)


def load(device: str = "cpu", names: Sequence[str] | None = None, references: bool = True) -> Suite:
    """The metrics called `names`, or all, that this machine has the weights for; the others are listed as missing.

    They come in the order of NAMES, those of single pictures and those of sets each.

    references: whether there are reference pictures; without, "all" are those that need none. A weight file that is
    missing is never replaced, and none is fetched. Raises UsageError for a name that is not known, or that needs
    references where there are none; UserError for a weight file that is damaged or another network's.
    """
    chosen = _chosen(names, references)
    metrics: list[Metric] = []
    distributions: list[Distribution] = []
    missing: list[Missing] = []
    for entry in (*SINGLES, *SETS):
        if entry.name not in chosen:
            continue
        if absent := [files[0] for files in entry.files if _present(files) is None]:
            missing += [_missing(entry.name, file) for file in absent]
        elif isinstance(entry, Single):
            metrics.append(entry.build(device, *_weights(entry)))
        else:
            distributions.append(entry.build(device, *_weights(entry)))
    if chosen & set(embedder.NAMES):
        own = embedder.metrics(device)
        metrics += [metric for metric in own.metrics if metric.name in chosen]
        distributions += [distribution for distribution in own.distributions if distribution.name in chosen]
        missing += [one for one in own.missing if one.name in chosen]
    return Suite(metrics, distributions, missing)


def _chosen(names: Sequence[str] | None, references: bool) -> set[str]:
    if names is None:
        return {name for name, needed in NEEDS_REFERENCES.items() if references or not needed}
    for name in names:
        if name not in NEEDS_REFERENCES:
            raise UsageError(f"metric '{name}' does not exist; known: {', '.join(NAMES)}")
        if NEEDS_REFERENCES[name] and not references:
            raise UsageError(f"metric '{name}' compares with reference pictures, and there are none")
    return set(names)


def _present(files: tuple[str, ...]) -> Path | None:
    return next((path for path in map(weights.present, files) if path), None)


def _missing(name: str, file: str) -> Missing:
    return Missing(name, weights.WEIGHTS[file].file, str(next(weights.places(file)).parent))


def _weights(entry: Single | Set) -> tuple[list[Path], str]:
    """The paths of its files, and the digest of its labels: of several files, that of their digests in that order."""
    paths = [path for path in map(_present, entry.files) if path]
    digests = list(map(sha256, paths))
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return paths, digest[:16] if paths else ""
