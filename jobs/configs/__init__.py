"""Configurations: a folder for each set (`paper`, `tiny`, `ablations/learned`), a file for each command."""

from pathlib import Path

from osdface.errors import UsageError

FOLDER = Path(__file__).parent
DEFAULT = "tiny"  # the set of a command without --config


def find(ref: str, kind: str) -> list[Path]:
    """The files that `--config ref` means for a command of this kind: each a file or a set's name, by commas.

    Every one is laid over those before it (`osdface.config.read`). Raises UsageError listing the sets that have one.
    """
    if Path(ref).is_file():
        return [Path(ref)]
    return [_find(name.strip(), kind) for name in ref.split(",")]


def _find(ref: str, kind: str) -> Path:
    if Path(ref).is_file():
        return Path(ref)
    shipped = FOLDER / ref / f"{kind}.yaml"
    if shipped.is_file():
        return shipped
    sets = sorted(path.parent.relative_to(FOLDER).as_posix() for path in FOLDER.rglob(f"{kind}.yaml"))
    raise UsageError(f"--config {ref}: neither a file nor a set that has {kind}.yaml; sets: {', '.join(sets)}")
