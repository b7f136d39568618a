"""The third-party weight files: names, licences, digests, where they are looked for, what their absence switches off.

`osdface.weightfile` tells whether a file is what it claims to be, and puts one where it is looked for.

Nothing is ever downloaded, and nothing stands in for a file that is missing. dlib's 68-point landmarks, which lie in
the same package as three of these, are left out on purpose: trained on iBUG 300-W, they are not for commercial use.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from osdface.config import home
from osdface.errors import MissingWeights
from osdface.files import sha256

Digest = Literal["ok", "mismatch", "unknown", "not checked"]


class Weights(NamedTuple):
    """One third-party file.

    commercial: whether its licence allows commercial use, None where its authors do not say. otherwise: what to do
    without it. sha256: its digest, or the first eight digits where only its published name is known. package: its
    path in an installed package that brings it. published: other names under which a file of this kind is handed out.
    """

    file: str
    licence: str
    commercial: bool | None
    enables: str
    otherwise: str
    sha256: str | None = None
    package: str | None = None
    published: tuple[str, ...] = ()


TORCHVISION = "torchvision's (BSD-3-Clause code, none stated for weights)"
IQA = "CC-BY-NC-SA-4.0 as distributed by pyiqa"
UT = "University of Texas, free for any purpose with notice"
FFHQ = "none stated, of pictures under CC-BY-NC-SA-4.0"
DLIB = "face_recognition_models/models/"
IDENTITY, LANDMARKS = "dlib_face_recognition_resnet_model_v1.dat", "shape_predictor_5_face_landmarks.dat"
MMOD, LPIPS = "mmod_human_face_detector.dat", "lpips/weights/v0.1/"
NIQE = "niqe_modelparameters.mat"
DLIBS_FEATURES = "choose dlib's features for that loss"
EA_DISTS = ("EA-DISTS (eq. 14) over VGG16", DLIBS_FEATURES)
INSIGHTFACE = ("insightface's, non-commercial research", False, "the identity loss (eq. 13) by insightface's ArcFace")
DLIBS_IDENTITY = "choose dlib's network for that loss"
NO_METRIC = "leave that metric out"

# fmt: off
WEIGHTS: dict[str, Weights] = {
    "dlib_identity": Weights(
        IDENTITY, "CC0", True, "the identity loss (eq. 13) by dlib's network, and perceptual losses over its features",
        "install face-recognition-models, or set the weights of those losses to 0",
        "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30", DLIB + IDENTITY),
    "dlib_landmarks": Weights(
        LANDMARKS, "CC0", True, "finding and aligning faces in photographs", "install face-recognition-models",
        "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888", DLIB + LANDMARKS),
    "dlib_mmod": Weights(
        MMOD, "CC0", True, "face detection by dlib's CNN", "use dlib's frontal detector",
        "4cb19393e2fbaf2b1609a9319ad5386618c886a6234ec1b971f3e87c85d87fe6", DLIB + MMOD),
    "vgg19": Weights(
        "vgg19-dcbb9e9d.pth", TORCHVISION, None, "the perceptual loss of stage 1 (eq. 7) by VGG19",
        DLIBS_FEATURES + ", or set losses.perceptual to 0",
        "dcbb9e9d"),
    "vgg16": Weights(
        "vgg16-397923af.pth", TORCHVISION, None, "EA-DISTS (eq. 14) and LPIPS over VGG16", DLIBS_FEATURES, "397923af"),
    "dists": Weights("DISTS_weights-f5e65c96.pth", "MIT", True, *EA_DISTS, "f5e65c96"),
    "lpips_vgg": Weights(
        "LPIPS_v0.1_vgg-a78928a0.pth", "BSD-2-Clause", True, "LPIPS over VGG16", DLIBS_FEATURES,
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868", LPIPS + "vgg.pth"),
    "lpips_alex": Weights(
        "LPIPS_v0.1_alex-df73285e.pth", "BSD-2-Clause", True, "LPIPS over AlexNet", NO_METRIC,
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0", LPIPS + "alex.pth"),
    "alexnet": Weights("alexnet-owt-7be5be79.pth", TORCHVISION, None, "LPIPS over AlexNet", NO_METRIC, "7be5be79"),
    "arcface_r100": Weights(
        "arcface_r100.pth", *INSIGHTFACE, DLIBS_IDENTITY, published=("backbone.pth",)),
    "arcface_r50": Weights("arcface_r50.pth", *INSIGHTFACE, DLIBS_IDENTITY, published=("backbone.pth",)),
    "arcface_r18": Weights(
        "arcface_resnet18.pth", "none stated", None, "the identity loss (eq. 13) by the ancestors' grey ArcFace",
        DLIBS_IDENTITY, published=("resnet18_110.pth",)),
    "inception": Weights("pt_inception-2015-12-05-6726825d.pth", "Apache-2.0", True, "FID", NO_METRIC, "6726825d"),
    "musiq": Weights("musiq_koniq_ckpt-e95806b9.pth", IQA, False, "MUSIQ", NO_METRIC, "e95806b9"),
    "niqe": Weights(
        NIQE, UT, True, "NIQE", NO_METRIC,
        "497639441fab8fc4b91df162427eef62e9d1eb25a7e16c3b3cb64735f480eb3e", "pipelines/metrics/" + NIQE),
    "clip_rn50": Weights(
        "RN50.pt", "MIT", True, "CLIPIQA", NO_METRIC,
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"),
    "maniqa": Weights("ckpt_koniq10k.pt", IQA, False, "MANIQA", NO_METRIC),
    "fid_ffhq_vqfr": Weights(
        "inception_FFHQ_512-f7b384ab.pth", FFHQ, None, "FID to FFHQ as VQFR computes it", NO_METRIC, "f7b384ab",
        published=("inception_FFHQ_512.pth",)),
    "fid_ffhq_clean": Weights(
        "ffhq_clean_trainval70k_512.npz", FFHQ, None, "FID to FFHQ as clean-fid computes it", NO_METRIC),
    "deg": Weights("resnet18_110.pth", "none stated", None, "the identity angle Deg.", NO_METRIC),
    "lmd": Weights("alignment_WFLW_4HG.pth", "none stated", None, "the landmark distance LMD", NO_METRIC),
}
# fmt: on


class Status(NamedTuple):
    """What is known of one file.

    digest: "unknown" where none is known to compare with. expected: its sha256, or the first eight digits of it.
    looked_in: the folders, in order. switches_off: what its absence does; otherwise: what to do then.
    """

    name: str
    file: str
    present: bool
    path: Path | None
    digest: Digest
    expected: str | None
    looked_in: list[Path]
    licence: str
    commercial: bool | None
    switches_off: str
    otherwise: str


def places(name: str) -> Iterator[Path]:
    """The paths at which a file is looked for, in order: ours, its package, torch hub's cache, insightface's folder."""
    file, package = WEIGHTS[name].file, WEIGHTS[name].package
    yield home() / "weights" / file
    if package:
        top, _, inside = package.partition("/")
        spec = importlib.util.find_spec(top)  # found, not imported: face_recognition_models fails to import
        if spec and spec.origin:
            yield Path(spec.origin).parent / inside
    from torch import hub  # here, so that what lies in a package does not wait for torch

    yield Path(hub.get_dir()) / "checkpoints" / file
    yield Path(hub.get_dir()) / "pyiqa" / file
    yield Path(hub.get_dir()) / "clip" / file
    yield Path.home() / ".insightface" / "models" / "buffalo_l" / file


def present(name: str) -> Path | None:
    """The path of a weight file, None where it is not on this machine."""
    return next((path for path in places(name) if path.is_file()), None)


def find(name: str) -> Path:
    """The path of a weight file. Raises MissingWeights naming the file, where it was looked for, and what to do."""
    if path := present(name):
        return path
    wanted = WEIGHTS[name]
    first, *others = (path.parent for path in places(name))
    raise MissingWeights(
        f"{wanted.file} is not on this machine and {wanted.enables} needs it: `osdface weights add FILE` puts it into "
        f"{first} (also looked in {', '.join(map(str, others))}), or {wanted.otherwise}"
    )


def compare(name: str, path: Path) -> Digest:
    """Whether a file has the digest that is known of it."""
    expected = WEIGHTS[name].sha256
    return "unknown" if not expected else "ok" if sha256(path).startswith(expected) else "mismatch"


def status(check: bool = False) -> list[Status]:
    """What is known of every file; with `check`, those present are hashed and compared."""
    return [_status(name, check) for name in WEIGHTS]


def _status(name: str, check: bool) -> Status:
    wanted, path = WEIGHTS[name], present(name)
    return Status(
        name,
        wanted.file,
        path is not None,
        path,
        compare(name, path) if path and check else "not checked",
        wanted.sha256,
        [place.parent for place in places(name)],
        wanted.licence,
        wanted.commercial,
        wanted.enables,
        wanted.otherwise,
    )
