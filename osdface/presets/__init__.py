"""Presets: every architecture number in one place, one YAML file each."""

from pathlib import Path
from typing import Any, Literal

from osdface.config import Strict, load
from osdface.errors import UsageError

FOLDER = Path(__file__).parent
# How often the tokenizer's input is normalised by x -> 2x - 1. Once: the encoder sees [-1, 1]. Twice: it sees [-3, 1],
# as in the published program, whose weights need it.
VREInput = Literal["once", "twice"]
PromptKind = Literal["vre", "vre_cat", "learned", "empty", "clip"]  # `osdface.prompts` says what each is
VISUAL_PROMPTS: tuple[PromptKind, ...] = ("vre", "vre_cat")  # those that look at the picture, by a trained VRE


class VREShape(Strict):
    """The visual representation embedder: tokenizer, dictionary and prompt adapter (section 3.2)."""

    size: int
    channels: int
    multipliers: list[int]
    blocks: int
    attention_at: list[int]
    codes: int
    width: int
    prompts: int
    adapter_width: int
    input: VREInput = "once"


class LoRAShape(Strict):
    """Low-rank adapters on the modules whose names end in one of `targets`; scale = alpha / rank."""

    rank: int
    alpha: int
    targets: list[str]


class PatchDiscriminatorShape(Strict):
    """The stage-1 discriminator; `norm` is BatchNorm in the ancestors, GroupNorm where ranks must agree exactly."""

    channels: int
    layers: int
    norm: Literal["batch", "group"]


class LatentDiscriminatorShape(LoRAShape):
    """The stage-2 discriminator: LoRA on a UNet's encoder half, and a head `head_width` wide. Its numbers are inferred.

    What else is open about it is in `osdface.discriminators.LatentOptions`.
    """

    head_width: int


class Preset(Strict):
    """One architecture. `vae`, `unet` and `scheduler` are diffusers' own configurations."""

    name: str
    size: int
    timestep: int
    vae: dict[str, Any]
    unet: dict[str, Any]
    scheduler: dict[str, Any]
    vre: VREShape
    lora: LoRAShape
    prompt: PromptKind = "vre"
    patch_discriminator: PatchDiscriminatorShape
    latent_discriminator: LatentDiscriminatorShape


def names() -> list[str]:
    """The presets that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def preset(name: str) -> Preset:
    """The preset called `name`. Raises UsageError listing the known ones."""
    if name not in names():
        raise UsageError(f"preset '{name}' does not exist; known: {', '.join(names())}")
    return load(Preset, FOLDER / f"{name}.yaml")
