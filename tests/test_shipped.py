"""What the bundle that ships makes of sixteen faces that no training saw: as good as it was, better than what it got.

`python -m tests.test_shipped` notes its figures anew, where another bundle or another generator of faces means it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from degradations.degrade import degrade
from degradations.recipe import load
from osdface import bundle, procedural
from osdface.restorer import Restorer
from pipelines import metrics

NOTED = Path(__file__).parent / "data" / "shipped.json"
FACES, FIRST = 16, 70_000_000  # seeds from here on are kept for tests
HIGHER, LOWER = ("psnr", "ssim", "identity.procedural"), ("dists.procedural",)
TOLERANCE = 0.01  # of a figure: other processors round otherwise


def measured() -> dict[str, Any]:
    """Means over the faces, of what the restorer gets and of what it makes."""
    recipe, folder = load("dual_sequential_64"), bundle.resolve("tiny")
    hq = [_face(FIRST + number) for number in range(FACES)]
    lq = [degrade(face, recipe, (0, hashlib.sha256(face.tobytes()).hexdigest(), 0)).lq for face in hq]
    restored = [(face * 255).round().astype(np.uint8) for face in Restorer.load(folder).restore_crops(lq)]
    suite = metrics.load(names=[*HIGHER, *LOWER])
    figures: dict[str, Any] = {
        name: {one.name: float(np.mean(one(np.stack(pictures), np.stack(hq)))) for one in suite.metrics}  # type: ignore[arg-type]
        for name, pictures in (("lq", lq), ("restored", restored))
    }
    return figures | {"bundle": bundle.digest(folder)}


def _face(seed: int) -> np.ndarray:
    return procedural.render(procedural.sample(seed), 64)


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return measured()


def test_it_restores_as_well_as_it_did(figures):
    noted = json.loads(NOTED.read_text())
    assert noted["bundle"] == figures["bundle"], "another bundle ships: python -m tests.test_shipped"
    for who in ("lq", "restored"):
        assert figures[who] == pytest.approx(noted[who], rel=TOLERANCE), who


@pytest.mark.parametrize("name", [*HIGHER, *LOWER])
def test_what_it_makes_is_better_than_what_it_got(figures, name):
    gain = figures["restored"][name] - figures["lq"][name]
    assert gain * (-1 if name in LOWER else 1) > 0


if __name__ == "__main__":
    NOTED.write_text(json.dumps(measured(), indent=2) + "\n")
