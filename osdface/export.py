"""A bundle in other layouts, those of other programs for the most part.

diffusers     the base as it is, an ordinary diffusers folder, and the LoRA beside it: `load_lora_weights(OUT)`
official      the published program's three checkpoints; its base is given to it apart
safetensors   unet (LoRA merged), vae, vre and prompt_adapter as four files, and config.json with their architecture
half          a bundle again, its tensors in float16: half the size, to ship
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from osdface import bundle, official
from osdface.errors import UsageError, UserError
from osdface.files import aside, replace_folder
from osdface.presets import VISUAL_PROMPTS, Preset, preset
from osdface.tensors import read_safetensors

Format = Literal["diffusers", "official", "safetensors", "half"]
VRE_CHECKPOINT, ADAPTER_CHECKPOINT = "associate_2.ckpt", "embedding_change_weights.pth"


def export(folder: Path, format: Format, out: Path) -> list[str]:
    """Write a verified bundle to `out` in another layout; returns what must be known to use it there, a line each.

    Raises UserError where the bundle is damaged or its base gone, and where `out` is there already; UsageError for
    an unknown format.
    """
    writers: dict[str, Callable[[Path, bundle.BundleConfig, Path], list[str]]] = {
        "diffusers": _diffusers,
        "official": _official,
        "safetensors": _safetensors,
        "half": _half,
    }
    if format not in writers:
        raise UsageError(f"format '{format}' does not exist; known: {', '.join(get_args(Format))}")
    config = bundle.verify(folder)
    official.refuse_existing(out)
    temporary = aside(out)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        notes = writers[format](folder, config, temporary)
        replace_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return notes


def _diffusers(folder: Path, config: bundle.BundleConfig, out: Path) -> list[str]:
    shutil.copytree(bundle.base_folder(folder, config), out, dirs_exist_ok=True)
    shape = config.architecture()
    # alpha / rank goes into B: given a file's path, diffusers does not read the alpha that is written in it.
    scale = shape.lora.alpha / shape.lora.rank
    lora = bundle.read_lora(folder / bundle.LORA)
    lora = {name: tensor * scale if ".lora_B." in name else tensor for name, tensor in lora.items()}
    bundle.write_lora(lora, out, shape.lora.model_copy(update={"alpha": shape.lora.rank}))
    return [f"timestep {shape.timestep}; {_prompt_embeds(folder, config, shape, out)}"]


def _prompt_embeds(folder: Path, config: bundle.BundleConfig, shape: Preset, out: Path) -> str:
    """Where a pipeline's `prompt_embeds` come from; a prompt that is the same for every picture is written to `out`."""
    if shape.prompt in VISUAL_PROMPTS:
        return "prompt_embeds come from the bundle's VRE, not from a text"
    constant = config.weights() - {bundle.LORA}
    for name in constant:
        shutil.copyfile(folder / name, out / name)
    return f"prompt_embeds are the rows in {constant.pop()}" if constant else "prompt_embeds are zeros"


def _official(folder: Path, config: bundle.BundleConfig, out: Path) -> list[str]:
    import torch

    shape = config.architecture()
    if shape.prompt not in VISUAL_PROMPTS:
        raise UserError(
            f"{folder}: has prompts of kind '{shape.prompt}', which the published program cannot make; choose another "
            "--format"
        )
    vre = {official.VRE_PREFIX + name: tensor for name, tensor in read_safetensors(folder / bundle.VRE).items()}
    torch.save({"state_dict": vre}, out / VRE_CHECKPOINT)
    shutil.copyfile(folder / bundle.LORA, out / bundle.LORA)
    if bundle.ADAPTER in config.weights():
        torch.save(read_safetensors(folder / bundle.ADAPTER), out / ADAPTER_CHECKPOINT)
    notes = [f"--lora_rank {shape.lora.rank} --lora_alpha {shape.lora.alpha} for the published program"]
    if shape.prompt == "vre_cat":
        notes.append("--cat_prompt_embedding for the published program")
    if shape.vre.input == "once":
        notes.append(
            "the published program normalises the VRE's input twice, this model once: its pictures differ there"
        )
    published = preset("sd21")
    if shape.timestep != published.timestep:
        notes.append(f"the published program takes its step at {published.timestep}, this model at {shape.timestep}")
    if shape.vre != published.vre.model_copy(update={"input": shape.vre.input}):
        notes.append(f"the published program cannot load a VRE of preset '{config.preset}'; ours can")
    return notes


def _safetensors(folder: Path, config: bundle.BundleConfig, out: Path) -> list[str]:
    from safetensors.torch import save_file

    _, generator = bundle.load(folder)
    generator.unet.fuse_lora()
    generator.unet.unload_lora()
    parts = {
        "unet": generator.unet,
        "vae": generator.vae,
        "vre": generator.embedder,
        "prompt_adapter": generator.adapter,
    }
    for name, part in parts.items():
        if state := part.state_dict():  # some kinds of prompts have a part without weights
            save_file({key: tensor.contiguous() for key, tensor in state.items()}, out / f"{name}.safetensors")
    shape = config.architecture()
    architecture = {
        "size": shape.size,
        "timestep": shape.timestep,
        "alpha_bar": float(generator.alpha_bar),
        "unet": dict(generator.unet.config),
        "vae": dict(generator.vae.config),
        "vre": shape.vre.model_dump(),
        "prompt": shape.prompt,
    }
    (out / "config.json").write_text(json.dumps(architecture, indent=2, default=str))
    return ["the LoRA is merged into unet.safetensors"]


def _half(folder: Path, config: bundle.BundleConfig, out: Path) -> list[str]:
    from osdface.base import base_digest

    if config.base.path != "base":
        raise UserError(
            f"{folder}: its base lies outside it, at {config.base.path}: only a bundle with its base is halved"
        )
    for name in config.files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        copy = _halve if name.endswith(".safetensors") else shutil.copyfile
        copy(folder / name, out / name)
    base = config.base.model_copy(update={"sha256": base_digest(out / "base")})
    bundle.seal(out, config.model_copy(update={"base": base}))
    return ["loads as any bundle does, and is computed in the precision that is asked for"]


def _halve(path: Path, out: Path) -> None:
    """Copy a file of tensors, float32 ones as float16, with what its header says of them."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        half = {name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()}
        save_file(half, out, file.metadata())
