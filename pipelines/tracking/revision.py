"""What code a run was made by."""

import os
import subprocess
from pathlib import Path

REVISION = "OSDFACE_GIT_REVISION"  # the environment variable of a submitted job


def git_revision() -> str | None:
    """The code's git revision ("+" where files are changed); None where this file is in no repository.

    A submitted job's code is in none either: what was submitted from is in $OSDFACE_GIT_REVISION.
    """
    if not _git("ls-files", Path(__file__).name):  # installed: a repository around it is somebody else's
        return os.environ.get(REVISION)
    return _git("describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
