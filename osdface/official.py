"""The checkpoints that the paper's authors published, read strictly and written as a bundle.

associate_2.ckpt                   the VRE: tensors `vqvae_LQ.*` of its `state_dict`
pytorch_lora_weights.safetensors   the UNet's LoRA, in either of diffusers' key styles, or both in one file
embedding_change_weights.pth       the prompt adapter; the variant with paired prompts has none

Nothing is executed: the two pickles may hold tensors and plain containers only.
"""

import json
import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from osdface import bundle, presets, tensors
from osdface.errors import UserError
from osdface.files import sha256

if TYPE_CHECKING:
    from torch import Size, Tensor

    Tensors = dict[str, Tensor]

VRE_PREFIX = "vqvae_LQ."
# Tensors that a VRE checkpoint may hold and a restorer does not need, by the start of their names.
UNUSED = {
    "vqvae_LQ.decoder.": "the LQ decoder, for stage 1 only",
    "vqvae_LQ.post_quant_conv.": "the way into the LQ decoder",
    "vqvae.": "the HQ autoencoder, which the LQ one was associated with",
    "vqvae_HQ.": "the HQ autoencoder, which the LQ one was associated with",
    "loss.": "networks of stage 1's losses",
    "loss_LQ.": "networks of stage 1's losses",
    "logit_scale": "the temperature of the association loss",
}
LORA_KEY = re.compile(r"unet\.(.+)\.(lora_A|lora_B|lora\.down|lora\.up)\.weight")
STYLES = {"lora.down": "lora_A", "lora.up": "lora_B"}


class Imported(NamedTuple):
    """The bundle's configuration, and what was left out of the VRE checkpoint: how many tensors for which reason."""

    config: bundle.BundleConfig
    unused: dict[str, int]


def import_official(
    *,
    vre: Path,
    lora: Path,
    adapter: Path | None,
    base: Path,
    out: Path,
    preset: str = "sd21",
    vre_input: presets.VREInput = "twice",
    alpha: int | None = None,
    targets: list[str] | None = None,
) -> Imported:
    """Write the published checkpoints as the bundle `out`; without `adapter`, prompts are paired codes.

    The base's own config.json gives the UNet's shape, the preset everything else. vre_input: the published program
    normalises twice. alpha: of the LoRA, whose scale is alpha / rank; by default what the file says, else the
    preset's 16, as the published program has it. targets: the modules that have LoRA, by the ends of their names; by
    default the preset's. Raises UserError where a file is missing, unsafe or damaged, where its tensors are not
    exactly those expected, and where `out` is there already.
    """
    from osdface.base import empty_unet

    refuse_existing(out)
    plain = presets.preset(preset)
    kind: presets.PromptKind = "vre" if adapter else "vre_cat"
    shape = plain.vre.model_copy(update={"input": vre_input})
    unet = empty_unet(base)
    lora_tensors, lora_shape = read_lora(lora, unet, targets or plain.lora.targets, alpha, plain.lora.alpha)
    vre_tensors, unused = read_vre(vre, shape)
    adapter_tensors = read_adapter(adapter, shape, unet.config.cross_attention_dim)
    sources = [path for path in (vre, lora, adapter) if path]
    config = bundle.BundleConfig(
        preset=preset,
        seed=0,
        base=bundle.reference(base),
        provenance=bundle.Provenance(imported={path.name: sha256(path) for path in sources}),
        vre_input=vre_input,
        prompt=kind,
        timestep=plain.timestep,
        lora=lora_shape,
    )
    return Imported(bundle.write(bundle.Parts(lora_tensors, vre_tensors, adapter_tensors), out, config, base), unused)


