"""The operators as Albumentations transforms, for anybody's `A.Compose`, `A.ReplayCompose`, `A.save` and `A.load`.

Each takes the fields of the step of its name in `degradations.steps` as keywords, with `p`, and draws from them as a
recipe does, though lengths are pixels of the picture given. Pictures are RGB, uint8 or float32 in [0, 1], and stay what
they were. Where pixels move (Downsample, Resize, Shift) masks, boxes and keypoints move with them; the others leave
them alone. Wrong or unknown fields raise ValueError.
"""

import inspect
from typing import Any, ClassVar

import albumentations as A
import numpy as np
from albumentations.augmentations.geometric import functional as geometric
from albumentations.core.type_definitions import Targets

from degradations import steps
from degradations.operators import RUN, size
from degradations.operators.pixels import check
from degradations.steps import Parameters, Step


class Drawn:
    """What all transforms share: parameters are drawn by `Step`, plain JSON, and applied by a pure function."""

    Step: ClassVar[type[Step]] = Step
    __signature__: ClassVar[inspect.Signature]

    def __init__(self, p: float = 1.0, **ranges: Any):
        super().__init__(p=p)  # type: ignore[call-arg]  # Albumentations' base comes next
        self.step = self.Step(p=p, **ranges)

    def __init_subclass__(cls) -> None:
        cls.Step = getattr(steps, cls.__name__, Step)
        fields = inspect.signature(cls.Step).parameters.values()
        cls.__signature__ = inspect.Signature([field for field in fields if field.name != "op"])  # what help() shows
        cls.__doc__ = cls.Step.__doc__

    def get_params_dependent_on_data(self, params: Parameters, data: dict[str, Any]) -> Parameters:
        return self.step.draw(self.random_generator, params["shape"], params["shape"])  # type: ignore[attr-defined]

    def apply(self, img: np.ndarray, *args: Any, shape: Any = None, **params: Any) -> np.ndarray:
        check(img)
        return RUN[self.step.op](img, **params)

    def get_transform_init_args(self) -> dict[str, Any]:
        return self.step.model_dump(mode="json", exclude={"op", "p"})


class Operator(Drawn, A.ImageOnlyTransform):
    """Changes pixels."""


class Moving(Drawn, A.DualTransform):
    """Moves pixels."""

    _targets = (Targets.IMAGE, Targets.MASK, Targets.BBOXES, Targets.KEYPOINTS)


class Blur(Operator): ...


class Sinc(Operator): ...


class USM(Operator): ...


class Resize(Moving):
    def new_size(self, shape: tuple[int, ...], params: Parameters) -> tuple[int, int]:
        return params["height"], params["width"]

    def apply_to_mask(self, mask: np.ndarray, *args: Any, shape: Any, **params: Any) -> np.ndarray:
        return size.resize(mask, *self.new_size(shape, params), "nearest")

    def apply_to_bboxes(self, bboxes: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return bboxes  # Albumentations keeps them as fractions

    def apply_to_keypoints(self, keypoints: np.ndarray, *args: Any, shape: Any, **params: Any) -> np.ndarray:
        height, width = self.new_size(shape, params)
        return geometric.keypoints_scale(keypoints, width / shape[1], height / shape[0])


class Downsample(Resize):
    def new_size(self, shape: tuple[int, ...], params: Parameters) -> tuple[int, int]:
        return size.downsampled(shape, params["factor"])


class Shift(Moving):
    def apply_to_mask(self, mask: np.ndarray, *args: Any, shape: Any, **params: Any) -> np.ndarray:
        return size.shift(mask, **params)

    def apply_to_bboxes(self, bboxes: np.ndarray, *args: Any, dx: int, dy: int, shape: Any, **_: Any) -> np.ndarray:
        by = np.array([dx / shape[1], dy / shape[0]] * 2, bboxes.dtype)
        return np.concatenate([bboxes[:, :4] + by, bboxes[:, 4:]], axis=1)

    def apply_to_keypoints(self, keypoints: np.ndarray, *args: Any, dx: int, dy: int, **params: Any) -> np.ndarray:
        return np.concatenate([keypoints[:, :2] + np.array([dx, dy], keypoints.dtype), keypoints[:, 2:]], axis=1)


class GaussianNoise(Operator): ...


class PoissonNoise(Operator): ...


class JPEG(Operator): ...


class ColourShift(Operator): ...


class ColourJitter(Operator): ...


class Grey(Operator): ...


class Haze(Operator): ...


class UnevenLight(Operator): ...
