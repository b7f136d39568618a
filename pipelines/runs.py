"""Training runs: the names they go by on this machine, which one is gone on with, and what they have come to."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from osdface.config import home
from osdface.errors import UserError
from osdface.files import write_json
from pipelines.training.alone import OWN
from pipelines.training.checkpoints import NOTE

FOLDER = "runs"  # under $OSDFACE_HOME: a note for each run, and its checkpoints in a folder of its name
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of the checkpoints that are whole
STAGES = ("base", "vre", "osd")


class Found(NamedTuple):
    """A run on this machine. known: what was noted of it, empty for one that is to begin."""

    name: str
    known: dict[str, Any]


def note_of(name: str) -> dict[str, Any]:
    """What is noted of a run: stage, digest, run_id, identity. Empty where there is none."""
    path = home() / FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def remember(name: str, note: dict[str, Any]) -> None:
    """Note a run, as it begins."""
    write_json(home() / FOLDER / f"{name}.json", note)


def choose(stage: str, digest: str, identity: dict[str, Any], resume: str) -> Found:
    """The run to go on with, or the name of a new one.

    resume: "auto" takes the newest run of this digest; "never" a new name; anything else is a run's name. Raises
    UserError for a run that is not there, or was begun with something else: what differs is named.
    """
    plain = f"{stage}-{digest[:12]}"
    if resume not in ("auto", "never"):
        note = note_of(resume)
        if not note:
            raise UserError(f"--resume {resume}: no such run on this machine; see osdface runs list")
        if note["digest"] != digest:
            differing = ", ".join(_differing(note.get("identity", {}), identity)) or "its format"
            raise UserError(f"--resume {resume}: it was begun otherwise ({differing}); --resume auto begins a new one")
        return Found(resume, note)
    names = [plain]
    while note_of(names[-1]):
        names.append(f"{plain}-{len(names) + 1}")
    if resume == "never" or len(names) == 1:
        return Found(names[-1], {})
    found = Found(names[-2], note_of(names[-2]))
    if found.known.get("digest", digest) != digest:
        raise UserError(f"{found.name}: a run of this name was begun with something else; give --resume never")
    return found


def _differing(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key in sorted(before.keys() | now.keys()):
        one, two = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            names += _differing(one, two, f"{prefix}{key}.")
        elif one != two:
            names.append(f"{prefix}{key} was {one}" if key in before else f"{prefix}{key} is new")
    return [name.removeprefix("config.") for name in names]


def whole_checkpoints(name: str) -> list[Path]:
    """A run's checkpoints that were written to their end, by how far they are, the last one last."""
    folder = home() / FOLDER / name
    found = list(folder.glob(OWN))
    if (listed := folder / SNAPSHOT).is_file():
        snapshot = json.loads(listed.read_text())
        results = [*snapshot["checkpoint_results"], *filter(None, [snapshot.get("latest_checkpoint_result")])]
        found += [folder / directory for directory in {result["checkpoint_dir_name"] for result in results}]
    return sorted((path for path in found if (path / NOTE).is_file()), key=_reached)


def _reached(checkpoint: Path) -> tuple:
    note = json.loads((checkpoint / NOTE).read_text())
    return note["phase"], note["step"], note.get("exported") is not None, (checkpoint / NOTE).stat().st_mtime
