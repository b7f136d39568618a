import contextlib
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from mlflow import MlflowException

from osdface import bundle
from osdface.errors import UserError
from osdface.restorer import Restorer
from pipelines import registry, tracking
from pipelines.pairs.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("mlflow_home")


def client():
    return tracking.client(tracking.uri())


def damage(folder):
    """Change one byte of a weight file."""
    path = folder / bundle.ADAPTER
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def stored(home) -> list:
    """The folders in which this home's artifact store keeps bundles."""
    return [path.parent for path in (home / "artifacts").rglob(bundle.ADAPTER)]


def stage_run(stage, data, parents=None):
    with tracking.run(stage, f"{stage}-1", {}, read_manifest(data), data, parents or {}) as run:
        return run.id


def test_register_tags_a_version_with_its_bundle_dataset_and_runs(with_provenance, pairs, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "eve")
    osd = stage_run("osd", pairs)
    folder = with_provenance(runs={"osd": osd, "vre": "b" * 32}, dataset_digest="d" * 64, git_revision="e" * 40)
    made = registry.register(folder, metrics={"psnr": 21.5}, evaluated_on="f" * 64)
    base = bundle.read_config(folder).base.sha256
    assert made == registry.Version(
        "osdface", "1", bundle.digest(folder), "d" * 64, "tiny", {"osd": osd, "vre": "b" * 32}, {"psnr": 21.5}, [],
        evaluated_on="f" * 64, base=base, registered_by="eve", registered_at=made.registered_at,
    )  # fmt: skip
    assert abs(datetime.fromisoformat(made.registered_at) - datetime.now(UTC)) < timedelta(minutes=1)
    found = client().get_model_version("osdface", "1")
    assert found.tags == {
        "osdface.bundle_digest": bundle.digest(folder),
        "osdface.dataset_digest": "d" * 64,
        "osdface.git_revision": "e" * 40,
        "osdface.preset": "tiny",
        "osdface.run.osd": osd,
        "osdface.run.vre": "b" * 32,
        "osdface.metric.psnr": "21.5",
        "osdface.evaluated_on": "f" * 64,
        "osdface.base": base,
        "osdface.registered_by": "eve",
    }
    assert found.run_id == osd
    model = client().get_logged_model(found.source.removeprefix("models:/"))
    assert (model.status, model.source_run_id, model.tags["osdface.bundle_digest"]) == (
        "READY", osd, bundle.digest(folder),
    )  # fmt: skip
    assert [(m.key, m.value) for m in model.metrics] == [("psnr", 21.5)]


def test_the_same_bundle_twice_is_one_version(with_provenance):
    first, second = with_provenance("a"), with_provenance("b", dataset_digest="d")
    assert registry.register(first).version == registry.register(first).version == "1"
    assert registry.register(second).version == "2"
    assert registry.register(shutil.copytree(first, first.with_name("copy"))).version == "1"
    assert [version.version for version in registry.versions()] == ["1", "2"]
    again = registry.register(first, metrics={"psnr": 20.0}, evaluated_on="e" * 64)
    assert (again.version, again.metrics, again.evaluated_on) == ("1", {"psnr": 20.0}, "e" * 64)


def test_a_run_of_another_server_is_kept_as_a_tag_only(with_provenance):
    made = registry.register(with_provenance(runs={"osd": "f" * 32}))
    assert made.runs == {"osd": "f" * 32}
    assert not client().get_model_version("osdface", "1").run_id


def test_a_damaged_bundle_is_refused_and_nothing_is_made(with_provenance, mlflow_home):
    folder = with_provenance()
    damage(folder)
    with pytest.raises(UserError, match=f"{bundle.ADAPTER}: differs"):
        registry.register(folder)
    assert client().search_registered_models() == []
    assert stored(mlflow_home) == []
    with pytest.raises(UserError, match="no registered model 'osdface'; make one with `osdface models register"):
        registry.versions()


def test_a_name_that_mlflow_does_not_take_is_one_sentence(bundle_folder):
    with pytest.raises(UserError, match="'a/b' cannot be the name of a registered model"):
        registry.register(bundle_folder, "a/b")


def test_a_failure_after_the_upload_leaves_no_version(bundle_folder, mlflow_home, monkeypatch):
    def fail(*_, **__):
        raise MlflowException("the database is gone")

    with monkeypatch.context() as patch:
        patch.setattr(client(), "create_model_version", fail)
        with pytest.raises(MlflowException, match="gone"):
            registry.register(bundle_folder)
    assert len(stored(mlflow_home)) == 1
    with pytest.raises(UserError, match="no registered model"):
        registry.versions()
    assert registry.register(bundle_folder).version == "1"


