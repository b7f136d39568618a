"""No release changes LQ pictures in silence: their digests are kept in tests/data/degraded.json.

`python tests/degradations/test_pinned.py` writes that file anew, for a change that is meant.
"""

import base64
import hashlib
import json
import os
import platform
import subprocess
import sys
import warnings
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from degradations import recipe as recipes
from degradations.degrade import degrade
from degradations.recipe import load

KEPT = Path(__file__).parent.parent / "data" / "degraded.json"
VARIANTS = 4
LIBRARIES = ("opencv-python-headless", "numpy", "scipy")


def photographs() -> dict[str, np.ndarray]:
    crowd = cv2.imread(str(files("insightface") / "data" / "images" / "t1.jpg"))[..., ::-1]
    return {"astronaut": skimage.data.astronaut(), "crowd": np.ascontiguousarray(crowd[150:662, 400:912])}


def pictures(name: str) -> dict[str, np.ndarray]:
    recipe = load(name)
    return {
        f"{photograph}-{variant}": degrade(image, recipe, (0, hashlib.sha256(image).hexdigest(), variant)).lq
        for photograph, image in photographs().items()
        for variant in range(VARIANTS)
    }


def means(image: np.ndarray) -> np.ndarray:
    """The 16 x 16 block means of the picture's luma, to tell a rounding from another picture."""
    return cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (16, 16), interpolation=cv2.INTER_AREA)


def machine() -> dict[str, str]:
    """What pictures may depend on beside the code. The photographs themselves are decoded by these libraries."""
    return {name: version(name) for name in LIBRARIES} | {"machine": platform.machine()}


def record() -> dict:
    kept = {"made_with": machine(), "recipes": {}}
    for name in recipes.names():
        kept["recipes"][name] = {
            "digest": load(name).digest,
            "pictures": {
                key: {
                    "sha256": hashlib.sha256(image).hexdigest(),
                    "means": base64.b64encode(means(image).tobytes()).decode(),
                }
                for key, image in pictures(name).items()
            },
        }
    return kept


def test_every_recipe_is_pinned():
    kept = json.loads(KEPT.read_text())["recipes"]
    assert {name: content["digest"] for name, content in kept.items()} == {
        name: load(name).digest for name in recipes.names()
    }


@pytest.mark.parametrize("name", recipes.names())
def test_pictures_are_the_kept_ones(name):
    """Bit for bit; where a library differs from the one they were made with, the block means decide, with a warning."""
    everything = json.loads(KEPT.read_text())
    kept = everything["recipes"][name]["pictures"]
    for key, image in pictures(name).items():
        if hashlib.sha256(image).hexdigest() == kept[key]["sha256"]:
            continue
        before = np.frombuffer(base64.b64decode(kept[key]["means"]), np.uint8).reshape(16, 16)
        off = np.abs(means(image).astype(int) - before).max()
        assert off <= 1, f"{name}, {key}: another picture, block means differ by up to {off}"
        other = {
            what: (was, machine()[what]) for what, was in everything["made_with"].items() if was != machine()[what]
        }
        assert other, f"{name}, {key}: pixels changed, and no library did"
        warnings.warn(f"{name}, {key}: pixels differ by a rounding; made with, now: {other}", stacklevel=1)


PLAIN_CPU = {  # as on an old processor: SSE3 for OpenCV and numpy, without Intel's library, no vectors for libjpeg
    "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FMA3,AVX,FP16,SSE4.2,SSE4.1",
    "OPENCV_IPP": "disabled",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Nehalem",
    "JSIMD_FORCENONE": "1",
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="switches off vector units of x86")
def test_pictures_do_not_depend_on_the_processors_vector_units():
    """Every recipe but for gfpgan's ColourJitter, whose hue is OpenCV's in floating point (docs/degradations.md)."""
    done = subprocess.run(
        [sys.executable, __file__, "digests"],
        env=os.environ | PLAIN_CPU | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    plain = json.loads(done.stdout)
    assert len(plain) == len(recipes.names()) - 1
    for name, digests in plain.items():
        assert digests == {key: hashlib.sha256(image).hexdigest() for key, image in pictures(name).items()}, name


if __name__ == "__main__":
    if sys.argv[1:] == ["digests"]:
        names = [name for name in recipes.names() if name != "gfpgan"]
        print(
            json.dumps({n: {k: hashlib.sha256(image).hexdigest() for k, image in pictures(n).items()} for n in names})
        )
    else:
        KEPT.write_text(json.dumps(record(), indent=1) + "\n")
