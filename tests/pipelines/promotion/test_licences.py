"""Whether what a version was made of may be used, and for what."""

import json

import pytest

from pipelines import registry, tracking
from pipelines.pairs.manifest import read_manifest
from pipelines.promotion import licences
from pipelines.promotion.checks import failed
from pipelines.promotion.gates import Licences
from pipelines.promotion.licences import Thing

pytestmark = pytest.mark.usefixtures("mlflow_home")
OSD = {
    "losses": {"perceptual": 1.0, "identity": 0.1, "mse": 1.0},
    "perceptual": {"kind": "ea_dists", "features": "vgg16"},
    "identity_network": "arcface_r50",
}


def made_of(with_provenance, pairs, config, **provenance) -> registry.Version:
    with tracking.run("osd", "osd-1", config, read_manifest(pairs), pairs, {}) as run:
        pass
    return registry.register(with_provenance(runs={"osd": run.id}, **provenance))


@pytest.mark.parametrize(
    ("name", "commercial"),
    [
        ("CC-BY-NC-SA-4.0", False), ("CelebA's, non-commercial research", False), ("CC0-1.0", True), ("MIT", True),
        ("CC-BY-4.0", True), ("CreativeML Open RAIL++-M", True), ("Apache-2.0", True), ("not stated", None),
        ("SMITHSONIAN", None),
    ],
)  # fmt: skip
def test_what_a_licences_name_says(name, commercial):
    assert licences.commercial(name) is commercial


def test_weights_that_losses_saw_through_count(with_provenance, pairs):
    version = made_of(with_provenance, pairs, OSD)
    found = {thing.name: thing.commercial for thing in licences.things(version)}
    assert found["arcface_r50.pth"] is False
    assert found["vgg16-397923af.pth"] is None
    assert found["DISTS_weights-f5e65c96.pth"] is True
    assert found[f"dataset {read_manifest(pairs).digest[:12]}"] is None
    assert failed(licences.check(Licences(), version)) == []
    bad = {check.gate for check in failed(licences.check(Licences(use="commercial"), version))}
    assert {"licence of arcface_r50.pth", "licence of vgg16-397923af.pth"} < bad
    accepted = Licences(use="commercial", accept=["insightface*", "vgg16*", "dataset *", "base model *"])
    assert failed(licences.check(accepted, version)) == []


def test_a_loss_that_was_off_does_not_count():
    off = {"losses.perceptual": "0.0", "losses.identity": "0.0", "identity_network": "arcface_r50"}
    assert licences.seen_through("osd", off) == []
    assert licences.seen_through("vre", {"losses.perceptual": "1.0", "losses.features": "vgg19"}) == ["vgg19"]
    assert licences.seen_through("vre", {"losses.perceptual": "0"}) == []
    assert licences.seen_through("base", {"perceptual": "0.5", "features": "dlib"}) == ["dlib_identity"]
    assert licences.seen_through("base", {}) == []


@pytest.mark.parametrize(("licence", "source"), [("CC-BY-NC-4.0", "/data/faces"), ("", "/data/FFHQ/images")])
def test_licences_of_data_are_the_manifests_or_known_by_a_name(with_provenance, pairs, tmp_path, licence, source):
    manifest = json.loads((pairs / "manifest.json").read_text()) | {"licences": [licence] if licence else []}
    manifest["additions"][0]["sources"][0]["uri"] = source
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    version = made_of(with_provenance, tmp_path, {})
    (data,) = [thing for thing in licences.things(version) if thing.name.startswith("dataset")]
    assert data.commercial is False, data


def test_base_and_published_checkpoints_count(with_provenance):
    version = registry.register(with_provenance(imported={"associate_2.ckpt": "a" * 64}))
    found = licences.things(version._replace(preset="sd21"))
    assert Thing("Stable Diffusion 2.1-base", "CreativeML Open RAIL++-M", True) in found
    assert Thing("associate_2.ckpt", "its authors'", None) in found
    gone = licences.things(version._replace(runs={"osd": "f" * 32, "base": "e" * 32}, imported={}))
    assert [thing.commercial for thing in gone] == [None, None]
