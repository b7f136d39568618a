"""What the tests of pipelines share: pictures, an S3 server."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.store import Store
from tests import object_store


@pytest.fixture(scope="session")
def draw() -> Callable[..., Path]:
    """A function that writes smooth colour pictures, `{seed}.png` each, to a folder."""
    import cv2
    import numpy as np

    def write(folder: Path, seeds: range, size: tuple[int, int] = (32, 32), suffix: str = ".png") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
            cv2.imwrite(str(folder / f"{seed}{suffix}"), cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC))
        return folder

    return write


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[None]:
    """SeaweedFS with a bucket "osdface"; this process and Ray's workers find it by AWS's configuration file."""
    with object_store.weed(tmp_path_factory.mktemp("s3")) as server:
        config = object_store.configure(server.port)
        yield
        config.unlink()


@pytest.fixture
def s3(s3_server) -> str:
    """A new prefix on the S3 server."""
    return f"s3://osdface/{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["local", "memory", "s3"])
def store(request, tmp_path) -> Store:
    """An empty place of each kind."""
    if request.param == "local":
        return Store(tmp_path / "root")
    if request.param == "memory":
        return Store(f"memory://{uuid.uuid4().hex}/root")
    return Store(request.getfixturevalue("s3") + "/root")
