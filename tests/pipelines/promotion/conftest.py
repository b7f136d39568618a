"""What the tests of promotion share: versions, spoilt bundles, an endpoint that does as it is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from osdface import bundle
from osdface.files import sha256, write
from pipelines import registry, tracking
from pipelines.promotion import promoting, turn
from pipelines.serve import live
from tests.promotion import Fake


@pytest.fixture
def versions(with_provenance, mlflow_home) -> list[registry.Version]:
    """Three versions of the same weights."""
    return [registry.register(with_provenance(name, dataset_digest=name * 64)) for name in "abc"]


@pytest.fixture
def evaluated() -> Callable[..., str]:
    """A function that records an evaluation of a version as `osdface evaluate` does; returns its run."""

    def evaluate(version: registry.Version, dataset: str, split: str = "test", **metrics: float) -> str:
        config = {"bundle_digest": version.bundle_digest, "split": split}
        named = tracking.Named("somewhere", dataset, {})
        with tracking.run("evaluate", "evaluate-test", config, named, "somewhere", {}) as run:
            run.metrics({name.replace("__", "."): value for name, value in metrics.items()}, 0)
        return run.id

    return evaluate


@pytest.fixture
def spoilt(bundle_folder, tmp_path) -> Callable[..., Path]:
    """A function that copies the bundle with other weights in it, under digests that fit."""

    def copy(change: Callable) -> Path:
        folder = shutil.copytree(bundle_folder, tmp_path / change.__name__)
        tensors = load_file(folder / bundle.ADAPTER)
        save_file(change(tensors), folder / bundle.ADAPTER)
        config = json.loads((folder / "config.json").read_text())
        config["files"][bundle.ADAPTER] = sha256(folder / bundle.ADAPTER)
        write(folder / "config.json", json.dumps(config))
        return folder

    return copy


@pytest.fixture
def endpoint(monkeypatch) -> Fake:
    """The one endpoint that runs, serving version 1; looks are as quick as they can be."""
    fake = Fake("1")
    monkeypatch.setattr(live, "endpoints", lambda url=None: [fake])
    monkeypatch.setattr(promoting, "POLL", 0.01)
    monkeypatch.setattr(turn, "SETTLING", 0.01)
    return fake


@pytest.fixture
def no_endpoint(monkeypatch) -> None:
    monkeypatch.setattr(live, "endpoints", lambda url=None: [])
