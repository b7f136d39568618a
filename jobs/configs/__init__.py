"""Configurations: a folder for each set (`paper`, `tiny`), a file for each command."""

from pathlib import Path

from osdface.errors import UsageError

FOLDER = Path(__file__).parent
DEFAULT = "tiny"  # the set of a command without --config


def find(ref: str, kind: str) -> Path:
    """The file that `--config ref` means for a command of this kind: a file, or a set's name.

    Raises UsageError listing the sets that have one.
    """
    if Path(ref).is_file():
        return Path(ref)
    shipped = FOLDER / ref / f"{kind}.yaml"
    if shipped.is_file():
        return shipped
    sets = sorted(path.parent.name for path in FOLDER.glob(f"*/{kind}.yaml"))
    raise UsageError(f"--config {ref}: neither a file nor a set that has {kind}.yaml; sets: {', '.join(sets)}")
