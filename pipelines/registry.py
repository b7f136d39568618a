"""The MLflow model registry: versions of restorers, aliases, and the way back from a version to its sources."""

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlflow.artifacts
from filelock import FileLock
from mlflow import MlflowClient, MlflowException
from mlflow.entities import LoggedModel, Metric
from mlflow.entities.model_registry import ModelVersion

from osdface import bundle
from osdface.config import home
from osdface.errors import UserError
from osdface.files import aside, replace_folder
from pipelines import tracking
from pipelines.tracking import TAG

NAME = "osdface"
ALIASES = ("champion", "challenger", "previous")
NOT_RECORDED = "not recorded"


class Version(NamedTuple):
    """One registered version. runs: MLflow run ids by stage; metrics: those it was registered with."""

    name: str
    version: str
    bundle_digest: str
    dataset_digest: str | None
    preset: str
    runs: dict[str, str]
    metrics: dict[str, float]
    aliases: list[str]


def register(folder: Path, name: str = NAME, metrics: dict[str, float] | None = None) -> Version:
    """Make a verified bundle a version of the registry; a bundle that is registered already gives its version.

    The files go into an MLflow LoggedModel first; the version, with all its tags, is made by one call when they are
    there, so a half-registered model is never a version. Raises UserError where the bundle fails verification.
    """
    config, digest = bundle.verify(folder), bundle.digest(folder)
    address = tracking.uri()
    client = tracking.client(address)
    with _alone():
        for known in _search(client, name):
            if known.bundle_digest == digest:
                return known
        with contextlib.suppress(MlflowException), _said(f"'{name}' cannot be the name of a registered model"):
            client.create_registered_model(name)  # it may exist
        tags = _tags(config, digest, metrics or {})
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


def _tags(config: bundle.BundleConfig, digest: str, metrics: dict[str, float]) -> dict[str, str]:
    origin = config.provenance
    tags = {
        "bundle_digest": digest,
        "dataset_digest": origin.dataset_digest,
        "preset": config.preset,
        "git_revision": origin.git_revision,
    }
    tags |= {f"run.{stage}": run for stage, run in origin.runs.items()}
    tags |= {f"metric.{key}": f"{value:.6g}" for key, value in metrics.items()}
    return {TAG + key: value for key, value in tags.items() if value}


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


def promote(version: str, name: str = NAME, alias: str = "champion") -> Version:
    """Verify a version's bundle and give it an alias; the former champion becomes `previous`.

    Raises UserError if there is no such version, or its files differ from its digest: the alias then stays.
    """
    client = tracking.client(tracking.uri())
    chosen = _version(client, name, version)
    fetch(chosen, again=True)  # other machines have no copy in a cache
    with _alone():
        former = client.get_registered_model(name).aliases.get(alias)
        if alias == "champion" and former and str(former) != chosen.version:
            client.set_registered_model_alias(name, "previous", str(former))
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
    """The local, verified bundle folder of a registry reference (entry point of `osdface.resolvers`)."""
    version = find(ref)
    return None if version is None else fetch(version)


def fetch(version: Version, again: bool = False) -> Path:
    """The version's bundle in this machine's cache, under its digest; downloaded where it isn't there, or damaged.

    again: download in any case. Raises UserError if what the registry holds is not what was registered: the cache then
    stays as it was.
    """
    if not re.fullmatch("[0-9a-f]{64}", version.bundle_digest):
        raise UserError(f"models:/{version.name}/{version.version}: no bundle digest is recorded for it")
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
    ref = f"models:/{version.name}/{version.version}"
    try:
        bundle.verify(folder)
    except UserError as error:
        raise UserError(f"{ref}: its files in the registry are damaged ({error})") from None
    if bundle.digest(folder) != version.bundle_digest:
        raise UserError(f"{ref}: its files in the registry are not those that were registered")
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
        raise UserError(f"models:/{version.name}/{version.version}: cannot be downloaded ({reason})") from None


def lineage(ref: str) -> dict[str, Any]:
    """From a version, or the id of any run, back to the runs before it, dataset and recipe, as a tree of plain values.

    What is not recorded, or no longer there, is said in its place.
    """
    client = tracking.client(tracking.uri())
    version = find(ref)
    if version is None:
        if not tracking.exists(client, ref):
            raise UserError(f"'{ref}' is neither a model reference nor a run of {tracking.uri()}")
        return {"run": _run(client, ref)}
    tree: dict[str, Any] = {"version": f"models:/{version.name}/{version.version}"}
    tree["bundle_digest"] = version.bundle_digest or NOT_RECORDED
    tree["dataset_digest"] = version.dataset_digest or NOT_RECORDED
    osd = _run(client, version.runs["osd"]) if "osd" in version.runs else NOT_RECORDED
    tree["osd"] = osd
    told = osd if isinstance(osd, dict) else {}
    for stage, run in sorted(version.runs.items()):
        if stage != "osd" and stage not in told:  # the version's own word, where the osd run is gone
            tree[stage] = _run(client, run)
    return tree


def _run(client: MlflowClient, run_id: str, above: tuple[str, ...] = ()) -> dict[str, Any] | str:
    """One run, the runs that it names as its parents, and its dataset. above: runs that led here."""
    if not tracking.exists(client, run_id):
        return f"run {run_id} is not on this tracking server"
    run = client.get_run(run_id)
    tags = {key.removeprefix(TAG): value for key, value in run.data.tags.items() if key.startswith(TAG)}
    node: dict[str, Any] = {"run_id": run_id, "name": run.info.run_name, "status": run.info.status}
    node["git_revision"] = tags.get("git_revision", NOT_RECORDED)
    above = (*above, run_id)
    for key, parent in sorted(tags.items()):
        if key.startswith("run.") and parent not in above:
            node[key.removeprefix("run.")] = _run(client, parent, above)
    node["dataset"] = _dataset(tags)
    return node


def _dataset(tags: dict[str, str]) -> dict[str, Any] | str:
    from pipelines.pairs.manifest import read_manifest  # with it come pyarrow and more, which nothing else here needs

    if "dataset" not in tags:
        return NOT_RECORDED
    node: dict[str, Any] = {"digest": tags.get("dataset_digest", NOT_RECORDED), "folder": tags["dataset"]}
    try:
        manifest = read_manifest(tags["dataset"])
    except UserError as error:
        return node | {"now": str(error)}
    if manifest.digest != node["digest"]:
        return node | {"now": f"another dataset is there ({manifest.digest})"}
    recipe = manifest.spec.recipe
    return node | {
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "sources": [source.uri for addition in manifest.additions for source in addition.sources],
    }


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
    )


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
