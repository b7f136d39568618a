"""The MLflow model registry: versions of restorers, aliases, and the way back from a version to its sources."""

import contextlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import mlflow.artifacts
from mlflow import MlflowClient, MlflowException

from osdface import bundle
from osdface.config import home
from osdface.errors import UserError
from osdface.files import aside, replace_folder
from pipelines import tracking
from pipelines.pairs import read_manifest
from pipelines.tracking import TAG

NAME = "osdface"
ALIASES = ("champion", "challenger", "previous")


class Version(NamedTuple):
    """One registered version. runs: MLflow run ids by stage."""

    name: str
    version: str
    bundle_digest: str
    dataset_digest: str | None
    preset: str
    runs: dict[str, str]
    aliases: list[str]


def register(folder: Path, name: str = NAME, metrics: dict[str, float] | None = None) -> Version:
    """Make a verified bundle a version of the registry; a bundle that is registered already gives its version.

    The files go into an MLflow LoggedModel first; the version, with all its tags, is made by one call when they are
    there, so a half-registered model is never a version. Raises UserError where the bundle fails verification.
    """
    config, digest = bundle.verify(folder), bundle.digest(folder)
    address = tracking.uri()
    client = tracking.client(address)
    for known in _search(client, name):
        if known.bundle_digest == digest:
            return known
    runs = config.provenance.runs
    tags = {
        "bundle_digest": digest,
        "dataset_digest": config.provenance.dataset_digest,
        "preset": config.preset,
        "git_revision": config.provenance.git_revision,
    } | {f"run.{stage}": run for stage, run in runs.items()}
    tags = {TAG + key: value for key, value in tags.items() if value}
    own_run = runs.get("osd")
    model = client.create_logged_model(
        tracking.experiment(client, "osd", address), name=name, source_run_id=own_run, tags=tags, model_type="osdface"
    )
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    with contextlib.suppress(MlflowException):  # it exists
        client.create_registered_model(name)
    for key, value in (metrics or {}).items():
        client.log_metric(own_run, key, value, model_id=model.model_id) if own_run else None
        tags[f"{TAG}metric.{key}"] = f"{value:.6g}"
    made = client.create_model_version(
        name, f"models:/{model.model_id}", run_id=own_run, tags=tags, model_id=model.model_id
    )
    return _version(client, name, made.version)


def versions(name: str = NAME) -> list[Version]:
    """All versions of a model, oldest first. Raises UserError if there is no such model."""
    client = tracking.client(tracking.uri())
    found = _search(client, name)
    if not found:
        raise UserError(f"no registered model '{name}'; make one with `osdface models register BUNDLE`")
    return sorted(found, key=lambda version: int(version.version))


def promote(version: str, name: str = NAME, alias: str = "champion") -> Version:
    """Verify a version's bundle and give it an alias; the former champion becomes `previous`.

    Raises UserError if there is no such version, or its files differ from its digest: the alias then stays.
    """
    client = tracking.client(tracking.uri())
    chosen = _version(client, name, version)
    _fetch(client, chosen)
    with contextlib.suppress(MlflowException):
        former = client.get_model_version_by_alias(name, alias).version
        if alias == "champion" and former != chosen.version:
            client.set_registered_model_alias(name, "previous", former)
    client.set_registered_model_alias(name, alias, chosen.version)
    return _version(client, name, version)


def find(ref: str) -> Version | None:
    """The version that `models:/NAME/7`, `models:/NAME@alias` or an alias of ours names; None for other references.

    Raises UserError if the reference is of this kind and names nothing.
    """
    if ref in ALIASES:
        ref = f"models:/{NAME}@{ref}"
    if not ref.startswith("models:/"):
        return None
    client = tracking.client(tracking.uri())
    path = ref.removeprefix("models:/")
    name, at, alias = path.partition("@")
    if not at:
        name, _, number = path.rpartition("/")
        return _version(client, name, number)
    try:
        return _version(client, name, client.get_model_version_by_alias(name, alias).version)
    except MlflowException:
        raise UserError(f"{ref}: no version of '{name}' has the alias '{alias}'; `osdface models promote N`") from None


