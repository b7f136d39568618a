"""FID's features by both conventions against pyiqa's own of picture files, with random weights in the published layout,
and the statistics of FFHQ by files that are read without executing anything in them."""

import pickle

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from osdface import weights
from osdface.errors import UserError
from osdface.weightfile import read_statistics
from pipelines import metrics
from pipelines.metrics import fid, frechet


@pytest.fixture
def network(folder):
    """The Inception network with random weights, and its file, which has none of the counts of newer torch."""
    from pyiqa.archs import inception

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_pretrained_network", lambda network, url: keep.append(network))
        keep: list[torch.nn.Module] = []
        torch.manual_seed(0)
        made = inception.InceptionV3().eval()
    tensors = {key: value for key, value in keep[0].state_dict().items() if "num_batches" not in key}
    torch.save(tensors, folder / weights.WEIGHTS["inception"].file)
    yield made
    fid.extractor.cache_clear()
    fid._inception.cache_clear()


def test_the_clean_features_are_those_of_pyiqa_from_files(network, photographs, tmp_path):
    from pyiqa.archs.fid_arch import get_folder_features

    for index, picture in enumerate(photographs):
        cv2.imwrite(str(tmp_path / f"{index}.png"), picture[..., ::-1])
    expected = get_folder_features(
        str(tmp_path), network, num_workers=0, device=torch.device("cpu"), mode="clean", verbose=False
    )
    distribution, _ = metrics.load(names=["fid.clean", "fid.vqfr"]).distributions[::-1]
    found = distribution.features(photographs)
    assert distribution.name == "fid.clean"
    assert found.shape == (2, 2048)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert np.abs(found[0] - found[1]).max() > 1e-3 * expected.max()


def test_the_features_of_vqfr_are_of_pictures_in_minus_one_to_one_resized_without_antialiasing(network, photographs):
    (distribution,) = metrics.load(names=["fid.vqfr"]).distributions
    images = torch.from_numpy(photographs / 255.0).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        (expected,) = network(F.interpolate((images - 0.5) / 0.5, (299, 299), mode="bilinear", align_corners=False))
    np.testing.assert_allclose(
        distribution.features(photographs), expected[:, :, 0, 0], rtol=1e-3, atol=1e-5 * float(expected.max())
    )


def test_both_kinds_share_network_and_features_and_say_what_they_compare_with(network, folder):
    suite = metrics.load(names=["fid.vqfr", "fid_ffhq.vqfr", "fid_ffhq.clean"])
    assert [(missing.name, missing.file) for missing in suite.missing] == [
        ("fid_ffhq.vqfr", "inception_FFHQ_512-f7b384ab.pth"),
        ("fid_ffhq.clean", "ffhq_clean_trainval70k_512.npz"),
    ]
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(5, 2048))
    mean, covariance = reference.mean(0), np.cov(reference, rowvar=False)
    torch.save({"name": "FFHQ", "mean": mean, "cov": covariance}, folder / weights.WEIGHTS["fid_ffhq_vqfr"].file)
    own, to_ffhq = metrics.load(names=["fid.vqfr", "fid_ffhq.vqfr"]).distributions
    assert (own.reference, to_ffhq.reference) == (True, False)
    assert own.extract is to_ffhq.extract
    assert own.digest != to_ffhq.digest
    features = rng.normal(size=(4, 2048)) + 1
    expected = frechet.frechet(features, reference)
    assert own.distance(features, reference) == pytest.approx(expected, rel=1e-6)
    assert to_ffhq.distance(features) == pytest.approx(expected, rel=1e-6)


def test_statistics_written_by_an_old_numpy_are_read(tmp_path):
    """It called its core by another name."""
    path = tmp_path / "old.pth"
    torch.save({"mean": np.ones(2048), "cov": np.eye(2048)}, path, pickle_module=_OldNumpy, pickle_protocol=2)
    assert b"numpy.core.multiarray" in path.read_bytes()
    mean, covariance = read_statistics("fid_ffhq_vqfr", path)
    np.testing.assert_array_equal(mean, np.ones(2048))
    np.testing.assert_array_equal(covariance, np.eye(2048))


class _OldNumpy:
    """What torch takes for a pickle module, writing numpy's former names."""

    class Pickler(pickle._Pickler):
        def save_global(self, obj, name=None):
            if getattr(obj, "__module__", "") != "numpy._core.multiarray":
                return super().save_global(obj, name)
            self.write(pickle.GLOBAL + f"numpy.core.multiarray\n{obj.__name__}\n".encode())
            self.memoize(obj)

        dispatch = pickle._Pickler.dispatch | {type(lambda: None): save_global, type(len): save_global}

    dumps, dump = pickle.dumps, pickle.dump


@pytest.mark.parametrize("convention", ["vqfr", "clean"])
def test_other_files_are_refused_and_named(tmp_path, convention):
    path = tmp_path / "statistics"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"statistics: .* or damaged"):
        fid.statistics(convention, path)
    with path.open("wb") as file:
        if convention == "vqfr":
            torch.save({"mean": np.ones(64), "cov": np.eye(64)}, file)
        else:
            np.savez(file, mu=np.ones(64), sigma=np.eye(64))
    with pytest.raises(UserError, match="statistics: not FID's statistics"):
        fid.statistics(convention, path)
