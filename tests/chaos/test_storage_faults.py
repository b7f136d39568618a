"""A training whose storage is an S3 server that answers with errors, late, in halves or not at all, or is killed.

Whatever goes wrong, the training goes on, or ends in one sentence and the same command goes on; the weights are those
of a training that nothing disturbed, and no half-written checkpoint or output is ever taken.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import fsspec
import pytest
import s3fs

from osdface.base import load_base
from osdface.errors import UserError
from pipelines import outputs
from pipelines.launch import launch
from pipelines.store import STORAGE, Store
from pipelines.train_base import BaseConfig
from tests import object_store
from tests.object_store import Proxy, Weed

pytestmark = pytest.mark.chaos
SGD = {"name": "sgd", "lr": 0.05}
ALWAYS = 10**6
# Impatient, so that a fault that lasts is one within seconds; what a cluster's clients do is fsspec's default.
CLIENT = {"config_kwargs": {"read_timeout": 3, "connect_timeout": 3, "retries": {"max_attempts": 1}}}
WEIGHTS, RECEIPT = "checkpoint_000001/moments.safetensors", "checkpoint_000001/state.json"


class Case(NamedTuple):
    """fault: of the proxy; requests: which ones, by method and a part of the path; times: how many of them."""

    what: str
    fault: str
    method: str
    part: str
    times: int = 1


CASES = [
    Case("the run's note", "500", "PUT", ".json"),
    Case("the lease", "500 after", "PUT", "lease-1.json"),
    Case("a checkpoint's tensors", "500", "PUT", WEIGHTS),
    Case("a checkpoint's tensors", "500", "PUT", WEIGHTS, ALWAYS),
    Case("a checkpoint's tensors", "hang", "PUT", WEIGHTS),
    Case("a checkpoint's tensors", "hang", "PUT", WEIGHTS, ALWAYS),
    Case("a checkpoint's tensors", "drop", "PUT", WEIGHTS),
    Case("a checkpoint's receipt", "500 after", "PUT", RECEIPT),
    Case("a checkpoint's receipt", "drop", "PUT", RECEIPT, ALWAYS),
    Case("the output's upload", "500", "PUT", "/base/unet", ALWAYS),
    Case("the output's receipt", "hang", "PUT", "/base/training.json", ALWAYS),
    Case("the output's reading", "truncated", "GET", "output/unet"),
    Case("the output's reading", "truncated", "GET", "output/unet", ALWAYS),
    Case("the output's reading", "short", "GET", "output/unet"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Weed]:
    with object_store.weed(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server) -> Iterator[Proxy]:
    """Before the server; this process and Ray's workers go through it."""
    made = Proxy(server.port)
    config = object_store.configure(made.port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec.config.conf, "s3", CLIENT)
        s3fs.S3FileSystem.clear_instance_cache()
        yield made
    s3fs.S3FileSystem.clear_instance_cache()
    config.unlink()
    made.close()


@pytest.fixture
def s3(proxy, monkeypatch) -> str:
    place = f"s3://{object_store.BUCKET}/{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv(STORAGE, place)
    return place


def config(pairs, out, workers: int = 0) -> BaseConfig:
    settings = {
        "preset": "tiny", "data": str(pairs), "out": str(out), "batch_size": 4, "workers": workers, "log_every": 1,
        "vae": {"steps": 4}, "unet": {"steps": 2}, "vae_optimizer": SGD, "unet_optimizer": SGD, "checkpoint_every": 2,
    }  # fmt: skip
    return BaseConfig.model_validate(settings)


def weights(folder: Path) -> dict:
    base = load_base(folder)
    return {f"{part}.{n}": t for part in ("vae", "unet") for n, t in getattr(base, part).state_dict().items()}


@pytest.fixture(scope="module")
def in_peace(pairs, tmp_path_factory, empty_database) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSDFACE_HOME", str(tmp_path_factory.mktemp("peace")))
        patch.delenv(STORAGE, raising=False)
        return weights(launch("base", config(pairs, tmp_path_factory.mktemp("out") / "base"), {}).out)


def outcome(s3: str, pairs, in_peace: dict, mend: Callable[[], None], workers: int = 0) -> str:
    """What became of a training, which must come to the weights in the end. mend: ends the fault."""
    out = f"{s3}/base"
    try:
        launch("base", config(pairs, out, workers), {})
        said = "went on"
    except UserError as error:
        (sentence,) = str(error).splitlines()
        with pytest.raises(UserError):  # nobody takes what there is for an output
            outputs.here(out)
        mend()
        launch("base", config(pairs, out, workers), {})
        said = f"`{sentence}`; the same command went on"
    mend()
    found = weights(outputs.here(out))
    largest = max(float((tensor - found[name]).abs().max()) for name, tensor in in_peace.items())
    assert largest == 0 if workers == 0 else largest < 1e-6
    assert not Store(out).exists(outputs.BEGUN)
    return said.replace(s3, "s3://...")


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.what}-{c.fault}-{c.times}")
def test_a_fault_costs_no_weight(case, proxy, s3, pairs, in_peace, mlflow_home, capsys):
    proxy.harm(case.fault, lambda method, path: method == case.method and case.part in path, case.times)
    said = outcome(s3, pairs, in_peace, lambda: proxy.harm("", lambda *_: False, 0))
    with capsys.disabled():
        print(f"\n| {case.what} | {case.fault} {'always' if case.times == ALWAYS else f'x{case.times}'} | {said} |")


@pytest.mark.parametrize("part", [WEIGHTS, "/base/training.json"])
@pytest.mark.parametrize("down", [0, 8])
def test_a_server_killed_in_mid_write_and_restarted(
    part, down, proxy, server, s3, pairs, in_peace, mlflow_home, capsys
):
    _killed(part, down, proxy, server, lambda mend: outcome(s3, pairs, in_peace, mend), capsys)


def test_a_server_killed_under_ray_train(proxy, server, s3, pairs, in_peace, mlflow_home, capsys):
    part = "/state.safetensors"
    _killed(part, 3, proxy, server, lambda mend: outcome(s3, pairs, in_peace, mend, workers=2), capsys)


def _killed(part: str, down: int, proxy: Proxy, server: Weed, run: Callable, capsys) -> None:
    """Kill the server as a request arrives; start it again after so many seconds."""
    up = threading.Event()

    def restart() -> None:
        time.sleep(down)
        server.start()
        up.set()

    def kill() -> None:
        server.kill()
        threading.Thread(target=restart).start()

    proxy.harm(kill, lambda method, path: method == "PUT" and part in path)
    said = run(lambda: up.wait(60))
    assert up.is_set()
    with capsys.disabled():
        print(f"\n| {part.rpartition('/')[2]} | server killed, back after {down} s | {said} |")
