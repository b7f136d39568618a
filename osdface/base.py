"""The pretrained latent diffusion model a generator starts from: VAE, UNet and noise schedule.

On disk it is an ordinary diffusers folder (`unet/`, `vae/`, `scheduler/`): SD 2.1-base as published, or the small one
that `osdface train base` makes.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from osdface.config import digest
from osdface.errors import UserError
from osdface.files import aside, replace_folder, sha256
from osdface.presets import Preset

PARTS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}


class Base(NamedTuple):
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler


def new_base(preset: Preset) -> Base:
    """The preset's architecture with fresh weights (on torch's default device; `meta` builds it without memory).

    The VAE's residual branches begin at zero: a short training then learns through few layers first.
    """
    vae = AutoencoderKL(**preset.vae)
    for block in vae.modules():
        if isinstance(block, ResnetBlock2D):
            nn.init.zeros_(block.conv2.weight)
            nn.init.zeros_(block.conv2.bias)
    return Base(vae, UNet2DConditionModel(**preset.unet), DDIMScheduler(**preset.scheduler))


def load_base(folder: Path, dtype: torch.dtype = torch.float32) -> Base:
    """Read a diffusers folder; its own config.json files decide the architecture. Safetensors only.

    Where torch's default device is `meta`, names and shapes alone. Raises UserError naming the part that is missing or
    cannot be read.
    """
    check_base(folder)
    try:
        vae, unet = load_part(folder, "vae", dtype), load_part(folder, "unet", dtype)
        return Base(vae, unet, DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{folder}: cannot be read as a base model: {str(error).splitlines()[0]}") from error


def empty_unet(folder: Path) -> UNet2DConditionModel:
    """The UNet of a base folder without its weights, on the meta device: names and shapes.

    Raises UserError where its configuration is missing or cannot be read.
    """
    check_base(folder)
    try:
        with torch.device("meta"):
            return load_part(folder, "unet", torch.float32)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(f"{folder / 'unet'}: cannot be read as a UNet: {str(error).splitlines()[0]}") from error


def load_part(folder: Path, part: str, dtype: torch.dtype) -> Any:
    """One of PARTS of a base folder, its float32 tensors mapped from the file until they are written to.

    Where torch's default device is `meta`, names and shapes alone.
    """
    if torch.get_default_device().type == "meta":
        return PARTS[part].from_config(PARTS[part].load_config(folder / part, local_files_only=True))
    model, found = PARTS[part].from_pretrained(
        folder / part, torch_dtype=dtype, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=True,
        output_loading_info=True,
    )  # fmt: skip
    if missing := sorted(found["missing_keys"]):  # diffusers would fill them with random numbers
        raise UserError(f"{folder / part}: {len(missing)} tensors are missing, {missing[0]} the first of them")
    return model


def check_base(folder: Path) -> None:
    """Raise UserError unless `folder` has the parts of a base model."""
    missing = [name for name in ("unet/config.json", "vae/config.json", "scheduler") if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"{folder}: not a base model: {', '.join(missing)} missing; give a diffusers folder "
            "(SD 2.1-base, or one made by `osdface train base`)"
        )


def check_architecture(folder: Path) -> int:
    """The width of the prompt that the base's UNet takes, from the configurations alone.

    Raises UserError unless they make a generator: VAE and UNet must agree on latents, the UNet
    must take a prompt and nothing beside it, and predict noise (eq. 1).
    """
    check_base(folder)
    unet, vae, scheduler = (_configuration(folder, part) for part in ("unet", "vae", "scheduler"))
    wrong = {
        f"its UNet takes {unet.get('in_channels')} channels, its VAE makes {vae.get('latent_channels', 4)}": (
            unet.get("in_channels") != vae.get("latent_channels", 4)
        ),
        "its UNet needs sizes and a pooled text beside the prompt, as SDXL's does": unet.get("addition_embed_type"),
        f"it predicts {scheduler.get('prediction_type')}, not epsilon": (
            scheduler.get("prediction_type", "epsilon") != "epsilon"
        ),
    }
    if reasons := [reason for reason, holds in wrong.items() if holds]:
        raise UserError(f"{folder}: of another architecture: {reasons[0]}; give SD 2.1-base or one made like it")
    return int(unet.get("cross_attention_dim") or 0)


def _configuration(folder: Path, part: str) -> dict[str, Any]:
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a configuration ({str(error).splitlines()[0]})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a configuration")
    return found


def save_base(base: Base, folder: Path) -> None:
    """Write a diffusers folder aside, then rename it into place (an older one there is replaced)."""
    temporary = aside(folder)
    base.unet.save_pretrained(temporary / "unet")
    base.vae.save_pretrained(temporary / "vae")
    base.scheduler.save_pretrained(temporary / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (temporary / "model_index.json").write_text(json.dumps(index, indent=2))
    replace_folder(temporary, folder)


def base_digest(folder: Path) -> str:
    """sha256 over the names and contents of the configurations and weights of a base folder."""
    check_base(folder)
    files = [path for part in ("unet", "vae", "scheduler") for path in sorted((folder / part).iterdir())]
    kept = [path for path in files if path.suffix in (".json", ".safetensors")]
    return digest({str(path.relative_to(folder)): sha256(path) for path in kept})
