"""Versions of restorers in the MLflow registry: made, found, fetched, and pointed at by aliases."""

import contextlib
import getpass
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import mlflow.artifacts
from filelock import FileLock
from mlflow import MlflowClient, MlflowException
from mlflow.entities import LoggedModel, Metric
from mlflow.entities.model_registry import ModelVersion

from osdface import bundle
from osdface.config import home
from osdface.errors import UserError
from osdface.files import aside, replace_folder
from pipelines import outputs, tracking
from pipelines.tracking import TAG

NAME = "osdface"
ALIASES = ("champion", "challenger", "previous")


class Version(NamedTuple):
    """One registered version.

    runs: MLflow run ids by stage. metrics: those it was registered with, evaluated_on: the digest of the dataset that
    they were measured on. base: digest of the base model. imported: sha256 of the published files that it was made of,
    by name. registered_at: ISO 8601, UTC. promotion: what the last promotion or rollback noted with it.
    """

    name: str
    version: str
    bundle_digest: str
    dataset_digest: str | None
    preset: str
    runs: dict[str, str]
    metrics: dict[str, float]
    aliases: list[str]
    evaluated_on: str | None = None
    base: str | None = None
    imported: dict[str, str] = {}
    registered_by: str | None = None
    registered_at: str = ""
    promotion: dict[str, str] = {}

    @property
    def ref(self) -> str:
        """models:/NAME/VERSION."""
        return f"models:/{self.name}/{self.version}"


def register(
    folder: Path, name: str = NAME, metrics: dict[str, float] | None = None, evaluated_on: str | None = None
) -> Version:
    """Make a verified bundle a version of the registry; a bundle that is registered already gives its version.

    metrics, and the digest of the dataset they were measured on, are kept with the version, in place of any before.
    The files go into an MLflow LoggedModel first; the version, with all its tags, is made by one call when they are
    there, so a half-registered model is never a version. Raises UserError where the bundle fails verification.
    """
    config, digest = bundle.verify(folder), bundle.digest(folder)
    address = tracking.uri()
    client = tracking.client(address)
    with _alone():
        for known in _search(client, name):
            if known.bundle_digest == digest:
                for tag, value in _measured(metrics or {}, evaluated_on).items():
                    client.set_model_version_tag(name, known.version, tag, value)
                return _version(client, name, known.version)
        with contextlib.suppress(MlflowException), _said(f"'{name}' cannot be the name of a registered model"):
            client.create_registered_model(name)  # it may exist
        tags = _tags(config, digest) | _measured(metrics or {}, evaluated_on)
        run = config.provenance.runs.get("osd")
        run = run if run and tracking.exists(client, run) else None  # a bundle may come from another server
        model = client.create_logged_model(
            tracking.experiment(client, "osd", address), name=name, source_run_id=run, tags=tags, model_type="osdface"
        )
        client.log_model_artifacts(model.model_id, str(folder))
        model = client.finalize_logged_model(model.model_id, "READY")
        if run:
            _log_metrics(client, run, model, metrics or {})
        with tracking.process_wide(address):
            made = client.create_model_version(
                name, f"models:/{model.model_id}", run_id=run, tags=tags, model_id=model.model_id
            )
    return _version(client, name, made.version)


def _tags(config: bundle.BundleConfig, digest: str) -> dict[str, str]:
    origin = config.provenance
    tags = {
        "bundle_digest": digest,
        "dataset_digest": origin.dataset_digest,
        "preset": config.preset,
        "git_revision": origin.git_revision,
        "base": config.base.sha256,
        "registered_by": who(),
    }
    tags |= {f"run.{stage}": run for stage, run in origin.runs.items()}
    tags |= {f"imported.{file}": hashed for file, hashed in origin.imported.items()}
    return {TAG + key: value for key, value in tags.items() if value}


def _measured(metrics: dict[str, float], evaluated_on: str | None) -> dict[str, str]:
    tags = {f"{TAG}metric.{key}": f"{value:.6g}" for key, value in metrics.items()}
    return tags | ({TAG + "evaluated_on": evaluated_on} if evaluated_on else {})


def who() -> str:
    """Who does this: the tracking server's user, or this machine's."""
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return user
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        return f"{getpass.getuser()}@{socket.gethostname()}"
    return f"{os.getuid()}@{socket.gethostname()}"


def _log_metrics(client: MlflowClient, run: str, model: LoggedModel, metrics: dict[str, float]) -> None:
    now = int(time.time() * 1000)
    client.log_batch(run, [Metric(key, value, now, 0, model_id=model.model_id) for key, value in metrics.items()])


def versions(name: str = NAME) -> list[Version]:
    """All versions of a model, oldest first. Raises UserError if there is no such model."""
    client = tracking.client(tracking.uri())
    found = _search(client, name)
    if not found:
        raise UserError(f"no registered model '{name}'; make one with `osdface models register BUNDLE`")
    return sorted(found, key=lambda version: int(version.version))


def version(number: str, name: str = NAME) -> Version:
    """One version by its number. Raises UserError if there is none."""
    return _version(tracking.client(tracking.uri()), name, number)


def aliases(name: str = NAME) -> dict[str, str]:
    """The version numbers that aliases stand for. Raises UserError if there is no such model."""
    client = tracking.client(tracking.uri())
    with _said(f"no registered model '{name}'; make one with `osdface models register BUNDLE`"):
        return {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}


def repoint(wanted: dict[str, str | None], name: str = NAME) -> dict[str, str | None]:
    """Let aliases stand for version numbers, or be taken away (None), in this order.

    Returns what they stood for, which given to this function brings that back.
    """
    client = tracking.client(tracking.uri())
    with _alone():
        before = aliases(name)
        for alias, number in wanted.items():
            if number is not None:
                client.set_registered_model_alias(name, alias, number)
            elif alias in before:
                client.delete_registered_model_alias(name, alias)
    return {alias: before.get(alias) for alias in reversed(wanted)}