def refuse_existing(out: Path) -> None:
    """Raise UserError where `out` is a file or a folder with something in it: nothing is overwritten."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out}: is there already; give another --out, or remove it")


def read_vre(path: Path, shape: presets.VREShape) -> "tuple[Tensors, dict[str, int]]":
    """The embedder's tensors by our names, and how many others were left out for which reason."""
    import torch

    from osdface.prompts.vre import VisualEmbedder

    with torch.device("meta"):
        embedder = VisualEmbedder(shape)
    expected = {VRE_PREFIX + name: size for name, size in tensors.shapes(embedder.state_dict()).items()}
    found = _state(path)
    unused: dict[str, int] = {}
    for name in list(found):
        reason = next((reason for start, reason in UNUSED.items() if name.startswith(start)), None)
        if reason:
            del found[name]
            unused[reason] = unused.get(reason, 0) + 1
    tensors.check(path, expected, found)
    return {name.removeprefix(VRE_PREFIX): tensor.float() for name, tensor in found.items()}, unused


def read_adapter(path: Path | None, shape: presets.VREShape, width: int) -> "Tensors":
    """The prompt adapter's tensors, for prompts `width` wide; none for paired prompts (`path` None)."""
    import torch

    from osdface.prompts import new_adapter

    with torch.device("meta"):
        adapter = new_adapter("vre" if path else "vre_cat", shape, width)
    if path is None:
        return {}
    found = _state(path)
    tensors.check(path, tensors.shapes(adapter.state_dict()), found)
    return {name: tensor.float() for name, tensor in found.items()}


def read_lora(
    path: Path, unet: Any, targets: list[str], alpha: int | None, usual_alpha: int
) -> "tuple[Tensors, presets.LoRAShape]":
    """The UNet's LoRA by peft's names, whichever style the file has; its rank is that of most of its tensors.

    unet: without weights. alpha: see `import_official`; `usual_alpha` where neither it nor the file says.
    """
    read = tensors.read_safetensors(path)
    found: dict[str, Any] = {}
    for name, tensor in read.items():
        named = LORA_KEY.fullmatch(name)
        plain = f"{named[1]}.{STYLES.get(named[2], named[2])}.weight" if named else name
        if plain in found:
            raise UserError(f"{path}: has {plain} twice, in both key styles; remove one")
        found[plain] = tensor
    ranks = [len(tensor) for name, tensor in found.items() if name.endswith(".lora_A.weight") and tensor.ndim]
    if not ranks:
        raise UserError(f"{path}: holds no LoRA of a UNet (no unet.*.lora_A or unet.*.lora.down); give another --lora")
    alpha = alpha or _recorded_alpha(path) or usual_alpha
    shape = presets.LoRAShape(rank=statistics.mode(ranks), alpha=alpha, targets=sorted(targets))
    tensors.check(path, _lora_shapes(unet, shape), found)
    return {name: tensor.float() for name, tensor in found.items()}, shape


def _lora_shapes(unet: Any, shape: presets.LoRAShape) -> "dict[str, Size]":
    from peft.utils import get_peft_model_state_dict

    from osdface.lora import lora_config

    try:
        unet.add_adapter(lora_config(shape))
    except ValueError as error:
        raise UserError(f"the base's UNet has no modules {', '.join(shape.targets)} ({error})") from None
    return tensors.shapes(get_peft_model_state_dict(unet))


def _recorded_alpha(path: Path) -> int | None:
    """The alpha in the metadata that diffusers writes beside a LoRA; the published file may have none."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        recorded = (file.metadata() or {}).get("lora_adapter_metadata")
    try:
        return int(json.loads(recorded)["unet.lora_alpha"]) if recorded else None
    except (ValueError, TypeError, KeyError):
        return None


def _state(path: Path) -> dict[str, Any]:
    """A file's tensors: safetensors, or a checkpoint of torch, where `state_dict` in it wins over the rest."""
    if path.suffix == ".safetensors":
        return dict(tensors.read_safetensors(path))
    data = tensors.read_pickle(path)
    state = data.get("state_dict", data) if isinstance(data, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path}: holds no tensors by name; give a checkpoint with a state_dict")
    return dict(state)