def test_sigkill_after_the_upload_leaves_no_version(bundle_folder, mlflow_home, environment):
    script = """
import os, pathlib, signal, sys
from mlflow import MlflowClient
from pipelines import registry
MlflowClient.create_model_version = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
registry.register(pathlib.Path(sys.argv[1]))
"""
    done = subprocess.run([sys.executable, "-c", script, str(bundle_folder)], env=environment, timeout=120)
    assert done.returncode == -9
    assert len(stored(mlflow_home)) == 1
    assert client().search_model_versions("name='osdface'") == []
    assert registry.promote(registry.register(bundle_folder).version).aliases == ["champion"]


def test_promote_moves_champion_and_keeps_the_former_as_previous(with_provenance):
    for name in ("a", "b", "c"):
        registry.register(with_provenance(name, dataset_digest=name))
    assert registry.promote("1").aliases == ["champion"]
    assert registry.promote("1").aliases == ["champion"]  # its own predecessor it is not
    assert registry.promote("2").aliases == ["champion"]
    assert registry.promote("3", alias="challenger").aliases == ["challenger"]
    aliases = {version.version: version.aliases for version in registry.versions()}
    assert aliases == {"1": ["previous"], "2": ["champion"], "3": ["challenger"]}


@pytest.mark.parametrize("version", ["9", "first"])
def test_promoting_what_does_not_exist_leaves_the_alias(bundle_folder, version):
    registry.promote(registry.register(bundle_folder).version)
    with pytest.raises(UserError, match=f"models:/osdface/{version}: no such version; `osdface models list`"):
        registry.promote(version)
    assert registry.find("champion").version == "1"
    with pytest.raises(UserError, match="models:/other/1: no such version"):
        registry.promote("1", name="other")


def damage_byte(folder):
    damage(folder)


def remove_file(folder):
    (folder / bundle.VRE).unlink()


def remove_all(folder):
    shutil.rmtree(folder)


def replace_by_another(folder):
    config = bundle.read_config(folder).model_copy(update={"seed": 6})
    (folder / "config.json").write_text(config.model_dump_json())


@pytest.mark.parametrize("harm", [damage_byte, remove_file, remove_all, replace_by_another])
def test_promoting_damaged_artifacts_leaves_the_alias(with_provenance, mlflow_home, harm):
    registry.promote(registry.register(with_provenance("a")).version)
    (first,) = stored(mlflow_home)
    registry.register(with_provenance("b", dataset_digest="b"))
    (second,) = set(stored(mlflow_home)) - {first}
    registry.fetch(registry.find("models:/osdface/2"))  # a sound copy in this machine's cache is not enough
    harm(second)
    with pytest.raises(UserError, match="^models:/osdface/2: "):
        registry.promote("2")
    assert registry.find("champion").version == "1"
    assert {version.version: version.aliases for version in registry.versions()} == {"1": ["champion"], "2": []}


def test_references(bundle_folder):
    registry.promote(registry.register(bundle_folder).version)
    for ref in ("models:/osdface/1", "models:/osdface@champion", "champion"):
        assert registry.find(ref).version == "1"
    assert registry.find("folder/of/a/bundle") is None
    assert registry.find("tiny") is None


