"""dlib's recognition network in torch against dlib itself, and the identity loss over it."""

import dlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from osdface import faces, weights
from osdface.errors import UserError
from osdface.identity import DlibIdentity, chips_from_aligned
from osdface.losses.identity import identity_loss


def to_tensor(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def network():
    return DlibIdentity()


@pytest.fixture(scope="module")
def people():
    """For each of the six people of t1: dlib's own chip and our FFHQ-aligned crop."""
    image = faces.photographs()["t1"]
    predictor = dlib.shape_predictor(str(weights.find("dlib_landmarks")))
    chips, aligned = [], []
    for face in faces.DlibFrontal().detect(image):
        chips.append(dlib.get_face_chip(image, predictor(image, dlib.rectangle(*face.box)), 150, 0.25))
        aligned.append(faces.align(image, face, 256)[0])
    return chips, aligned


def test_descriptors_are_dlibs_own(network, people):
    model = dlib.face_recognition_model_v1(str(weights.find("dlib_identity")))
    own = torch.from_numpy(np.stack([model.compute_face_descriptor(chip) for chip in people[0]])).float()
    torch.testing.assert_close(network(to_tensor(people[0])), own, atol=1e-5, rtol=0)


def test_people_are_apart_and_a_mildly_degraded_face_is_the_same(network, people):
    aligned = to_tensor(people[1])
    clean = network(chips_from_aligned(aligned))
    between = torch.cdist(clean, clean)[torch.triu_indices(6, 6, 1).unbind()]
    assert between.min() > 0.6
    blurred = F.interpolate(aligned, scale_factor=0.25, mode="area")  # 64 px, and noise
    noisy = (blurred + 0.02 * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert (network(chips_from_aligned(noisy)) - clean).norm(dim=1).max() < 0.6


def test_the_chip_of_an_aligned_face_lies_where_dlibs_does(network, people):
    distance = (network(chips_from_aligned(to_tensor(people[1]))) - network(to_tensor(people[0]))).norm(dim=1)
    assert distance.max() < 0.3
    assert distance.mean() < 0.2


def test_loss_is_eq_13_and_its_gradient_reaches_the_restored_picture_alone(network, people):
    target = to_tensor(people[1][:2]).requires_grad_()
    restored = F.avg_pool2d(target.detach(), 4).requires_grad_()
    chips = chips_from_aligned(restored), chips_from_aligned(target)
    loss = identity_loss(network, *chips)
    assert chips_from_aligned(target.bfloat16()).dtype == torch.float32
    loss.backward()
    assert restored.grad is not None
    assert restored.grad.abs().sum(dim=(1, 2, 3)).min() > 0
    assert target.grad is None
    assert not any(parameter.requires_grad for parameter in network.parameters())
    a, b = (network(chip.detach()).double() for chip in chips)
    expected = sum(1 - float(x @ y / (x.norm() * y.norm())) for x, y in zip(a, b, strict=True)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["dlib_landmarks", "dlib_mmod"])
def test_another_file_is_refused(name):
    with pytest.raises(UserError, match="not dlib's face recognition network"):
        DlibIdentity(weights.find(name))


@pytest.mark.parametrize("share", [0, 0.00001, 0.5, 0.9999999])
def test_a_truncated_file_is_refused(tmp_path, share):
    data = weights.find("dlib_identity").read_bytes()
    ending = data.rindex(b"fc_2") + 4 + 256 * 128 * 4  # some bytes before the last matrix ends
    path = tmp_path / "cut.dat"
    path.write_bytes(data[: int(ending * share)])
    with pytest.raises(UserError, match=r"cut\.dat: not dlib's"):
        DlibIdentity(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.dat: cannot read"):
        DlibIdentity(tmp_path / "none.dat")
