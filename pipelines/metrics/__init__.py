"""How well faces are restored, by metrics of single pictures and of sets of them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from osdface import weights
from osdface.errors import UsageError
from osdface.files import sha256
from pipelines.metrics.classical import METRICS, psnr, ssim
from pipelines.metrics.protocol import Distribution, Metric, Missing, Suite
from pipelines.metrics.table import SETS, SINGLES, Set, Single

__all__ = ["METRICS", "NAMES", "load", "psnr", "ssim"]

NAMES = tuple(entry.name for entry in (*SINGLES, *SETS))


def load(device: str = "cpu", names: Sequence[str] | None = None, references: bool = True) -> Suite:
    """The metrics called `names`, or all, that this machine has the weights for; the others are listed as missing.

    references: whether there are reference pictures; without, "all" are those that need none. A weight file that is
    missing is never replaced, and none is fetched. Raises UsageError for a name that is not known, or that needs
    references where there are none; UserError for a weight file that is damaged or another network's.
    """
    _check(NAMES if names is None else names, references or names is None)
    metrics: list[Metric] = []
    distributions: list[Distribution] = []
    missing: list[Missing] = []
    for entry in (*SINGLES, *SETS):
        if (names is not None and entry.name not in names) or (entry.reference and not references):
            continue
        if absent := [files[0] for files in entry.files if _present(files) is None]:
            missing += [_missing(entry.name, file) for file in absent]
        elif isinstance(entry, Single):
            metrics.append(entry.build(device, *_weights(entry)))
        else:
            distributions.append(entry.build(device, *_weights(entry)))
    return Suite(metrics, distributions, missing)


def _check(names: Sequence[str], references: bool) -> None:
    reference = {entry.name: entry.reference for entry in (*SINGLES, *SETS)}
    for name in names:
        if name not in reference:
            raise UsageError(f"metric '{name}' does not exist; known: {', '.join(NAMES)}")
        if reference[name] and not references:
            raise UsageError(f"metric '{name}' compares with reference pictures, and there are none")


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
