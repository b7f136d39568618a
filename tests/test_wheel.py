"""The wheel holds what the packages read and no more, and its command runs where nothing but its core is installed."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("osdface", "degradations", "pipelines", "jobs")
MIB = 2**20
# All that `osdface --help` imports of the core's packages; the rest is heavy, and the lock installs it in every test.
CORE = ("typer", "rich", "pydantic", "pyyaml")

pytestmark = pytest.mark.full


def done(*words: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)


def run(*words: str | Path, cwd: Path = ROOT) -> str:
    ended = done(*words, cwd=cwd)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the tracked files alone, by the setuptools that is here."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = run("git", "ls-files", "-z", "--", *PACKAGES, "pyproject.toml", "README.md", "LICENSE").split("\0")
    for name in filter(None, tracked):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    run(*words, folder, folder / "source")
    (built,) = folder.glob("*.whl")
    return built


def test_holds_the_packages_with_their_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = {Path(name).name for name in archive.namelist() if "/licenses/" in name}
    tracked = set(run("git", "ls-files", "--", *PACKAGES).split())
    assert tracked - names == {"jobs/configs/ablations/README.md"}
    assert names <= tracked
    assert {"LICENSE", "niqe_modelparameters.LICENSE.txt"} <= licences


def test_is_small(wheel):
    assert wheel.stat().st_size < 12 * MIB  # four fifths of it the bundle that ships
    with zipfile.ZipFile(wheel) as archive:
        assert max(info.file_size for info in archive.infolist()) < 8 * MIB


def test_its_command_runs_in_an_environment_of_its_own(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python, command = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "osdface"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *CORE)
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", wheel)
    assert "Usage: osdface" in run(command, "--help", cwd=tmp_path)
    assert "--recipe" in run(command, "data", "synth", "--help", cwd=tmp_path)
    where = run(python, "-c", "import osdface; print(osdface.__file__)", cwd=tmp_path)
    assert str(tmp_path / "venv") in where
    lacking = done(command, "restore", "x.png", "--out", "y.png", "--model", "m", cwd=tmp_path)
    assert lacking.returncode == 1
    assert "is not installed; pip install 'osdface[" in lacking.stderr
    assert "Traceback" not in lacking.stderr


def test_the_bundle_in_it_loads_and_restores(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = (
        "import sys; sys.path.insert(0, '.')\n"
        "import numpy as np, osdface\n"
        "from osdface.restorer import Restorer\n"
        "print(osdface.__file__, Restorer.load('tiny')(np.zeros((64, 64, 3), np.uint8)).image.size)"
    )
    said = run(sys.executable, "-c", script, cwd=tmp_path)
    assert said.strip() == f"{tmp_path / 'osdface' / '__init__.py'} (64, 64)"
