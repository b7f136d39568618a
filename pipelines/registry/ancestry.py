"""The way back from a version, or from an answer of an endpoint, to runs, base, dataset, recipe and sources."""

import contextlib
from typing import Any

from mlflow import MlflowClient

from osdface.errors import UserError
from pipelines import tracking
from pipelines.registry.model_versions import NAME, Version, find, versions
from pipelines.tracking import TAG

NOT_RECORDED = "not recorded"
ANSWER = {"version": "x-model-version", "run_id": "x-run-id", "dataset_digest": "x-dataset-digest"}


def lineage(ref: str) -> dict[str, Any]:
    """From a version, or the id of any run, back to the runs before it, dataset and recipe, as a tree of plain values.

    What is not recorded, or no longer there, is said in its place.
    """
    client = tracking.client(tracking.uri())
    version = find(ref)
    if version:
        return _of_version(client, version)
    if not tracking.exists(client, ref):
        raise UserError(f"'{ref}' is neither a model reference nor a run of {tracking.uri()}")
    return {"run": _run(client, ref)}


def lineage_of_answer(headers: str, name: str = NAME) -> dict[str, Any]:
    """From the header lines of an endpoint's answer, as `curl -D` writes them; `answer` holds those that matter.

    The version they name is looked up in the registry; what is served unregistered is found by its run. Raises
    UserError where they name neither, or the registry's version has another run or dataset: another registry's answer.
    """
    told = {key: value for line in headers.splitlines() for key, value in [_header(line)] if key in ANSWER.values()}
    answer = {ours: told[theirs] for ours, theirs in ANSWER.items() if theirs in told}
    if "version" not in answer:
        raise UserError(f"no {ANSWER['version']} among these headers; save an endpoint's with `curl -D FILE`")
    client = tracking.client(tracking.uri())
    known: dict[str, Version] = {}
    with contextlib.suppress(UserError):  # nothing may be registered at all
        known = {key: version for version in versions(name) for key in (version.version, version.bundle_digest)}
    if version := known.get(answer["version"]):
        _require_same(version, answer)
        return {"answer": answer, **_of_version(client, version)}
    if not tracking.exists(client, run := answer.get("run_id", "unknown")):
        raise UserError(f"neither version {answer['version']} of '{name}' nor run {run} is at {tracking.uri()}")
    return {"answer": answer, "run": _run(client, run)}


def _header(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip().lower(), value.strip()


def _require_same(version: Version, answer: dict[str, str]) -> None:
    recorded = {"run_id": version.runs.get("osd"), "dataset_digest": version.dataset_digest}
    for key, value in recorded.items():
        if value and answer.get(key, value) != value:
            raise UserError(f"{version.ref} has {key} {value}, the answer {answer[key]}: it is another registry's")


def _of_version(client: MlflowClient, version: Version) -> dict[str, Any]:
    tree: dict[str, Any] = {"version": version.ref, "bundle_digest": version.bundle_digest or NOT_RECORDED}
    tree["registered"] = f"{version.registered_at} by {version.registered_by or 'somebody'}"
    tree["dataset_digest"] = version.dataset_digest or NOT_RECORDED
    if version.imported:
        tree["imported"] = version.imported
    osd = _run(client, version.runs["osd"]) if "osd" in version.runs else NOT_RECORDED
    tree["osd"] = osd
    told = osd if isinstance(osd, dict) else {}
    for stage, run in sorted(version.runs.items()):
        if stage != "osd" and stage not in told:  # the version's own word, where the osd run is gone
            tree[stage] = _run(client, run)
    if "base" not in version.runs and version.base:  # not trained here
        tree["base"] = {"sha256": version.base}
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
        "licences": manifest.licences or "not stated",
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "sources": [source.uri for addition in manifest.additions for source in addition.sources],
    }
