"""Pictures as callers of the Python API have them, to uint8 RGB arrays and back."""

import os
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageOps

from osdface.errors import UsageError, UserError
from osdface.imagefile import read_image, to_rgb
from osdface.picturefile import MAX_PIXELS

Picture = Image.Image | np.ndarray | str | os.PathLike
# pil: PIL.Image; np and pt: float32 in [0, 1], (H, W, 3) and (3, H, W), as in diffusers; array: uint8 (H, W, 3).
OutputType = Literal["pil", "np", "pt", "array"]


def to_array(picture: Picture) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a PIL image, an array, or a picture file's path; orientation applied, alpha over white.

    Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): uint8, uint16, or floats in [0, 1]. Raises UserError for what
    is none of these, has no pixels, or cannot be read.
    """
    if isinstance(picture, np.ndarray):
        return _of_array(picture)
    if isinstance(picture, Image.Image):
        return np.asarray(to_rgb(ImageOps.exif_transpose(picture)))
    if isinstance(picture, str | os.PathLike):
        try:
            return read_image(Path(picture).read_bytes(), str(picture), MAX_PIXELS)
        except OSError as error:
            raise UserError(f"{picture}: cannot be read ({error.strerror}); give a picture file") from None
    raise UserError(f"a {type(picture).__name__} is no picture; give a PIL image, an array, or a file's path")


def _of_array(array: np.ndarray) -> np.ndarray:
    if not array.size or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise UserError(f"an array {array.shape} is no picture; give (H, W), or (H, W, channels) of 1, 3 or 4 channels")
    if array.dtype == np.uint16:
        array = (array / np.float32(257)).round().astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # NaN, too
            raise UserError(
                f"an array of floats is a picture in [0, 1]; this one has {array.min():.3g}, {array.max():.3g}"
            )
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise UserError(f"an array of {array.dtype} is no picture; give uint8, uint16, or floats in [0, 1]")
    if array.ndim == 3 and array.shape[2] == 3:
        return array
    return np.asarray(to_rgb(Image.fromarray(array.squeeze(2) if array.shape[2:] == (1,) else array)))


def from_array(array: np.ndarray, output_type: OutputType) -> Any:
    """A uint8 RGB array as `output_type`. Raises UsageError listing the known ones."""
    if output_type == "array":
        return array
    if output_type == "pil":
        return Image.fromarray(array)
    if output_type == "np":
        return array.astype(np.float32) / 255
    if output_type == "pt":
        import torch

        return torch.from_numpy(array.astype(np.float32) / 255).permute(2, 0, 1)
    raise UsageError(f"output_type '{output_type}' does not exist; known: {', '.join(get_args(OutputType))}")
