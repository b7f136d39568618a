"""What the tests of pipelines share: pictures, an S3 server."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


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
    import s3fs

    folder, config = tmp_path_factory.mktemp("s3"), Path(os.environ["AWS_CONFIG_FILE"])
    keys = {"credentials": [{"accessKey": "k", "secretKey": "s"}], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "identities.json").write_text(json.dumps({"identities": [{"name": "t", **keys}]}))
    (folder / "data").mkdir()
    server = [f"{name}.port{kind}" for name in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(server, _free_ports(len(server)), strict=True))
    options = {
        "dir": folder / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "s3.config": folder / "identities.json",
        "s3.port.iceberg": 0, "s3.port.lance": 0, "master.volumeSizeLimitMB": 64, "master.telemetry": "false",
    } | ports  # fmt: skip
    command = [Path(sys.prefix) / "bin" / "weed", "server", "-s3", *(f"-{k}={v}" for k, v in options.items())]
    address = f"http://127.0.0.1:{ports['s3.port']}"
    config.write_text(f"[default]\naws_access_key_id=k\naws_secret_access_key=s\nregion=x\nendpoint_url={address}\n")
    with (folder / "log").open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)  # `weed` starts a child
    try:
        _wait_until(lambda: s3fs.S3FileSystem(skip_instance_cache=True).mkdir("osdface"), run, folder / "log")
        yield
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        config.unlink()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _wait_until(works: Callable[[], None], server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            return works()
        except OSError:  # refused, or not ready
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)


@pytest.fixture
def s3(s3_server) -> str:
    """A new prefix on the S3 server."""
    return f"s3://osdface/{uuid.uuid4().hex[:8]}"
