"""What is submitted: one of the work commands, or a job file that holds one with all its options."""

import getpass
import re
import shlex
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from osdface.config import Strict, load, parse
from osdface.errors import UsageError

FOLDER = Path(__file__).parent.parent / "specs"
COMMANDS = {
    "synth": "data synth", "train-base": "train base", "train-vre": "train vre", "train-osd": "train osd",
    "evaluate": "evaluate", "restore": "restore", "run": "run",
}  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # it is a file's name on the head, and a path of the Job API

Environment = Literal["cluster", "lock", "image"]


class Job(Strict):
    """A job file.

    name: what the cluster calls the job; made from command and time where absent. run: the command line without the
    leading `osdface`. env: environment variables of the job, over its cluster's. environment: the packages it runs
    with: the cluster's own; those of requirements.lock, installed by Ray before it starts; or a container `image`.
    excludes: patterns, as in .gitignore, of what else of the working directory stays here.
    """

    name: str | None = None
    run: str
    env: dict[str, str] = {}
    environment: Environment = "cluster"
    image: str | None = None
    excludes: list[str] = []

    @field_validator("run")
    @classmethod
    def _a_work_command(cls, run: str) -> str:
        words = shlex.split(run)
        if not any(words[: len(start.split())] == start.split() for start in COMMANDS.values()):
            raise ValueError(f"'{run}' is none of the commands that jobs run: {', '.join(COMMANDS.values())}")
        return run

    @field_validator("name")
    @classmethod
    def _a_plain_name(cls, name: str | None) -> str | None:
        if name is not None and not NAME.fullmatch(name):
            raise ValueError(f"'{name}': a job's name is letters, digits, dots, dashes and underscores, at most 100")
        return name

    def words(self) -> list[str]:
        """The command line in words."""
        return shlex.split(self.run)


def find(what: str, arguments: list[str], **changes: Any) -> Job:
    """The job that `what` (a command's name, a job file, or a shipped one's name) means, with more arguments.

    changes: fields to lay over it; None leaves one as it is. Raises UsageError for what is neither.
    """
    more = shlex.join(arguments)
    if what in COMMANDS:
        given = {name: value for name, value in changes.items() if value is not None}
        name = given.pop("name", None) or f"{getpass.getuser()}-{what}-{time.strftime('%m%d-%H%M%S')}"
        job = parse(Job, {"name": name, "run": f"{COMMANDS[what]} {more}".strip(), **given}, "jobs submit")
    else:
        file = _file(what)
        job = load(Job, file, **changes)
        job = job.model_copy(update={"run": f"{job.run} {more}".strip(), "name": job.name or file.stem})
    if job.environment == "image" and not job.image:
        raise UsageError(f"{what}: --env image needs the image's name: --image, or `image` in the job file or cluster")
    return job


def _file(what: str) -> Path:
    for file in (Path(what), FOLDER / f"{what}.yaml"):
        if file.is_file():
            return file
    shipped = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
    raise UsageError(
        f"'{what}' is no job file and none of {', '.join(COMMANDS)}, nor a shipped job: {', '.join(shipped)}"
    )
