"""The house's rules that no single module can keep: imports, and configuration sets that fit their programs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter import api

from jobs import configs
from jobs.chain import Chain
from osdface.config import load, resolved
from pipelines.serve.settings import Settings
from pipelines.synthesize.config import SynthConfig
from pipelines.train_base import BaseConfig
from pipelines.train_osd import OSDConfig
from pipelines.train_vre import VREConfig

ROOT = Path(__file__).parent.parent
IMPORTS = """
import importlib, json, pkgutil, sys
import degradations, osdface
for package in (degradations, osdface):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print(json.dumps(list(sys.modules)))
"""


def lint(config: Path) -> subprocess.CompletedProcess[str]:
    words = [Path(sys.executable).parent / "lint-imports", "--config", config]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


def test_imports_go_one_way():
    contracts = api.read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    assert len(contracts) >= 3
    done = lint(ROOT / "pyproject.toml")
    assert done.returncode == 0, done.stdout
    for contract in contracts:
        assert f"{contract['name']} KEPT" in done.stdout


def test_the_linter_sees_an_import_that_is_there(tmp_path):
    config = tmp_path / "setup.cfg"
    config.write_text(
        "[importlinter]\nroot_packages =\n    jobs\n    osdface\n"
        "[importlinter:contract:1]\nname = none\ntype = forbidden\n"
        "source_modules = jobs\nforbidden_modules = osdface\n"
    )
    done = lint(config)
    assert done.returncode == 1
    assert "none BROKEN" in done.stdout


def test_the_science_runs_without_ray_deepspeed_and_mlflow():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert {"osdface.restorer", "degradations.degrade", "torch"} <= loaded
    assert loaded.isdisjoint({"ray", "deepspeed", "mlflow", "pyarrow"})


GIVEN = {
    "synth": (SynthConfig, {"sources": [Path("faces")], "out": Path("pairs")}),
    "base": (BaseConfig, {"data": Path("pairs"), "out": Path("base")}),
    "vre": (VREConfig, {"data": Path("pairs"), "out": Path("vre")}),
    "serve": (Settings, {}),
    "osd": (OSDConfig, {"data": Path("pairs"), "out": Path("model"), "base": Path("base"), "vre": Path("vre")}),
}
CHAINS = ("demo", "weights")
SETS = [
    (path.parent.relative_to(configs.FOLDER).as_posix(), path.stem)
    for path in sorted(configs.FOLDER.rglob("*.yaml"))
    if path.stem not in CHAINS
]


@pytest.mark.parametrize("path", [path for name in CHAINS for path in configs.FOLDER.rglob(f"{name}.yaml")], ids=str)
def test_a_chain_parses(path):
    assert load(Chain, path).steps


@pytest.mark.parametrize(("folder", "kind"), SETS)
def test_a_configuration_set_parses_and_resolves(folder, kind):
    model, given = GIVEN[kind]
    config = load(model, configs.find(folder, kind), **given)
    assert model.model_validate(json.loads(json.dumps(resolved(config)))) == config
