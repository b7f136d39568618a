"""The batched model without Serve around it."""

import asyncio
import io

import numpy as np
import pytest
from PIL import Image
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.context import ReplicaContext

from osdface import bundle
from osdface.imagefile import read_image
from osdface.restorer import Restorer
from pipelines.serve import application
from pipelines.serve.batches import Batches
from pipelines.serve.reader import Fault, look
from pipelines.serve.replica import Replica, Task, _work
from pipelines.serve.settings import Settings
from tests.serving import LIMITS, encoded, picture

SETTINGS = Settings(limits=LIMITS)
run = asyncio.Runner().run  # one loop, as a replica has: Serve's batches belong to it


@pytest.fixture
def replica(bundle_folder, monkeypatch):
    id = ReplicaID("x", DeploymentID("a", "osdface"))
    config = DeploymentConfig(max_ongoing_requests=32)
    within = ReplicaContext(replica_id=id, servable_object=None, _deployment_config=config, rank=None, world_size=1)
    monkeypatch.setattr("ray.serve.context._INTERNAL_REPLICA_CONTEXT", within)  # Serve's batches ask for it
    made = Replica(SETTINGS)
    run(made.reconfigure(application.of_folder(bundle_folder).model_dump()))
    yield made
    for reader in made.readers.all:
        reader.close()


@pytest.fixture
def other(bundle_folder, tmp_path):
    """A bundle of the same base and architecture, with other weights."""
    import torch
    from safetensors.torch import load_file

    config = bundle.read_config(bundle_folder)
    lora = bundle.read_lora(bundle_folder / bundle.LORA)
    changed = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in lora.items()}
    parts = bundle.Parts(changed, load_file(bundle_folder / bundle.VRE), load_file(bundle_folder / bundle.ADAPTER))
    bundle.write(parts, tmp_path / "other", config, bundle_folder / "base")
    return tmp_path / "other"


def work(seed, mode="aligned", height=48):
    return _work(look(encoded(picture(seed, height)), mode, LIMITS, 64), Task(b"", mode))


def test_a_picture_comes_back_with_the_version_that_restored_it(replica, bundle_folder):
    answer = run(replica.restore(Task(encoded(picture()), "aligned")))
    expected = Restorer.load(bundle_folder)(picture(), "aligned", output_type="array").image
    difference = read_image(answer.picture).astype(int) - expected
    assert np.abs(difference).max() <= 1
    assert (answer.version, answer.fault, answer.boxes) == (bundle.digest(bundle_folder), "", ((0, 0, 64, 48),))
    assert set(answer.seconds) == {"decode", "model", "encode"}


def test_those_that_wait_go_in_one_batch_and_each_gets_its_own(replica, monkeypatch):
    sizes, make = [], replica.make
    monkeypatch.setattr(replica, "make", lambda works: sizes.append(len(works)) or make(works))

    async def all_of_them():
        tasks = [Task(encoded(picture(i, 40 + i)), "aligned") for i in range(5)] + [Task(b"no picture")]
        return await asyncio.gather(*map(replica.restore, tasks))

    *good, bad = run(all_of_them())
    assert max(sizes) > 1
    assert [read_image(answer.picture).shape for answer in good] == [(40 + i, 64, 3) for i in range(5)]
    assert (bad.status, bad.picture) == (415, b"")


def test_faces_of_a_batch_share_passes_of_fixed_sizes(replica, monkeypatch):
    shapes, restore = [], Restorer.restore
    monkeypatch.setattr(Restorer, "restore", lambda self, x, *rest: shapes.append(len(x)) or restore(self, x, *rest))
    assert replica.batches.sizes == (4, 2, 1)
    made = replica.make([work(i) for i in range(7)])
    assert shapes == [4, 2, 1]
    for i, one in enumerate(made):
        alone = replica.make([work(i)])[0]
        assert np.abs(one.crops[0] - alone.crops[0]).max() < 1e-3


def test_a_picture_that_the_model_cannot_restore_fails_alone(replica, monkeypatch):
    crops = Batches.crops

    def refusing(self, pictures):
        if any((crop == 3).all() for crop in pictures):
            raise RuntimeError("out of memory")
        return crops(self, pictures)

    monkeypatch.setattr(Batches, "crops", refusing)
    bad = work(1)
    bad.crops[0].crop[:] = 3
    first, fault, last = replica.make([work(0), bad, work(0)])
    assert isinstance(fault, Fault)
    assert (fault.status, str(fault)) == (422, "the picture: the model cannot restore it")
    np.testing.assert_array_equal(first.crops[0], last.crops[0])


@pytest.mark.parametrize("fault", ["raises", "nan"])
def test_a_model_that_fails_by_itself_is_not_blamed_on_a_picture(replica, monkeypatch, fault):
    run(replica.check_health())

    def fail(self, crops, *_):
        if fault == "raises":
            raise RuntimeError("the device is gone (NaN)")
        return [np.full((64, 64, 3), np.nan, np.float32) for _ in crops]

    monkeypatch.setattr(Restorer, "restore_crops", fail)
    with pytest.raises(RuntimeError, match="NaN"):
        run(replica.restore(Task(encoded(picture()), "aligned")))
    with pytest.raises(RuntimeError, match="NaN"):
        run(replica.check_health())


def test_weights_are_replaced_in_the_networks_that_are_there(replica, other):
    network, before = replica.batches.restorer.generator, replica.make([work(0)])[0]
    run(replica.reconfigure(application.of_folder(other, "models:/osdface/2", "2").model_dump()))
    assert replica.batches.restorer.generator is network
    after = replica.make([work(0)])[0]
    assert (after.version, replica.loaded().model.model) == ("2", "models:/osdface/2")
    expected = Restorer.load(other).restore_crops([work(0).crops[0].crop])[0]
    np.testing.assert_array_equal(after.crops[0], expected)
    assert np.abs(after.crops[0] - before.crops[0]).max() > 0.01


def test_another_architecture_gets_networks_of_its_own(replica, other, monkeypatch):
    network = replica.batches.restorer.generator
    monkeypatch.setattr("pipelines.serve.batches._shape", lambda config: id(config))
    run(replica.reconfigure(application.of_folder(other).model_dump()))
    assert replica.batches.restorer.generator is not network


def test_what_a_format_cannot_hold_is_a_fault(replica):
    wide = io.BytesIO()
    Image.new("RGB", (70_000, 1)).save(wide, "PNG")
    answer = run(replica.restore(Task(wide.getvalue(), "auto", "jpeg")))
    assert (answer.status, answer.fault[:40]) == (422, "the picture: cannot be written as jpeg ("[:40])