def resolve(ref: str) -> Path | None:
    """The local, verified bundle folder of a registry reference (entry point of `osdface.resolvers`)."""
    version = find(ref)
    return None if version is None else _fetch(tracking.client(tracking.uri()), version)


def lineage(ref: str) -> dict[str, Any]:
    """From a version, or the id of any run, back to base, dataset and recipe, as a tree of plain values.

    What is not recorded, or no longer there, is said in its place.
    """
    client = tracking.client(tracking.uri())
    version = find(ref)
    if version is None:
        return {"run": _run(client, ref, {}, required=True)}
    tree: dict[str, Any] = {"version": f"{version.name}/{version.version}", "bundle_digest": version.bundle_digest}
    own = version.runs.get("osd")
    tree["osd"] = _run(client, own, version.runs, required=False) if own else "no run recorded"
    return tree


def _run(client: MlflowClient, run_id: str, seen: dict[str, str], required: bool) -> dict[str, Any] | str:
    """One run, its parents by stage, and its dataset."""
    try:
        run = client.get_run(run_id)
    except MlflowException:
        if required:
            raise UserError(f"'{run_id}' is neither a model reference nor a run of this tracking server") from None
        return f"run {run_id} is not on this tracking server"
    tags = {key.removeprefix(TAG): value for key, value in run.data.tags.items() if key.startswith(TAG)}
    node: dict[str, Any] = {"run_id": run_id, "name": run.info.run_name, "status": run.info.status}
    node["git_revision"] = tags.get("git_revision", "not recorded")
    for key, parent in sorted(tags.items()):
        if key.startswith("run.") and parent != run_id:
            node[key.removeprefix("run.")] = _run(client, parent, seen, required=False)
    node["dataset"] = _dataset(tags)
    return node


def _dataset(tags: dict[str, str]) -> dict[str, Any] | str:
    if "dataset" not in tags:
        return "not recorded"
    node: dict[str, Any] = {"digest": tags["dataset_digest"], "folder": tags["dataset"]}
    try:
        manifest = read_manifest(Path(tags["dataset"]))
    except UserError as error:
        return node | {"now": str(error)}
    if manifest.digest != node["digest"]:
        return node | {"now": f"another dataset is there ({manifest.digest})"}
    recipe = manifest.spec.recipe
    return node | {"recipe": recipe.name, "recipe_digest": recipe.digest, "sources": manifest.sources}


def _search(client: MlflowClient, name: str) -> list[Version]:
    quoted = name.replace("'", "")
    return [_version(client, name, found.version) for found in client.search_model_versions(f"name='{quoted}'")]


def _version(client: MlflowClient, name: str, number: str) -> Version:
    try:
        found = client.get_model_version(name, number)
    except MlflowException:
        raise UserError(f"models:/{name}/{number}: no such version; `osdface models list` shows them") from None
    tags = {key.removeprefix(TAG): value for key, value in found.tags.items() if key.startswith(TAG)}
    runs = {key.removeprefix("run."): value for key, value in tags.items() if key.startswith("run.")}
    aliases = [
        alias for alias, at in client.get_registered_model(name).aliases.items() if str(at) == str(found.version)
    ]
    return Version(
        name,
        str(found.version),
        tags.get("bundle_digest", ""),
        tags.get("dataset_digest"),
        tags.get("preset", ""),
        runs,
        sorted(aliases),
    )


def _fetch(client: MlflowClient, version: Version) -> Path:
    """The version's bundle in this machine's cache, by its digest, verified; downloaded aside where it isn't there."""
    folder = home() / "cache" / "models" / version.bundle_digest
    if not folder.is_dir():
        temporary = aside(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        source = client.get_model_version(version.name, version.version).source
        mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(temporary), tracking_uri=tracking.uri())
        replace_folder(temporary, folder)
    bundle.verify(folder)
    if bundle.digest(folder) != version.bundle_digest:
        raise UserError(f"models:/{version.name}/{version.version}: its files are not those that were registered")
    return folder
