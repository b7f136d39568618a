"""Files of named tensors, read strictly: what is missing, unknown or of another shape is named, never passed over."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osdface.errors import UserError

if TYPE_CHECKING:
    from torch import Size, Tensor

SHOWN = 4  # differences named in a message


def read_safetensors(path: Path) -> "dict[str, Tensor]":
    """The tensors of a safetensors file. Raises UserError where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or 'not there'})") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file, or damaged ({error}); fetch it again") from None


def read_pickle(path: Path, arrays: bool = False) -> Any:
    """What a torch checkpoint (.ckpt, .pth) holds, if that is tensors and plain containers; nothing in it is executed.

    arrays: numpy's of floats are taken too. Raises UserError where it is missing, damaged, or holds anything else.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_numpy_arrays() if arrays else []):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)", str(error))
        what = f"{named[1] or named[2]} in it" if named else "not a checkpoint of torch, or damaged"
        raise UserError(f"{path}: refused, it holds more than tensors ({what}); save its state_dict alone") from None
    except Exception as error:  # damaged archives raise many kinds
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a checkpoint of torch, or damaged ({first}); fetch it again") from None


def _numpy_arrays() -> list[Any]:
    """What a pickle of an array names: its maker, under the names of old and new versions, and its types."""
    import numpy as np

    make = np.zeros(0).__reduce__()[0]
    made = [(make, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    return [*made, np.ndarray, np.dtype, *(type(np.dtype(name)) for name in ("float32", "float64"))]


def check(name: str | Path, expected: "Mapping[str, Size]", found: Mapping[str, Any]) -> None:
    """Raise UserError, in one sentence, unless `found` has tensors of exactly the expected names and shapes."""
    faults = [f"{key} {tuple(shape)} is missing" for key, shape in expected.items() if key not in found]
    for key, value in found.items():
        shape = getattr(value, "shape", None)
        has = tuple(shape) if shape is not None else type(value).__name__
        if key not in expected:
            faults.append(f"{key} {has} is unknown")
        elif has != tuple(expected[key]):
            faults.append(f"{key} is {has} where {tuple(expected[key])} is expected")
    if faults:
        more = f", and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(f"{name}: {len(faults)} tensors differ from those expected: {', '.join(faults[:SHOWN])}{more}")


def shapes(tensors: "Mapping[str, Tensor]") -> "dict[str, Size]":
    """Names and shapes, as `check` expects them."""
    return {name: tensor.shape for name, tensor in tensors.items()}
