"""A restorer in little memory: the UNet's blocks are read from the bundle's files one after the other, at every pass.

The files are mapped, not copied, and a block's pages are let go with it, so a pass needs the largest block's memory in
place of the whole UNet's: for one picture now and then, where reading costs less than keeping. CPU, float32.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn

from osdface.errors import UserError
from osdface.folding import FoldedGenerator, FoldedUNet, fold_time, time_embedding
from osdface.fused import fuse
from osdface.generator import OneStepGenerator

LORA_NAMES = {".lora_A.weight": ".lora_B.weight", ".lora.down.weight": ".lora.up.weight"}  # peft's, diffusers'


class Weights:
    """A UNet's tensors in a folder of safetensors files, with the LoRA of a file of either naming added.

    Raises UserError where the LoRA adapts a layer that the UNet doesn't have, or is no pair of matrices.
    """

    def __init__(self, folder: Path, lora: Path, scale: float):
        self.scale = scale
        self.places: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                self.places |= dict.fromkeys(tensors.keys(), file)
        self.lora = _pairs(lora)
        if unknown := self.lora.keys() - self.places.keys():
            raise UserError(f"{lora}: adapts {min(unknown)}, which {folder} doesn't have; it is of another base")

    def fill(self, module: nn.Module, prefix: str) -> None:
        """Give a module of the meta device its tensors, mapped, and those that LoRA adapts as copies of their own."""
        names = [prefix + name for name in module.state_dict()]
        if missing := [name for name in names if name not in self.places]:
            raise UserError(f"the base's UNet has no {missing[0]}")
        tensors: dict[str, Tensor] = {}
        for file in {self.places[name] for name in names}:
            with safe_open(file, "pt") as opened:
                held = [name for name in names if self.places[name] == file]
                tensors |= {name.removeprefix(prefix): self._merged(name, opened.get_tensor(name)) for name in held}
        module.load_state_dict(tensors, assign=True)

    def _merged(self, name: str, weight: Tensor) -> Tensor:
        if name in self.lora:  # in place: the mapping is private, a page that is written to becomes this process's own
            down, up = self.lora[name]
            weight.view(len(weight), -1).addmm_(up.flatten(1), down.flatten(1), alpha=self.scale)
        return weight


def _pairs(file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The name of every adapted weight -> its two matrices, the one that narrows first."""
    with safe_open(file, "pt") as opened:
        tensors = {name.removeprefix("unet."): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    pairs = {}
    for down, up in LORA_NAMES.items():
        for name in [name for name in tensors if name.endswith(down)]:
            other = name.removesuffix(down) + up
            if other not in tensors:
                raise UserError(f"{file}: {name} is there without {other}")
            pairs[name.removesuffix(down) + ".weight"] = (tensors.pop(name), tensors.pop(other))
    if tensors:
        raise UserError(f"{file}: {min(tensors)} is not a LoRA tensor")
    return pairs


class LentBlock(nn.Module):
    """A block of the UNet that has weights only while it runs."""

    def __init__(self, skeleton: Any, prefix: str, weights: Weights, embedding: Tensor):
        super().__init__()
        self.has_cross_attention = getattr(skeleton, "has_cross_attention", False)
        self.resnets = list(skeleton.resnets)  # a list: modules of the meta device are not this one's to move
        self._skeleton, self.prefix, self.weights, self.embedding = (skeleton,), prefix, weights, embedding

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        block = copy.deepcopy(self._skeleton[0])
        self.weights.fill(block, self.prefix)
        fold_time(block, self.embedding)
        fuse(block)
        return block(*args, **kwargs)


def lent_unet(config: dict[str, Any], weights: Weights, timestep: int) -> FoldedUNet:
    """A folded UNet of diffusers' configuration, whose blocks are lent their weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config).eval().requires_grad_(False)
    for name in ("conv_in", "conv_out", "conv_norm_out", "time_embedding"):
        weights.fill(getattr(unet, name), f"{name}.")
    embedding = time_embedding(unet, timestep)
    for name in ("down_blocks", "up_blocks"):
        blocks = getattr(unet, name)
        lent = [LentBlock(block, f"{name}.{i}.", weights, embedding) for i, block in enumerate(blocks)]
        setattr(unet, name, nn.ModuleList(lent))
    unet.mid_block = LentBlock(unet.mid_block, "mid_block.", weights, embedding)
    return FoldedUNet(unet)


def load(folder: Path) -> FoldedGenerator:
    """The generator of a bundle, folded, without its UNet in memory. Digests are not verified.

    Raises UserError for what is missing or of another shape.
    """
    from diffusers import AutoencoderKL, DDIMScheduler
    from safetensors.torch import load_file

    from osdface import bundle
    from osdface.base import Base, check_base, load_part
    from osdface.vre import VisualEmbedder, new_adapter

    config = bundle.read_config(folder)
    base = bundle.base_folder(folder, config)
    check_base(base)
    shape = config.architecture()
    vae: AutoencoderKL = load_part(base, "vae", torch.float32)
    unet_config = UNet2DConditionModel.load_config(base / "unet", local_files_only=True)
    weights = Weights(base / "unet", folder / bundle.LORA, shape.lora.alpha / shape.lora.rank)
    unet = lent_unet(unet_config, weights, shape.timestep)
    scheduler = DDIMScheduler.from_pretrained(base / "scheduler", local_files_only=True)
    with torch.device("meta"):
        embedder = VisualEmbedder(shape.vre)
        adapter = new_adapter(shape.vre, unet.config.cross_attention_dim)
    embedder.load_state_dict(load_file(folder / bundle.VRE), assign=True)
    if bundle.ADAPTER in config.weights():
        adapter.load_state_dict(load_file(folder / bundle.ADAPTER), assign=True)
    return FoldedGenerator(OneStepGenerator(Base(vae, unet, scheduler), embedder, adapter, shape.timestep), unet)
