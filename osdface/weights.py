"""The third-party weight files: names, licences, digests, where they are looked for, what their absence switches off.

Nothing is ever downloaded, and nothing stands in for a file that is missing.
"""

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

from osdface.config import home
from osdface.errors import MissingWeights
from osdface.files import sha256


class Weights(NamedTuple):
    """One third-party file. sha256: the expected digest where it is known (a leading part for torchvision's names)."""

    file: str
    licence: str
    enables: str
    sha256: str | None = None


CC0 = "public domain"
TORCHVISION = "BSD-3-Clause"
WEIGHTS: dict[str, Weights] = {
    "dlib_identity": Weights(
        "dlib_face_recognition_resnet_model_v1.dat",
        CC0,
        "the identity loss and metric by dlib's network",
        "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
    ),
    "dlib_landmarks": Weights(
        "shape_predictor_5_face_landmarks.dat",
        CC0,
        "finding and aligning faces in photographs",
        "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
    ),
    "vgg19": Weights("vgg19-dcbb9e9d.pth", TORCHVISION, "the perceptual loss of stage 1 (eq. 7)", "dcbb9e9d"),
    "vgg16": Weights("vgg16-397923af.pth", TORCHVISION, "the EA-DISTS loss of stage 2 (eq. 14)", "397923af"),
    "dists": Weights("DISTS_weights-f5e65c96.pth", "MIT", "the EA-DISTS loss of stage 2 (eq. 14)", "f5e65c96"),
}


class Status(NamedTuple):
    """What is known of one file. digest: "as expected", "unknown" (none published), "differs", or "not checked"."""

    name: str
    file: str
    present: bool
    path: Path | None
    digest: str
    licence: str
    switches_off: str


def places() -> list[Path]:
    """The folders that are looked in, in order."""
    torch_hub = Path(os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch") / "hub"
    folders = [home() / "weights", torch_hub / "checkpoints", torch_hub / "pyiqa"]
    package = importlib.util.find_spec("face_recognition_models")  # found, not imported: its import is broken
    if package and package.origin:
        folders.append(Path(package.origin).parent / "models")
    return folders


def find(name: str) -> Path:
    """The path of a weight file. Raises MissingWeights saying where it was looked for and what it would enable."""
    wanted = WEIGHTS[name]
    for folder in places():
        if (folder / wanted.file).is_file():
            return folder / wanted.file
    raise MissingWeights(
        f"{wanted.file} is not on this machine, and {wanted.enables} needs it; put it into {home() / 'weights'}, or "
        "set that loss's weight to 0"
    )


def status(check: bool = False) -> list[Status]:
    """What is known of every file; with `check`, their digests are compared too."""
    return [_status(name, check) for name in WEIGHTS]


def _status(name: str, check: bool) -> Status:
    wanted = WEIGHTS[name]
    try:
        path = find(name)
    except MissingWeights:
        return Status(name, wanted.file, False, None, "not checked", wanted.licence, wanted.enables)
    digest = "not checked"
    if check:
        expected = wanted.sha256
        digest = "unknown" if expected is None else "as expected" if sha256(path).startswith(expected) else "differs"
    return Status(name, wanted.file, True, path, digest, wanted.licence, wanted.enables)
