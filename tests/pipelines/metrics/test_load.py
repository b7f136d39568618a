"""What is loaded, what is listed as missing, and that nothing stands in for it."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.torch import save_file

from osdface import weights
from osdface.errors import UsageError
from pipelines import metrics
from pipelines.metrics import embedder
from pipelines.metrics.table import SETS, SINGLES

HERE = ["psnr", "ssim", "lpips.dlib", "dists.dlib", "niqe", "identity.dlib"]  # by packages and this repository
OWN = list(embedder.NAMES)  # by this repository's network


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """A file of the repository's network, whether or not one has been trained."""
    monkeypatch.setattr(embedder, "FILE", tmp_path / "embedder.safetensors")
    save_file(embedder.kept(embedder.Embedder()), embedder.FILE)


def test_without_weights_of_others_the_rest_is_listed_with_its_files(folder):
    suite = metrics.load()
    assert [metric.name for metric in suite.metrics] == HERE + OWN[:3]
    assert [distribution.name for distribution in suite.distributions] == OWN[3:]
    assert {missing.name for missing in suite.missing} == set(metrics.NAMES) - set(HERE) - set(OWN)
    for missing in suite.missing:
        assert missing.where == str(folder)
        assert missing.file in {entry.file for entry in weights.WEIGHTS.values()}
    of_dists = [missing.file for missing in suite.missing if missing.name == "dists"]
    assert of_dists == ["DISTS_weights-f5e65c96.pth", "vgg16-397923af.pth"]
    assert not (folder.parent / "hub").exists()


def test_the_table_is_sound():
    assert len(set(metrics.NAMES)) == len(metrics.NAMES) == len(SINGLES) + len(SETS) + len(OWN)
    for entry in (*SINGLES, *SETS):
        for file in (name for files in entry.files for name in files):
            assert file in weights.WEIGHTS, entry.name


def test_labels_are_network_and_digest(folder):
    labels = {metric.name: (metric.network, metric.digest) for metric in metrics.load().metrics}
    assert labels["psnr"] == labels["ssim"] == ("", "")
    assert labels["identity.dlib"] == ("dlib", weights.WEIGHTS["dlib_identity"].sha256[:16])


def test_without_references_only_what_needs_none(folder):
    suite = metrics.load(references=False)
    assert [metric.name for metric in suite.metrics] == ["niqe"]
    assert {missing.name for missing in suite.missing} == {
        "musiq", "clipiqa", "maniqa", "fid_ffhq.vqfr", "fid_ffhq.clean",
    }  # fmt: skip
    with pytest.raises(UsageError, match="metric 'psnr' compares with reference pictures, and there are none"):
        metrics.load(names=["psnr"], references=False)


def test_names_choose_and_an_unknown_one_is_told_the_known():
    assert [metric.name for metric in metrics.load(names=["ssim", "psnr"]).metrics] == ["psnr", "ssim"]
    suite = metrics.load(names=[OWN[1]])
    assert [metric.name for metric in suite.metrics] == [OWN[1]]
    assert suite.distributions == suite.missing == []
    with pytest.raises(UsageError, match=r"metric 'lpips' does not exist; known: psnr, ssim, lpips\.vgg, .*fid\.vqfr"):
        metrics.load(names=["psnr", "lpips"])


def test_references_of_another_shape_are_an_error_of_the_caller():
    (metric,) = metrics.load(names=["psnr"]).metrics
    pictures = np.zeros((2, 8, 8, 3), np.uint8)
    for references in (None, pictures[:1]):
        with pytest.raises(ValueError, match="same shape"):
            metric(pictures, references)


def test_loading_imports_nothing_slow_before_it_is_needed():
    code = "import sys; from pipelines import metrics; metrics.load(); print({'pyiqa', 'facexlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
