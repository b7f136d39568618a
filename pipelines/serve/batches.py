"""The networks of a replica: batches of fixed sizes, so that none compiles anew; weights replaced in place."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from osdface import bundle
from osdface.identity import similarities
from osdface.restorer import Restorer
from pipelines.serve.settings import Loaded, Settings


class Batches:
    """A restorer that is only ever given batches of 1, 2, 4, ... pictures."""

    def __init__(self, restorer: Restorer, plain: bool = True):
        self.restorer, self.size, self.plain = restorer, restorer.size, plain
        self.sizes = tuple(2**power for power in reversed(range(restorer.batch.bit_length())))

    @classmethod
    def load(cls, told: Loaded, settings: Settings) -> "Batches":
        """Of the bundle's folder, or where this machine has none, of its reference. Raises UserError."""
        torch.set_num_threads(settings.threads)
        ref = told.folder if Path(told.folder).is_dir() else told.ref
        restorer = Restorer.load(ref, settings.device, settings.dtype, execution=settings.execution)
        return cls(restorer, settings.execution == "plain")

    def take_over(self, fresh: "Batches") -> bool:
        """Fill these networks with another restorer's weights, where they are of the same architecture; else False."""
        ours, theirs = self.restorer.config, fresh.restorer.config
        if not (self.plain and ours and theirs and _shape(ours) == _shape(theirs)):
            return False
        self.restorer.generator.load_state_dict(fresh.restorer.generator.state_dict())
        self.restorer.config, self.restorer.path = theirs, fresh.restorer.path
        return True

    def crops(self, crops: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Aligned faces (S, S, 3) uint8 -> (S, S, 3) float32 in [0, 1]. Raises RuntimeError for what is no number."""
        restored: list[np.ndarray] = []
        while len(restored) < len(crops):
            left = len(crops) - len(restored)
            count = next(size for size in self.sizes if size <= left)
            restored += self.restorer.restore_crops(crops[len(restored) : len(restored) + count])
        return [_sound(crop) for crop in restored]

    def whole(self, image: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) uint8 in one pass, as `Restorer.restore` has it -> (h, w, 3) float32 in [0, 1]."""
        tensor = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)[None].float() / 255
        return _sound(self.restorer.restore(tensor)[0].permute(1, 2, 0).numpy())

    def identity(self, before: list[np.ndarray], after: list[np.ndarray]) -> tuple[float | None, ...]:
        """How much each face is still that person's."""
        return tuple(similarities(before, [(crop * 255).round().astype(np.uint8) for crop in after]))


def _shape(config: bundle.BundleConfig) -> tuple:
    return config.architecture(), config.base.sha256


def _sound(image: np.ndarray) -> np.ndarray:
    if not np.isfinite(image).all():
        raise RuntimeError("the model makes numbers that are none (NaN)")
    return image
