"""What stage 1 writes, and what it may start from.

VRE/
  hq.safetensors, lq.safetensors   both autoencoders, by the names of the published tensors
  config.json                      format_version, preset, and how the tokenizer's input is normalised
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from osdface import bundle, presets, tensors
from osdface.autoencoder import VQAutoencoder
from osdface.config import Strict
from osdface.errors import UserError


class OutputConfig(Strict):
    """config.json of a stage-1 output; one without a format_version is of the first, with its input normalised once."""

    format_version: Literal[1] = 1
    preset: str
    input: presets.VREInput = "once"


class Start(NamedTuple):
    """What a training starts from: tensors by autoencoder ("hq", "lq"), and how the tokenizer's input is normalised.

    "lq" may hold the encoder and the dictionary alone, as a bundle does.
    """

    tensors: dict[str, dict[str, Tensor]]
    input: presets.VREInput


def write_output(folder: Path, autoencoders: Mapping[str, VQAutoencoder], preset: str) -> None:
    """Write a finished stage 1."""
    folder.mkdir(parents=True)
    for name, autoencoder in autoencoders.items():
        kept = {k: v.detach().float().cpu().contiguous() for k, v in autoencoder.state_dict().items()}
        save_file(kept, folder / f"{name}.safetensors")
    config = OutputConfig(preset=preset, input=autoencoders["lq"].shape.input)
    (folder / "config.json").write_text(config.model_dump_json(indent=2))


def load_vre(folder: Path, preset: presets.Preset) -> VQAutoencoder:
    """The LQ autoencoder of a finished stage 1, its shape with that stage's input.

    Raises UserError naming what is missing or differs.
    """
    if not (folder / "lq.safetensors").is_file():
        raise UserError(f"{folder}: not a stage-1 output (no lq.safetensors); make one with `osdface train vre`")
    shape = preset.vre.model_copy(update={"input": _read_config(folder, preset).input})
    autoencoder = VQAutoencoder(shape)
    autoencoder.load_state_dict(_read(folder / "lq.safetensors", tensors.shapes(autoencoder.state_dict()), preset))
    return autoencoder


def load_start(folder: Path, preset: presets.Preset) -> Start:
    """The autoencoders of a stage-1 output, or the LQ encoder and dictionary of a bundle, whichever `folder` is.

    Raises UserError where it is neither, or of another preset.
    """
    with torch.device("meta"):
        whole = tensors.shapes(VQAutoencoder(preset.vre).state_dict())
    if (folder / "lq.safetensors").is_file():
        found = {name: _read(folder / f"{name}.safetensors", whole, preset) for name in ("hq", "lq")}
        return Start(found, _read_config(folder, preset).input)
    if (folder / bundle.VRE).is_file():
        encoding = {name: size for name, size in whole.items() if not name.startswith(("decoder.", "post_quant_conv."))}
        vre_input = bundle.read_config(folder).architecture().vre.input
        return Start({"lq": _read(folder / bundle.VRE, encoding, preset)}, vre_input)
    raise UserError(
        f"{folder}: nothing that stage 1 can start from (no lq.safetensors, no {bundle.VRE}); give an output of "
        "`osdface train vre` or a model bundle"
    )


def _read_config(folder: Path, preset: presets.Preset) -> OutputConfig:
    path = folder / "config.json"
    try:
        return OutputConfig.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        return OutputConfig(preset=preset.name)
    except (json.JSONDecodeError, ValidationError) as error:
        raise UserError(
            f"{path}: not the configuration of a stage-1 output that this program reads, format 1 "
            f"({str(error).splitlines()[0]})"
        ) from None


def _read(path: Path, expected: dict[str, torch.Size], preset: presets.Preset) -> dict[str, Tensor]:
    found = tensors.read_safetensors(path)
    tensors.check(f"{path} does not fit preset '{preset.name}', train with the one that made it", expected, found)
    return found
