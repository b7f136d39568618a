"""Whether a third-party weight file is what it claims to be, and putting one where it is looked for."""

import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from osdface import weights
from osdface.config import home
from osdface.errors import UsageError, UserError
from osdface.files import aside, sha256, sync
from osdface.tensors import check as check_tensors
from osdface.tensors import read_pickle, shapes
from osdface.weights import WEIGHTS

if TYPE_CHECKING:
    import numpy as np

DIGITS = 8  # of a digest, in a message
FEATURES = 2048  # of FID's network
STATISTICS = {"fid_ffhq_vqfr": ("mean", "cov"), "fid_ffhq_clean": ("mu", "sigma")}


class Added(NamedTuple):
    """A file put into place. digest: its sha256; known: whether that is the published one's, None if unknown."""

    name: str
    path: Path
    digest: str
    known: bool | None
    enables: str


def add(path: Path, name: str | None = None) -> Added:
    """Copy a file to where it is looked for, after it was recognised, by digest or file name, and read.

    `name` says what it is where its file name does not. Raises UserError, and copies nothing, where it is no known
    file, damaged, or another network's; UsageError for an unknown `name`.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if name and name not in WEIGHTS:
        raise UsageError(f"weights '{name}' do not exist; known: {', '.join(WEIGHTS)}")
    found = _first_that_fits([name] if name else recognise(path), path)
    target = home() / "weights" / WEIGHTS[found].file
    if not (target.exists() and target.samefile(path)):
        _copy(path, target)
    known = True if weights.compare(found, target) == "ok" else None
    return Added(found, target, sha256(target), known, WEIGHTS[found].enables)


def recognise(path: Path) -> list[str]:
    """The names of what a file may be, by its digest, else by its file name. Raises UserError where there is none."""
    digest = sha256(path)
    ways: list[Callable[[weights.Weights], bool]] = [
        lambda wanted: wanted.sha256 is not None and digest.startswith(wanted.sha256),
        lambda wanted: path.name == wanted.file,
        lambda wanted: path.name in wanted.published,
    ]
    for way in ways:
        if names := [name for name, wanted in WEIGHTS.items() if way(wanted)]:
            return names
    raise UserError(
        f"{path}: neither its digest nor its name is a known weight file's; say what it is with --as "
        f"({', '.join(WEIGHTS)})"
    )


def verify(name: str, path: Path) -> None:
    """Raise UserError, in one sentence, unless a file has the known digest of `name` and holds its tensors."""
    if weights.compare(name, path) == "mismatch":
        expected = (WEIGHTS[name].sha256 or "")[:DIGITS]
        raise UserError(
            f"{path}: not the published {WEIGHTS[name].file}: its sha256 begins with {sha256(path)[:DIGITS]} where "
            f"{expected} is expected; fetch it again"
        )
    READERS[name](name, path)


def faults() -> dict[str, str]:
    """What is wrong with the files that are on this machine: name -> sentence."""
    found = {}
    for name in WEIGHTS:
        if path := weights.present(name):
            try:
                verify(name, path)
            except UserError as error:
                found[name] = str(error)
    return found


def _first_that_fits(names: list[str], path: Path) -> str:
    refused = []
    for name in names:
        try:
            verify(name, path)
        except UserError as error:
            refused.append(str(error))
        else:
            return name
    raise UserError("; ".join(refused))


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = aside(target)
    try:
        shutil.copyfile(path, temporary)
        sync(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _torchvision(name: str, path: Path) -> None:
    import torch
    from torchvision import models

    with torch.device("meta"):
        expected = shapes(models.get_model(name).state_dict())
    check_tensors(f"{path}: not {name}'s weights", expected, read_pickle(path))


def _dists(name: str, path: Path) -> None:
    from osdface.losses.perceptual import read_dists

    read_dists(path)


def _lpips(name: str, path: Path) -> None:
    from osdface.losses.perceptual import LPIPS_WIDTHS, read_lpips

    read_lpips(path, LPIPS_WIDTHS[name])


def _identity(name: str, path: Path) -> None:
    from osdface import identity

    identity.load({"dlib_identity": "dlib", "deg": "arcface_r18"}.get(name, name), path)


def _dlib(name: str, path: Path) -> None:
    import dlib

    read = dlib.shape_predictor if name == "dlib_landmarks" else dlib.cnn_face_detection_model_v1
    try:
        read(str(path))
    except RuntimeError as error:
        raise UserError(f"{path}: dlib cannot read it ({str(error).splitlines()[0]}); fetch it again") from None


def _tensors(name: str, path: Path) -> None:
    """Of networks that are not built here: a state dict, bare or under "state_dict"."""
    from torch import Tensor

    read: Any = read_pickle(path)
    if isinstance(read, Mapping) and isinstance(read.get("state_dict"), Mapping):
        read = read["state_dict"]
    if not (isinstance(read, Mapping) and read and all(isinstance(value, Tensor) for value in read.values())):
        raise UserError(f"{path}: holds no tensors by name, as {WEIGHTS[name].file} does; fetch it again")


def _matlab(name: str, path: Path) -> None:
    from scipy.io import loadmat, whosmat

    wanted = {"mu_prisparam", "cov_prisparam"}
    try:
        held = {found for found, *_ in whosmat(path)}
        loadmat(path, variable_names=list(wanted))
    except Exception as error:  # scipy raises many kinds for files that are none of MATLAB's
        raise UserError(f"{path}: not a file of MATLAB, or damaged ({error}); fetch it again") from None
    if not wanted <= held:
        raise UserError(f"{path}: not NIQE's parameters ({', '.join(sorted(wanted - held))} missing)")


def _torchscript(name: str, path: Path) -> None:
    """Its digest says whether it is the published one; here, only whether it is an archive of that kind."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not an archive of TorchScript, or damaged ({error}); fetch it again") from None
    if not any("/code/" in held for held in inside):
        raise UserError(f"{path}: holds no program, as {WEIGHTS[name].file} does; fetch it again")


