"""Twenty promotions under steady load, while replicas are killed: no request fails, no bad version serves."""

import random
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osdface import bundle
from osdface.errors import UserError
from pipelines.serve import application, control
from pipelines.serve.live import Running
from pipelines.serve.settings import Settings
from tests.serving import LIMITS, Load, encoded, kill_replicas, picture

pytestmark = pytest.mark.chaos
PROMOTIONS = 20
KILLS = (
    10.0,
    40.0,
)  # seconds between two: loading a version takes about ten here, and one that is killed is begun anew


@pytest.fixture
def endpoint(bundle_folder, home, ray_session):
    from ray import serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    loaded = application.of_folder(bundle_folder, "models:/osdface/1", "1")
    yield Running(control.deploy("champion", loaded, Settings(limits=LIMITS, waiting=64), "127.0.0.1", port))
    serve.shutdown()


def changed(source: Path, folder: Path, fill: float | None) -> Path:
    """The bundle with a LoRA of other numbers: some noise, or all of them `fill`."""
    lora = bundle.read_lora(source / bundle.LORA)
    lora = {
        name: torch.full_like(tensor, fill) if fill is not None else tensor + 0.05 * torch.randn_like(tensor)
        for name, tensor in lora.items()
    }
    parts = bundle.Parts(lora, load_file(source / bundle.VRE), load_file(source / bundle.ADAPTER))
    bundle.write(parts, folder, bundle.read_config(source), source / "base")
    return folder


def test_promotions_and_kills_under_load(endpoint, bundle_folder, tmp_path):
    good = [application.of_folder(bundle_folder, "models:/osdface/1", "1")]
    good.append(application.of_folder(changed(bundle_folder, tmp_path / "2", None), "models:/osdface/2", "2"))
    nan = application.of_folder(changed(bundle_folder, tmp_path / "3", float("nan")), "models:/osdface/3", "3")
    torn = application.of_folder(changed(bundle_folder, tmp_path / "4", None), "models:/osdface/4", "4")
    (tmp_path / "4" / bundle.LORA).write_bytes(b"rubbish")
    over, killed, draw = threading.Event(), [], random.Random(0)

    def kill():
        while not over.wait(draw.uniform(*KILLS)):
            killed.extend(kill_replicas(draw.choice("ab")))

    killer = threading.Thread(target=kill)
    live = {"1": [(time.time(), None)], "2": []}  # when each version might have answered
    with Load(endpoint.url, 3) as load:
        killer.start()
        try:
            for number in range(PROMOTIONS):
                chosen = good[1 - number % 2]
                _patiently(endpoint, chosen, live)
                _patiently_settled(endpoint, chosen, live)
                if number % 5 == 4:
                    with pytest.raises(UserError, match="does not load"):
                        endpoint.stage_loaded((nan, torn)[number % 2], share=1, shadow=False, seconds=600)
        finally:
            over.set()
            killer.join()
    assert killed
    assert load.failed() == []
    assert set(load.versions()) <= {"1", "2"}
    for sent, answered, _, version in load.answers:
        assert any(begin <= answered and (end is None or sent <= end) for begin, end in live[version]), (sent, version)
    print(f"{len(load.answers)} answers, {len(killed)} replicas killed, {PROMOTIONS} promotions, 0 failed")


def _patiently(endpoint, loaded, live):
    """Stage and try a version; a replica that is killed meanwhile may make one attempt fail, never a request."""
    for _ in range(5):
        live[loaded.model.version].append((time.time(), None))
        try:
            endpoint.stage_loaded(loaded, share=0.3, shadow=False, seconds=600)
            assert len(endpoint.try_staged([encoded(picture(1))])) == 1
            return
        except UserError:
            endpoint.withdraw("an attempt failed")
            live[loaded.model.version][-1] = (live[loaded.model.version][-1][0], time.time())
    raise AssertionError("five attempts to stage failed")


def _patiently_settled(endpoint, loaded, live):
    endpoint.settle()
    old = "1" if loaded.model.version == "2" else "2"
    live[old] = [(begin, end or time.time()) for begin, end in live[old]]
