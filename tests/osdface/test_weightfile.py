"""Third-party weight files: recognised, read as what they claim to be, copied whole or not at all."""

import hashlib

import numpy as np
import pytest
import torch
from scipy.io import savemat

from osdface import weightfile, weights
from osdface.errors import UsageError, UserError
from osdface.identity import arcface


@pytest.fixture
def bare(home, tmp_path, monkeypatch):
    """A machine with no weights but those of installed packages; returns the folder that files are added to."""
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return home / "weights"


@pytest.fixture
def undated(monkeypatch):
    """The table without digests: no test has the published bytes, only their layout."""
    table = {name: entry._replace(sha256=None) for name, entry in weights.WEIGHTS.items()}
    monkeypatch.setattr(weights, "WEIGHTS", table)
    monkeypatch.setattr(weightfile, "WEIGHTS", table)


def of_shapes(shapes: dict) -> dict[str, torch.Tensor]:
    """Tensors of these shapes, one number on the disk each."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def layout(name: str) -> object:
    """What the published file called `name` holds, by shape."""
    from torchvision.models import get_model

    with torch.device("meta"):
        if name in ("vgg16", "vgg19", "alexnet"):
            return of_shapes({k: v.shape for k, v in get_model(name).state_dict().items()})
        if name.startswith("arcface") or name == "deg":
            network = arcface.ArcFace(name) if name in arcface.DEPTHS else arcface.GreyArcFace()
            prefix = "module." if name == "deg" else ""
            return of_shapes({prefix + k: v.shape for k, v in network.state_dict().items()})
    if name == "dists":
        return of_shapes({"alpha": (1, 1475, 1, 1), "beta": (1, 1475, 1, 1)})
    tensors = of_shapes({"some.weight": (2, 2)})
    return {"state_dict": tensors} if name == "lmd" else tensors


def write(path, name):
    mean, covariance = np.zeros(2048), np.zeros((2048, 2048))
    if name == "niqe":
        savemat(path, {"mu_prisparam": np.zeros((1, 36)), "cov_prisparam": np.zeros((36, 36))})
    elif name == "clip_rn50":
        torch.jit.script(torch.nn.Linear(1, 1)).save(path)
    elif name == "fid_ffhq_vqfr":
        torch.save({"name": "FFHQ", "size": 512, "mean": mean, "cov": covariance}, path)
    elif name == "fid_ffhq_clean":
        np.savez_compressed(path, mu=mean, sigma=covariance)
    else:
        torch.save(layout(name), path)
    return path


NOT_PACKAGED = [name for name, entry in weights.WEIGHTS.items() if not entry.package or name == "niqe"]


def test_every_file_of_the_table_has_its_reader():
    assert set(weightfile.READERS) == set(weights.WEIGHTS)


@pytest.mark.parametrize("name", NOT_PACKAGED)
def test_a_file_is_recognised_by_its_name_read_and_copied(bare, undated, tmp_path, name):
    given = write(tmp_path / weights.WEIGHTS[name].file, name)
    added = weightfile.add(given)
    assert added.name == name
    assert added.path == bare / weights.WEIGHTS[name].file == weights.find(name)
    assert added.path.read_bytes() == given.read_bytes()
    assert added.digest == hashlib.sha256(given.read_bytes()).hexdigest()
    assert added.known is None
    assert list(bare.iterdir()) == [added.path]
    assert weightfile.add(added.path) == added  # where it is already


@pytest.mark.parametrize("name", ["dlib_identity", "dlib_landmarks", "lpips_vgg"])
def test_a_published_file_is_recognised_by_its_digest_under_any_name(bare, tmp_path, name):
    given = tmp_path / "download.bin"
    given.write_bytes(weights.find(name).read_bytes())
    added = weightfile.add(given)
    assert (added.name, added.known) == (name, True)
    assert added.path == bare / weights.WEIGHTS[name].file


@pytest.mark.parametrize("name", ["arcface_r50", "arcface_r100"])
def test_backbone_pth_is_told_apart_by_its_depth(bare, tmp_path, name):
    assert weightfile.add(write(tmp_path / "backbone.pth", name)).name == name


def test_resnet18_110_is_degs_and_the_loss_network_too_where_asked(bare, tmp_path):
    given = write(tmp_path / "resnet18_110.pth", "deg")
    assert weightfile.add(given).name == "deg"
    added = weightfile.add(given, "arcface_r18")
    assert added.path == weights.find("arcface_r18") == bare / "arcface_resnet18.pth"


@pytest.mark.parametrize("name", NOT_PACKAGED)
def test_another_networks_file_is_refused_and_nothing_is_copied(bare, undated, tmp_path, name):
    given = tmp_path / weights.WEIGHTS[name].file
    if name == "niqe":
        savemat(given, {"something": np.zeros(2)})
    else:
        torch.save({"else.weight": 3 if weightfile.READERS[name] is weightfile._tensors else torch.zeros(2)}, given)
    with pytest.raises(UserError) as caught:
        weightfile.add(given)
    assert str(given) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not bare.exists()


@pytest.mark.parametrize("name", weights.WEIGHTS)
def test_what_is_no_such_file_at_all_is_refused_and_nothing_in_it_is_executed(bare, undated, tmp_path, name):
    given = tmp_path / "file"
    for data in (b"", b"<html>not found</html>" * 100):
        given.write_bytes(data)
        with pytest.raises(UserError, match="file"):
            weightfile.add(given, name)
    assert not bare.exists()


def test_another_digest_than_the_published_is_refused(bare, tmp_path):
    given = write(tmp_path / "vgg16-397923af.pth", "vgg16")
    with pytest.raises(UserError, match=r"not the published vgg16-397923af\.pth: its sha256 begins with \w{8} where"):
        weightfile.add(given)
    assert not bare.exists()


def test_an_unknown_file_an_unknown_name_and_no_file_are_named(bare, tmp_path):
    given = tmp_path / "model.pth"
    torch.save({}, given)
    with pytest.raises(UserError, match=r"model\.pth: neither its digest nor its name .* --as"):
        weightfile.add(given)
    with pytest.raises(UsageError, match="weights 'arcface' do not exist; known: dlib_identity"):
        weightfile.add(given, "arcface")
    with pytest.raises(UserError, match=r"none\.pth: no such file"):
        weightfile.add(tmp_path / "none.pth")


def test_a_copy_that_fails_leaves_what_was_there(bare, undated, tmp_path, monkeypatch):
    added = weightfile.add(write(tmp_path / "DISTS_weights-f5e65c96.pth", "dists"))
    before = added.path.read_bytes()
    torch.save({"alpha": torch.ones(1, 1475, 1, 1), "beta": torch.ones(1, 1475, 1, 1)}, tmp_path / "other.pth")

    def full(source, target):
        target.write_bytes(source.read_bytes()[:100])
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(weightfile.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        weightfile.add(tmp_path / "other.pth", "dists")
    assert added.path.read_bytes() == before
    assert list(bare.iterdir()) == [added.path]


def test_faults_are_those_of_the_files_that_are_here(bare, tmp_path):
    assert weightfile.faults() == {}
    bare.mkdir(parents=True)
    (bare / "arcface_r50.pth").write_bytes(b"")
    write(bare / "vgg16-397923af.pth", "vgg16")
    faults = weightfile.faults()
    assert set(faults) == {"arcface_r50", "vgg16"}
    assert "sha256 begins with" in faults["vgg16"]
