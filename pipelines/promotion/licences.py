"""Under which licences the data and the weights stand that a version was made of."""

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any, NamedTuple

from mlflow.entities import Run

from osdface.errors import UserError
from osdface.weights import WEIGHTS
from pipelines import tracking
from pipelines.promotion.checks import Check
from pipelines.promotion.gates import Licences
from pipelines.registry import Version
from pipelines.tracking import TAG

NOT_STATED = "not stated"
FORBIDS = re.compile(r"\bNC\b|non-?commercial|research", re.IGNORECASE)
ALLOWS = re.compile(r"\b(CC0|CC-BY(-SA)?-\d|MIT\b|Apache|BSD|public.domain|Open ?RAIL)", re.IGNORECASE)
BASES = {
    "sd21": ("Stable Diffusion 2.1-base", "CreativeML Open RAIL++-M")
}  # by preset, where the base is from elsewhere
SETS = {"ffhq": "CC-BY-NC-SA-4.0", "celeba": "CelebA's, non-commercial research"}  # known by a name in their place


class Thing(NamedTuple):
    """Data or weights. commercial: whether the licence allows that use, None where nobody says."""

    name: str
    licence: str
    commercial: bool | None


def check(gate: Licences, version: Version) -> list[Check]:
    """A line for everything that a version was made of."""
    return [_check(gate, thing) for thing in things(version)]


def _check(gate: Licences, thing: Thing) -> Check:
    accepted = any(fnmatch(name, pattern) for name in (thing.name, thing.licence) for pattern in gate.accept)
    note = "accepted" if accepted else "" if thing.commercial else "name it in licences.accept once its owners agree"
    passed = gate.use == "research" or accepted or bool(thing.commercial)
    return Check(f"licence of {thing.name}", thing.licence, f"{gate.use} use", passed, "" if passed else note)


def things(version: Version) -> list[Thing]:
    """Data of every run behind a version, weights that its losses saw through, base, published checkpoints."""
    found = dict.fromkeys(_things(version))
    return list(found)


def _things(version: Version) -> Iterator[Thing]:
    client = tracking.client(tracking.uri())
    for stage, run_id in sorted(version.runs.items()):
        if not tracking.exists(client, run_id):
            yield Thing(f"what run {run_id[:8]} ({stage}) used", "the run is not on this tracking server", None)
            continue
        run = client.get_run(run_id)
        yield from _data(run)
        yield from (Thing(WEIGHTS[name].file, *WEIGHTS[name][1:3]) for name in seen_through(stage, run.data.params))
        if run.data.params.get("init") not in (None, "null"):
            yield Thing(f"{run.data.params['init']}, which {stage} started from", NOT_STATED, None)
    if "base" not in version.runs:
        name, licence = BASES.get(version.preset, (f"base model {(version.base or 'unknown')[:12]}", NOT_STATED))
        yield Thing(name, licence, commercial(licence))
    yield from (Thing(file, "its authors'", None) for file in sorted(version.imported))


def commercial(licence: str) -> bool | None:
    """Whether a licence of that name allows commercial use; None where the name does not tell."""
    return False if FORBIDS.search(licence) else True if ALLOWS.search(licence) else None


def _data(run: Run) -> Iterator[Thing]:
    """The dataset of a run: the licences that its manifest states, those of known sets among its sources, or none."""
    from pipelines.pairs.manifest import read_manifest

    tags = run.data.tags
    name = f"dataset {tags.get(f'{TAG}dataset_digest', 'unknown')[:12]}"
    profile: dict[str, Any] = {}
    for given in run.inputs.dataset_inputs if run.inputs else []:
        profile |= json.loads(given.dataset.profile or "{}")
    licences, sources = profile.get("licences", []), []
    try:
        manifest = read_manifest(tags[f"{TAG}dataset"])
        licences = licences or manifest.licences
        sources = [source.uri for addition in manifest.additions for source in addition.sources if not source.licence]
    except (UserError, KeyError):
        pass  # it lies elsewhere now: what the run noted is what there is
    known = {licence for uri in sources for part, licence in SETS.items() if part in uri.lower()}
    for licence in sorted({*licences, *known}) or [NOT_STATED]:
        yield Thing(name, licence, commercial(licence))


def seen_through(stage: str, params: dict[str, Any]) -> list[str]:
    """The weight files, as `osdface.weights` calls them, of the networks that a run's losses looked through."""
    from osdface.losses.perceptual import needed, stage1_needed

    def on(name: str) -> bool:
        return float(params.get(name, 0)) > 0

    if stage == "vre":
        return stage1_needed(params["losses.features"]) if on("losses.perceptual") else []
    if stage == "base":
        return needed("dists", params["features"]) if on("perceptual") else []
    found = needed(params["perceptual.kind"], params["perceptual.features"]) if on("losses.perceptual") else []
    network = params.get("identity_network", "")
    return [*found, "dlib_identity" if network == "dlib" else network] if on("losses.identity") else found
