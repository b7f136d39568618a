"""One running endpoint for the tests that ask by HTTP: starting one takes ten seconds."""

import socket
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from osdface import faces
from pipelines.serve.settings import Settings
from tests.serving import LIMITS


@pytest.fixture(scope="session")
def served(bundle_folder, ray_session, tmp_path_factory):
    """The endpoint as promotion sees it; whoever stages something there puts it back."""
    from ray import serve

    from pipelines.serve import application, control
    from pipelines.serve.live import Running

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSDFACE_HOME", str(tmp_path_factory.mktemp("served")))
        settings = Settings(limits=LIMITS, origins=["https://elsewhere.example"], waiting=64)
        record = control.deploy(str(bundle_folder), application.of_folder(bundle_folder), settings, "127.0.0.1", port)
        running = Running(record)
    yield running
    serve.shutdown()


@pytest.fixture(scope="session")
def endpoint(served) -> Iterator[httpx.Client]:
    """A client of it."""
    with httpx.Client(base_url=served.url, timeout=150) as client:
        yield client


@pytest.fixture(scope="session")
def t1() -> np.ndarray:
    """A photograph with six faces."""
    return faces.photographs()["t1"]