def read_statistics(name: str, path: Path) -> "tuple[np.ndarray, np.ndarray]":
    """FID's statistics of a set of pictures: mean (2048,) and covariance (2048, 2048), float.

    Raises UserError where the file holds something else.
    """
    import numpy as np

    keys = STATISTICS[name]
    read = read_pickle(path, arrays=True) if name == "fid_ffhq_vqfr" else _read_npz(path)
    found = [np.asarray(read[key]) for key in keys if key in read] if isinstance(read, Mapping) else []
    if [array.shape for array in found] != [(FEATURES,), (FEATURES, FEATURES)]:
        raise UserError(f"{path}: not FID's statistics ({' and '.join(keys)} of {FEATURES} features)")
    return found[0], found[1]


def _read_npz(path: Path) -> "dict[str, np.ndarray]":
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # damaged archives raise many kinds
        raise UserError(f"{path}: not an archive of numpy, or damaged ({error}); fetch it again") from None


def _statistics(name: str, path: Path) -> None:
    read_statistics(name, path)


READERS: dict[str, Callable[[str, Path], None]] = {
    "dlib_identity": _identity,
    "dlib_landmarks": _dlib,
    "dlib_mmod": _dlib,
    "vgg19": _torchvision,
    "vgg16": _torchvision,
    "dists": _dists,
    "lpips_vgg": _lpips,
    "lpips_alex": _lpips,
    "alexnet": _torchvision,
    "arcface_r100": _identity,
    "arcface_r50": _identity,
    "arcface_r18": _identity,
    "inception": _tensors,
    "musiq": _tensors,
    "niqe": _matlab,
    "clip_rn50": _torchscript,
    "maniqa": _tensors,
    "fid_ffhq_vqfr": _statistics,
    "fid_ffhq_clean": _statistics,
    "deg": _identity,
    "lmd": _tensors,
}
