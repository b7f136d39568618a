"""What tests share: a home of their own, one Ray session, a small pair dataset made once, a tiny bundle, MLflow."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before anything starts Ray: its workers inherit these.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
    os.environ.pop(name, None)  # no test reaches a real store; where the tests' own one answers is written to this file
os.environ["AWS_CONFIG_FILE"] = f"{tempfile.gettempdir()}/osdface-tests-{os.getpid()}.aws"
os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.environ["AWS_CONFIG_FILE"]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A fresh $OSDFACE_HOME, and no tracking server but its own."""
    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "home"


@pytest.fixture(scope="session")
def ray_session():
    """Ray on this machine with four logical CPUs, started once for all tests that need it."""
    import ray

    from pipelines import cluster

    cluster.connect(cpus=4)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def faces_folder(tmp_path_factory) -> Path:
    """48 procedural faces of 64 px."""
    from osdface import procedural

    folder = tmp_path_factory.mktemp("faces") / "faces"
    procedural.make(folder, 48, 64)
    return folder


@pytest.fixture(scope="session")
def pairs(faces_folder, ray_session, tmp_path_factory) -> Path:
    """A pair dataset of those faces, with all three splits."""
    from pipelines.synthesize.build import synthesize
    from pipelines.synthesize.config import Split, SynthConfig

    out = tmp_path_factory.mktemp("pairs") / "pairs"
    split = Split(val=0.15, test=0.25)
    synthesize(SynthConfig(sources=[faces_folder], out=out, size=64, shard_rows=16, split=split))
    return out


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory) -> Path:
    """A bundle of random weights that visibly changes a picture; no runs, no dataset are recorded in it."""
    import torch

    from osdface import bundle, presets
    from osdface.base import load_base, new_base, save_base
    from osdface.generator import OneStepGenerator
    from osdface.prompts.vre import VisualEmbedder

    folder, shape = tmp_path_factory.mktemp("bundle"), presets.preset("tiny")
    torch.manual_seed(0)
    save_base(new_base(shape), folder / "base")
    generator = OneStepGenerator.from_parts(shape, load_base(folder / "base"), VisualEmbedder(shape.vre), seed=5)
    bundle.save(
        generator, folder / "model", preset="tiny", seed=5, base=folder / "base", provenance=bundle.Provenance()
    )
    return folder / "model"


@pytest.fixture
def with_provenance(bundle_folder, tmp_path):
    """A function that copies the bundle with other provenance, and so another digest, under a name."""
    from osdface import bundle
    from osdface.files import write

    def copy(name: str = "model", **provenance) -> Path:
        folder = shutil.copytree(bundle_folder, tmp_path / name)
        config = bundle.read_config(folder).model_copy(update={"provenance": bundle.Provenance(**provenance)})
        write(folder / "config.json", config.model_dump_json(indent=2))
        return folder

    return copy


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """An MLflow database with all its tables and nothing in them: making one takes seconds."""
    from pipelines import tracking

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    tracking.client(f"sqlite:///{path}")
    return path


@pytest.fixture
def mlflow_home(home, empty_database) -> Path:
    """A fresh $OSDFACE_HOME whose tracking database is ready."""
    home.mkdir()
    shutil.copy(empty_database, home / "mlflow.db")
    return home


@pytest.fixture
def free_port() -> int:
    """A loopback port that nothing listens on."""
    from tests.heads import free

    return free()


@pytest.fixture
def environment(home) -> dict[str, str]:
    """Of a subprocess that shares this test's $OSDFACE_HOME and finds the sources."""
    root = str(Path(__file__).parents[1])
    return os.environ | {"OSDFACE_HOME": str(home), "PYTHONPATH": root}