@pytest.mark.parametrize(
    ("ref", "sentence"),
    [
        ("models:/osdface/7", "models:/osdface/7: no such version"),
        ("models:/other/1", "models:/other/1: no such version"),
        ("models:/osdface@best", "no version of 'osdface' has the alias 'best'; give it one with"),
        ("models:/other@champion", "no version of 'other' has the alias 'champion'"),
        ("challenger", "no version of 'osdface' has the alias 'challenger'"),
        ("models:/osdface", "not a model reference; write models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("models:/osdface/latest", "not a model reference"),
    ],
)
def test_references_that_name_nothing(bundle_folder, ref, sentence):
    registry.register(bundle_folder)
    with pytest.raises(UserError, match=sentence):
        registry.find(ref)


def test_the_cache_is_mended_from_the_registry(bundle_folder, mlflow_home):
    version = registry.register(bundle_folder)
    cached = registry.fetch(version)
    assert cached == mlflow_home / "cache" / "models" / bundle.digest(bundle_folder)
    damage(cached)
    assert bundle.verify(registry.fetch(version)) == bundle.read_config(bundle_folder)
    shutil.rmtree(stored(mlflow_home)[0])
    assert registry.fetch(version) == cached  # a sound copy needs no server
    damage(cached)
    with pytest.raises(UserError, match="models:/osdface/1: cannot be downloaded"):
        registry.fetch(version)
    assert [path.name for path in cached.parent.iterdir() if path.is_dir()] == [cached.name]


def test_a_version_that_somebody_else_made_is_refused(mlflow_home):
    client().create_registered_model("osdface")
    client().create_model_version("osdface", (mlflow_home / "anything").as_uri())
    with pytest.raises(UserError, match="models:/osdface/1: no bundle digest is recorded"):
        registry.resolve("models:/osdface/1")


def test_the_restorer_loads_a_registry_reference_through_the_entry_point(bundle_folder, mlflow_home):
    registry.promote(registry.register(bundle_folder).version)
    restorer = Restorer.load("models:/osdface@champion")
    assert restorer.config == bundle.read_config(bundle_folder)
    assert restorer.path == mlflow_home / "cache" / "models" / bundle.digest(bundle_folder)
    with pytest.raises(UserError, match="models:/osdface/7: no such version"):
        Restorer.load("models:/osdface/7")


def test_osdface_itself_knows_no_mlflow_and_the_registry_no_torch(bundle_folder, environment):
    """A notebook without MLflow uses folders; `models` commands and an endpoint's HTTP side wait for no diffusers."""
    registry.promote(registry.register(bundle_folder).version)
    script = """
import sys
from osdface import bundle
bundle.verify(bundle.resolve(sys.argv[1]))
print("mlflow" in sys.modules)
bundle.resolve("models:/osdface@champion")
import pipelines.serve.application, pipelines.serve.ingress, pipelines.serve.control
print("mlflow" in sys.modules, {"torch", "diffusers", "peft"} & set(sys.modules))
"""
    command = [sys.executable, "-c", script, str(bundle_folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == ["False", "True set()"]


def test_lineage_from_a_version_down_to_the_sources(with_provenance, pairs, faces_folder):
    manifest = read_manifest(pairs)
    base = stage_run("base", pairs)
    vre = stage_run("vre", pairs, {"base": base})
    osd = stage_run("osd", pairs, {"base": base, "vre": vre})
    folder = with_provenance(runs={"base": base, "vre": vre, "osd": osd}, dataset_digest=manifest.digest)
    registry.promote(registry.register(folder).version)
    tree = registry.lineage("champion")
    assert tree["version"] == "models:/osdface/1"
    assert (tree["bundle_digest"], tree["dataset_digest"]) == (bundle.digest(folder), manifest.digest)
    assert tree["osd"]["run_id"] == osd
    assert tree["osd"]["vre"]["run_id"] == vre
    assert tree["osd"]["vre"]["base"]["run_id"] == base
    dataset = tree["osd"]["dataset"]
    assert dataset["digest"] == manifest.digest
    assert dataset["folder"] == str(pairs)
    assert (dataset["recipe"], dataset["recipe_digest"]) == (manifest.spec.recipe.name, manifest.spec.recipe.digest)
    assert dataset["sources"] == [source.uri for source in manifest.additions[0].sources]
    assert str(faces_folder) in str(dataset["sources"])
    assert registry.lineage(osd)["run"] == tree["osd"]
    assert registry.lineage(vre)["run"] == tree["osd"]["vre"]


def test_lineage_says_what_is_missing(with_provenance, pairs, tmp_path):
    moved = shutil.copytree(pairs, tmp_path / "moved")
    vre = stage_run("vre", moved)
    osd = stage_run("osd", moved, {"vre": vre, "base": "f" * 32})
    registry.register(with_provenance(runs={"osd": osd, "vre": vre}))
    shutil.rmtree(moved)
    tree = registry.lineage("models:/osdface/1")
    assert tree["dataset_digest"] == "not recorded"
    assert "no such dataset" in tree["osd"]["dataset"]["now"]
    assert tree["osd"]["dataset"]["digest"] == read_manifest(pairs).digest
    assert tree["osd"]["base"] == f"run {'f' * 32} is not on this tracking server"

    client().delete_run(osd)
    tree = registry.lineage("models:/osdface/1")
    assert tree["osd"] == f"run {osd} is not on this tracking server"
    assert tree["vre"]["run_id"] == vre  # by the version's own word

    registry.register(with_provenance("bare"))
    assert registry.lineage("models:/osdface/2")["osd"] == "not recorded"


def test_lineage_notices_another_dataset_in_the_place(pairs, tmp_path):
    moved = shutil.copytree(pairs, tmp_path / "moved")
    run = stage_run("osd", moved)
    manifest = moved / "manifest.json"
    manifest.write_text(manifest.read_text().replace(read_manifest(pairs).digest, "0" * 64))
    assert registry.lineage(run)["run"]["dataset"]["now"] == f"another dataset is there ({'0' * 64})"


def test_lineage_of_an_unknown_reference():
    with pytest.raises(UserError, match="'abc' is neither a model reference nor a run of sqlite:"):
        registry.lineage("abc")


def answer(version, run="unknown", dataset="unknown") -> str:
    lines = ["HTTP/1.1 200 OK", "Content-Type: image/png", f"x-model-version: {version}", f"X-Run-Id: {run}"]
    return "\r\n".join([*lines, f"X-Dataset-Digest: {dataset}", "", ""])


def test_lineage_of_an_answer_by_its_headers(with_provenance, pairs):
    digest = read_manifest(pairs).digest
    osd = stage_run("osd", pairs)
    folder = with_provenance(runs={"osd": osd}, dataset_digest=digest)
    with pytest.raises(UserError, match="neither version 1 of 'osdface' nor run unknown"):
        registry.lineage_of_answer(answer(1))
    registry.register(folder)
    expected = registry.lineage("models:/osdface/1")
    told = registry.lineage_of_answer(answer(1, osd, digest))
    assert told == {"answer": {"version": "1", "run_id": osd, "dataset_digest": digest}, **expected}
    unregistered = bundle.digest(folder)
    assert registry.lineage_of_answer(answer(unregistered, osd, digest))["version"] == "models:/osdface/1"
    assert registry.lineage_of_answer(answer("0" * 64, osd))["run"] == registry.lineage(osd)["run"]
    for headers, sentence in (
        (answer("0" * 64), "neither version 0000.* nor run unknown"),
        (answer(1, "e" * 32), f"models:/osdface/1 has run_id {osd}, the answer e+: it is another registry's"),
        ("HTTP/1.1 200 OK\nContent-Type: text/plain", "no x-model-version among these headers"),
    ):
        with pytest.raises(UserError, match=sentence):
            registry.lineage_of_answer(headers)


def test_lineage_of_a_base_and_of_checkpoints_from_elsewhere(with_provenance):
    folder = with_provenance(imported={"associate_2.ckpt": "a" * 64})
    registry.register(folder)
    tree = registry.lineage("models:/osdface/1")
    assert tree["base"] == {"sha256": bundle.read_config(folder).base.sha256}
    assert tree["imported"] == {"associate_2.ckpt": "a" * 64}


def test_aliases_move_and_come_back(with_provenance):
    for name in ("a", "b"):
        registry.register(with_provenance(name, dataset_digest=name))
    registry.promote("1")
    before = registry.repoint({"previous": "1", "champion": "2", "challenger": None})
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    assert before == {"challenger": None, "champion": "1", "previous": None}
    registry.repoint(before)
    assert registry.aliases() == {"champion": "1"}


def test_runs_that_name_each_other_end(pairs):
    first = stage_run("osd", pairs)
    second = stage_run("vre", pairs, {"osd": first})
    client().set_tag(first, "osdface.run.vre", second)
    tree = registry.lineage(first)["run"]
    assert tree["vre"]["run_id"] == second
    assert "osd" not in tree["vre"]


def test_who_registers_the_same_bundle_at_the_same_time_gets_the_same_version(bundle_folder, monkeypatch):
    both_inside, create = threading.Barrier(2), client().create_logged_model

    def create_together(*args, **kwargs):
        with contextlib.suppress(threading.BrokenBarrierError):
            both_inside.wait(timeout=1)
        return create(*args, **kwargs)

    monkeypatch.setattr(client(), "create_logged_model", create_together)
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(registry.register, [bundle_folder] * 2))
    assert [version.version for version in made] == ["1", "1"]
    assert len(registry.versions()) == 1


def test_nothing_is_pickled(bundle_folder, mlflow_home):
    registry.register(bundle_folder)
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    files = [path for path in (mlflow_home / "artifacts").rglob("*") if path.is_file()]
    assert files
    assert {path.suffix for path in files} == {".json", ".safetensors"}
