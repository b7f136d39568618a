"""Files that are never half-written: written aside, then renamed."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any


def aside(path: Path) -> Path:
    """The hidden temporary name beside `path` that only this process uses."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk: a rename may outlive a power cut that they do not."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write(path: Path, data: bytes | str) -> None:
    """Write a file aside and rename it into place, making its folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = aside(path)
    try:
        temporary.write_bytes(data if isinstance(data, bytes) else data.encode())
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file aside and rename it into place."""
    write(path, json.dumps(value, indent=2, default=str))


def replace_folder(temporary: Path, folder: Path) -> None:
    """Rename a finished folder into place; a reader sees the old one, none, or the new one, never a part."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old.{os.getpid()}")
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)


def sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
