"""What the tests of tracking, registry and endpoint share: a tiny bundle, and a tracking database made once."""

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory) -> Path:
    """A bundle of random weights that visibly changes a picture; no runs, no dataset are recorded in it."""
    import torch

    from osdface import bundle, presets
    from osdface.base import load_base, new_base, save_base
    from osdface.generator import OneStepGenerator
    from osdface.vre import VisualEmbedder

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
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def environment(home) -> dict[str, str]:
    """Of a subprocess that shares this test's $OSDFACE_HOME and finds the sources."""
    root = str(Path(__file__).parents[2])
    return os.environ | {"OSDFACE_HOME": str(home), "PYTHONPATH": root}
