"""osdface jobs: work commands as jobs of a Ray cluster."""

import getpass
import json as jsonlib
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console
from osdface.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from jobs.submission.cluster import Cluster

app = typer.Typer(help="Send work to a Ray cluster by its Job API, follow it, stop it, send it again.")

Address = Annotated[
    str | None,
    typer.Option(help="http://HOST:8265, or a cluster of $OSDFACE_HOME/clusters.yaml; else $RAY_ADDRESS, its default."),
]
Name = Annotated[str, typer.Argument(help="The job's name.")]
Folder = Annotated[Path, typer.Option("--working-dir", help="What goes with the job, but for what .gitignore names.")]
Wait = Annotated[bool, typer.Option("--wait", help="Show what it writes; end with its exit code.")]
ENTRYPOINT = ["python", "-m", "jobs.cli"]  # not `osdface`, which is the installed one: of what was sent, if it is there


def submit(
    what: Annotated[
        str,
        typer.Argument(help="synth, train-base, train-vre, train-osd, evaluate, restore, run; a job file; paper/vre."),
    ],
    arguments: Annotated[list[str] | None, typer.Argument(help="After --: the command's own options.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call the job.")] = None,
    address: Address = None,
    env: Annotated[
        str | None, typer.Option(help="Packages: the cluster's own, of requirements.lock, or a container's: image.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="The container of --env image.")] = None,
    working_dir: Folder = Path(),
    wait: Wait = False,
) -> dict:
    """Send a command or a job file to a cluster. Data must lie where its nodes see it.

    Ctrl-C during --wait leaves the job running.
    """
    from jobs.submission import contexts, parsing, spec
    from pipelines.cluster import NODES

    context = contexts.find(address)
    job = spec.find(what, arguments or [], name=name, environment=env, image=image or context.image)
    parsed = parsing.parse(job.words(), working_dir)
    cluster = _cluster(address)
    cluster.refuse_known(str(job.name))
    grown = context.grown()
    parsing.require(parsed, cluster.nodes(), grown, cluster.address)
    variables = context.env | ({NODES: jsonlib.dumps(grown)} if grown else {})
    _send(cluster, job, parsed, variables, working_dir)
    return _sent(cluster, str(job.name), address, wait)


console.command(app, "submit", "osdface jobs submit train-vre --wait -- --config paper --data /fs/pairs --out /fs/vre")(
    submit
)


def _send(cluster: "Cluster", job: Any, parsed: Any, variables: dict[str, str], folder: Path) -> None:
    from importlib.metadata import version

    from jobs.submission import packing
    from pipelines.tracking import git_revision

    revision = git_revision()
    runtime = packing.environment(job, folder, variables, revision)
    metadata = {
        "osdface": version("osdface"),
        "command": shlex.join(parsed.words),
        "config_digest": parsed.config_digest,
        "git_revision": revision or "unknown",
        "user": getpass.getuser(),
        "asks": "; ".join(map(str, parsed.asked)) or "as many as are there",
        "environment": job.environment,
    }
    entrypoint = ["osdface"] if job.environment == "image" else ENTRYPOINT
    cluster.submit(str(job.name), shlex.join([*entrypoint, *parsed.words]), runtime, metadata)


def _sent(cluster: "Cluster", name: str, address: str | None, wait: bool) -> dict:
    console.say(f"{name}: sent to {cluster.address}")
    if wait:
        return _followed(cluster, name, address)
    console.say(f"[dim]{_command('logs -f', name, address)} shows what it writes[/]")
    return {"name": name, "address": cluster.address}


def list_(
    address: Address = None, count: Annotated[int, typer.Option(help="How many, the newest first.")] = 20
) -> dict:
    """List the jobs that were submitted, by whatever means."""
    from rich.table import Table

    found = [_told(job) for job in list(_cluster(address).jobs().values())[:count]]
    table = Table(box=None, pad_edge=False)
    for title in ("name", "status", "begun", "took", "user", "command"):
        table.add_column(title, overflow="fold")
    for job in found:
        table.add_row(*(str(job.get(key) or "") for key in ("name", "status", "begun", "took", "user", "command")))
    console.show(table)
    return {"jobs": found}


console.command(app, "list", "osdface jobs list --address http://10.0.0.5:8265")(list_)


def status(name: Name, address: Address = None) -> dict:
    """Show one job: how it stands, what it asked for, from which code and configuration."""
    told = _told(_cluster(address).job(name))
    console.table(told)
    return told


console.command(app, "status", "osdface jobs status paper-vre")(status)


def logs(
    name: Name,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends; then end with its exit code.")] = False,
) -> dict:
    """Show what a job has written. Ctrl-C leaves the job running."""
    cluster = _cluster(address)
    if follow:
        return _followed(cluster, name, address)
    text = cluster.logs(name)
    print(text, end="")
    return {"name": name, "logs": text}


console.command(app, "logs", "osdface jobs logs -f paper-vre")(logs)


def stop(name: Name, address: Address = None) -> dict:
    """Stop a job and wait until it has ended; sent again, the same command goes on from what it left."""
    told = _told(_cluster(address).stop(name))
    console.say(f"{name}: {told['status'].lower()}")
    return told


console.command(app, "stop", "osdface jobs stop paper-vre")(stop)


def retry(name: Name, address: Address = None, working_dir: Folder = Path(), wait: Wait = False) -> dict:
    """Send a job that has ended again, as NAME.2, with the working directory as it is now; it resumes by itself."""
    from jobs.submission import packing

    cluster = _cluster(address)
    old = cluster.job(name)
    if not old.status.is_terminal():
        raise UserError(f"job '{name}' is still {old.status.lower()}: `osdface jobs stop {name}` ends it")
    runtime = dict(old.runtime_env or {})
    if "working_dir" in runtime:  # Ray has thrown the package away by now
        runtime["excludes"] = runtime.get("excludes") or packing.EXCLUDES
        packing.measure(working_dir, runtime["excludes"])
        runtime["working_dir"] = str(working_dir.absolute())
    again = _next(name, set(cluster.jobs()))
    cluster.submit(again, old.entrypoint, runtime, {**(old.metadata or {}), "retry_of": name})
    return _sent(cluster, again, address, wait)


console.command(app, "retry", "osdface jobs retry paper-vre --wait")(retry)


def _next(name: str, known: set[str]) -> str:
    """NAME.2, or of a NAME.2 the NAME.3: the first that is free."""
    stem, dot, number = name.rpartition(".")
    stem = stem if dot and number.isdigit() else name
    return next(new for count in range(2, len(known) + 3) if (new := f"{stem}.{count}") not in known)


def _cluster(address: str | None) -> "Cluster":
    from jobs.submission import contexts
    from jobs.submission.cluster import Cluster

    return Cluster(contexts.find(address))


def _followed(cluster: "Cluster", name: str, address: str | None) -> dict:
    from jobs.submission.cluster import JobFailed, exit_code

    try:
        job = cluster.follow(name)
    except KeyboardInterrupt:
        console.err.print(
            f"\n{name} goes on: `{_command('logs -f', name, address)}` comes back to it, "
            f"`{_command('stop', name, address)}` ends it",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        raise typer.Exit(console.INTERRUPTED) from None
    if code := exit_code(job):
        raise JobFailed(f"job '{name}' {job.status.lower()}: {_reason(job)}", code)
    return _told(job)


def _reason(job: "JobDetails") -> str:
    return next(iter((job.message or "it gave no reason").strip().splitlines()), "")


def _command(verb: str, name: str, address: str | None) -> str:
    return f"osdface jobs {verb} {name}" + (f" --address {address}" if address else "")


def _told(job: "JobDetails") -> dict[str, Any]:
    """A job as people and scripts read it; times in ISO 8601, `took` in seconds."""
    begun, ended = job.start_time, job.end_time
    metadata = dict(job.metadata or {})
    return {
        "name": job.submission_id,
        "status": job.status.value,
        "message": _reason(job),
        "exit_code": job.driver_exit_code,
        "begun": datetime.fromtimestamp(begun / 1000).isoformat(timespec="seconds") if begun else None,
        "took": round((ended - begun) / 1000, 1) if begun and ended else None,
        "command": metadata.pop("command", job.entrypoint),
        **metadata,
    }
