"""Gate files: what a version must hold to become the champion."""

from pathlib import Path

from osdface.errors import UsageError

FOLDER = Path(__file__).parent


def find(ref: str) -> Path:
    """The file that `--gates ref` means: a file, or the name of one in this folder. Raises UsageError listing those."""
    if Path(ref).is_file():
        return Path(ref)
    shipped = FOLDER / f"{ref}.yaml"
    if not shipped.is_file():
        names = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
        raise UsageError(f"--gates {ref}: neither a file nor one of {names}")
    return shipped
