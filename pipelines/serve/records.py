"""What this $OSDFACE_HOME started: a file for each endpoint, which says how to reach and how to end it."""

import json
from pathlib import Path
from typing import Any

import psutil

from osdface.config import home
from osdface.files import write_json


def path(port: int) -> Path:
    """The file of the endpoint on a port."""
    return home() / "serve" / f"{port}.json"


def write(port: int, **facts: Any) -> dict[str, Any]:
    """Record an endpoint of this process; returns the record."""
    process = psutil.Process()
    record = {"port": port, "pid": process.pid, "started": process.create_time(), **facts}
    write_json(path(port), record)
    return record


def alive() -> list[dict[str, Any]]:
    """Records whose process still is the one that wrote them; others are removed."""
    found = []
    for file in sorted((home() / "serve").glob("*.json")):
        try:
            record = json.loads(file.read_text())
            process = psutil.Process(record["pid"])
            lives = abs(process.create_time() - record["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except (ValueError, KeyError, psutil.NoSuchProcess, FileNotFoundError):
            lives = False
        if lives:
            found.append(record)
        else:
            file.unlink(missing_ok=True)
    return found
