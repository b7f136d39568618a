"""A command line as it would be parsed on the cluster: faults are found, and its workers known, before it is sent."""

import contextlib
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import typer
from pydantic import BaseModel
from typer.exceptions import TyperException

from jobs import configs
from osdface.config import digest, load, read
from osdface.errors import UsageError, UserError

KINDS = {("data", "synth"): "synth", ("train", "base"): "base", ("train", "vre"): "vre", ("train", "osd"): "osd"}


class Asked(BaseModel):
    """What a configuration asks a cluster for. Its defaults are those of synthesis and training."""

    workers: int = 2
    cpus_per_worker: float = 0.5
    gpus_per_worker: float = 0

    def __str__(self) -> str:
        gpus = f", {self.gpus_per_worker:g} GPUs" if self.gpus_per_worker else ""
        return f"{self.workers} workers of {self.cpus_per_worker:g} CPUs{gpus}"

    def fits(self, nodes: list[dict[str, float]]) -> bool:
        """Whether nodes of these resources hold all workers at once."""
        each = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        held = sum(min(int(node.get(k, 0) / v + 1e-9) for k, v in each.items() if v) for node in nodes)
        return held >= self.workers


class Parsed(NamedTuple):
    """words: the line that is to run. config_digest: of them and the files they name. asked: of each of its parts."""

    words: list[str]
    config_digest: str
    asked: list[Asked]


def parse(words: list[str], folder: Path) -> Parsed:
    """Parse a work command as the cluster would, with `folder` for its working directory; join that cluster.

    Raises UsageError for what doesn't parse, and for an output that would be lost with the job's working directory.
    """
    words = joining(words, "auto")
    start, options = _options(words)
    out = str(options.get("out") or "/")
    if not out.startswith("/") and ":/" not in out:  # a URL that was made a Path has but one slash
        raise UsageError(f"--out {out}: it would be lost with the job's own folder; give a path that all nodes share")
    if start != ("run",):
        return Parsed(words, digest([words, _configuration(start, options)]), _asked(start, options))
    chain = _chain(folder / options["file"])
    asked = [each for line in chain["lines"] for each in _asked_by_line(line)]
    return Parsed(words, digest([words, chain["data"]]), asked)


def joining(words: list[str], address: str) -> list[str]:
    """A command line that joins the cluster at `address`, where its command can and it doesn't say which."""
    _, options = _options(words)
    can = "address" in options and not options.get("url")  # an endpoint's answer needs no cluster
    return [*words, "--address", address] if can and not options["address"] else words


def require(parsed: Parsed, nodes: list[dict[str, float]], grown: list[dict[str, float]], address: str) -> None:
    """Raise UserError if neither the nodes that are there nor those that there may be hold all workers of a part.

    Ray would wait for such nodes for ever.
    """
    for asked in parsed.asked:
        if asked.fits(nodes) or asked.fits(grown):
            continue
        there = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        may = f", and no more with all of the {len(grown)} that it may grow to" if grown else ""
        say = "" if grown else ", or say in clusters.yaml which nodes its autoscaler adds (nodes: FILE)"
        raise UserError(
            f"the job asks for {asked}, and the {len(nodes)} nodes of {address} do not hold them ({there['CPU']:g} "
            f"CPUs, {there['GPU']:g} GPUs{may}); lower workers (--set workers=1){say}"
        )


def _options(words: list[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The command's own words, and its options by name."""
    from jobs.cli import app  # here, since it imports this file

    path: list[str] = []
    command: Any = typer.main.get_command(app)
    rest = list(words)
    try:
        context = command.make_context("osdface", list(words[:1]))
        while hasattr(command, "commands"):
            name, command, rest = command.resolve_command(context, rest)
            path.append(name)
            context = command.make_context(name, rest[:1] if hasattr(command, "commands") else rest, parent=context)
    except TyperException as error:
        raise UsageError(f"{' '.join(words)}: {error.format_message().strip().rstrip('.')}") from None
    return tuple(path), context.params


def _configuration(start: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """What the files of --config hold."""
    if start not in KINDS:
        return {}
    return read(configs.find(options.get("config") or configs.DEFAULT, KINDS[start]))


def _asked(start: tuple[str, ...], options: dict[str, Any]) -> list[Asked]:
    if start not in KINDS:
        return []
    files = configs.find(options.get("config") or configs.DEFAULT, KINDS[start])
    return [load(Asked, files, options.get("set") or [], workers=options.get("workers"))]


def _asked_by_line(line: str) -> list[Asked]:
    """Of a chain's line, with its placeholders as they stand; nothing of one that only their values make whole."""
    with contextlib.suppress(UserError):
        return _asked(*_options(shlex.split(line)))
    return []


def _chain(file: Path) -> dict[str, Any]:
    from jobs.chain import Chain

    chain = load(Chain, file)
    return {"data": chain.model_dump(), "lines": [line for step in chain.steps for line in step.run]}