def promote(version: str, name: str = NAME, alias: str = "champion") -> Version:
    """Verify a version's bundle and give it an alias, asking nobody; the former champion becomes `previous`.

    `pipelines.promotion` is what asks. Raises UserError if there is no such version, or its files differ from its
    digest: the alias then stays.
    """
    client = tracking.client(tracking.uri())
    chosen = _version(client, name, version)
    fetch(chosen, again=True)  # other machines have no copy in a cache
    repoint(succession(aliases(name), chosen.version) if alias == "champion" else {alias: chosen.version}, name)
    return _version(client, name, version)


def succession(before: dict[str, str], number: str) -> dict[str, str | None]:
    """What aliases stand for once a version is the champion; `previous` moves first, so a kill loses nothing."""
    former = before.get("champion")
    replaced: dict[str, str | None] = {"previous": former} if former and former != number else {}
    return replaced | {"champion": number}


def find(ref: str) -> Version | None:
    """The version that `models:/NAME/7`, `models:/NAME@alias` or an alias of ours names; None for other references.

    Raises UserError if the reference is of this kind and names nothing.
    """
    if ref in ALIASES:
        ref = f"models:/{NAME}@{ref}"
    if not ref.startswith("models:/"):
        return None
    parts = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@([^/@]+))", ref)
    if not parts:
        raise UserError(f"{ref}: not a model reference; write models:/NAME/VERSION or models:/NAME@ALIAS")
    name, number, alias = parts.groups()
    client = tracking.client(tracking.uri())
    if alias:
        with _said(f"{ref}: no version of '{name}' has the alias '{alias}'; give it one with `osdface models promote`"):
            number = client.get_model_version_by_alias(name, alias).version
    return _version(client, name, str(number))


def resolve(ref: str) -> Path | None:
    """The local bundle folder of a registry reference, verified, or of a URL (entry point of `osdface.resolvers`)."""
    if "://" in ref:
        return outputs.here(ref)
    version = find(ref)
    return None if version is None else fetch(version)


def fetch(version: Version, again: bool = False) -> Path:
    """The version's bundle in this machine's cache, under its digest; downloaded where it isn't there, or damaged.

    again: download in any case. Raises UserError if what the registry holds is not what was registered: the cache then
    stays as it was.
    """
    if not re.fullmatch("[0-9a-f]{64}", version.bundle_digest):
        raise UserError(f"{version.ref}: no bundle digest is recorded for it")
    folder = home() / "cache" / "models" / version.bundle_digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        with contextlib.suppress(UserError):
            if not again:
                return _checked(folder, version)
        temporary = aside(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            replace_folder(_checked(_download(version, temporary), version), folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _checked(folder: Path, version: Version) -> Path:
    try:
        bundle.verify(folder)
    except UserError as error:
        raise UserError(f"{version.ref}: its files in the registry are damaged ({error})") from None
    if bundle.digest(folder) != version.bundle_digest:
        raise UserError(f"{version.ref}: its files in the registry are not those that were registered")
    return folder


def _download(version: Version, folder: Path) -> Path:
    """Download into `folder`; returns where in it the files are."""
    address = tracking.uri()
    client = tracking.client(address)
    try:
        source = client.get_model_version_download_uri(version.name, version.version)
        return Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder), tracking_uri=address))
    except (MlflowException, OSError) as error:
        reason = tracking.reason(error)
        raise UserError(f"{version.ref}: cannot be downloaded ({reason})") from None


def _search(client: MlflowClient, name: str) -> list[Version]:
    quoted = name.replace("'", "")
    found = client.search_model_versions(f"name='{quoted}'")
    aliases = client.get_registered_model(name).aliases if found else {}
    return [_read(version, aliases) for version in found]


def _version(client: MlflowClient, name: str, number: str) -> Version:
    with _said(f"models:/{name}/{number}: no such version; `osdface models list` shows those that there are"):
        return _read(client.get_model_version(name, number), client.get_registered_model(name).aliases)


def _read(found: ModelVersion, aliases: dict[str, str]) -> Version:
    tags = {key.removeprefix(TAG): value for key, value in found.tags.items() if key.startswith(TAG)}
    return Version(
        name=found.name,
        version=str(found.version),
        bundle_digest=tags.get("bundle_digest", ""),
        dataset_digest=tags.get("dataset_digest"),
        preset=tags.get("preset", ""),
        runs=_under("run.", tags),
        metrics={key: float(value) for key, value in _under("metric.", tags).items()},
        aliases=sorted(alias for alias, at in aliases.items() if str(at) == str(found.version)),
        evaluated_on=tags.get("evaluated_on"),
        base=tags.get("base"),
        imported=_under("imported.", tags),
        registered_by=tags.get("registered_by"),
        registered_at=iso(found.creation_timestamp),
        promotion=_under("promotion.", tags),
    )


def iso(milliseconds: int) -> str:
    """A time of MLflow's: ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _under(prefix: str, tags: dict[str, str]) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in tags.items() if key.startswith(prefix)}


@contextlib.contextmanager
def _said(sentence: str) -> Iterator[None]:
    """Say `sentence` where MLflow answers that there is no such thing."""
    try:
        yield
    except MlflowException as error:
        if tracking.refused(error):
            raise UserError(sentence) from None
        raise


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One process of this $OSDFACE_HOME at a time."""
    home().mkdir(parents=True, exist_ok=True)
    with FileLock(home() / "registry.lock"):
        yield
