"""A restorer in little memory: the UNet's blocks are read from the bundle's files one after the other, at every pass.

All are read into one buffer of the largest block's size, which is what a pass needs in place of the whole UNet: for
one picture now and then, where reading costs less than keeping. (Mapping the files was tried: its page faults took
longer than reading does.) CPU, float32; one pass at a time.
"""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn

from osdface.errors import UserError
from osdface.folding import FoldedGenerator, FoldedUNet, fold_time, time_embedding
from osdface.fused import fuse
from osdface.generator import OneStepGenerator

LORA_NAMES = {".lora_A.weight": ".lora_B.weight", ".lora.down.weight": ".lora.up.weight"}  # peft's, diffusers'
FLOAT = 4  # bytes


class Place(NamedTuple):
    """Where a float32 tensor lies: a file, the position of its first byte, its shape."""

    file: Path
    start: int
    shape: list[int]


class Weights:
    """A UNet's tensors in a folder of safetensors files, with the LoRA of a file of either naming added.

    Raises UserError where a tensor isn't float32, or the LoRA adapts what the UNet doesn't have or is no pair.
    """

    def __init__(self, folder: Path, lora: Path, scale: float):
        self.scale = scale
        self.places = {name: place for file in sorted(folder.glob("*.safetensors")) for name, place in _places(file)}
        self.lora = _pairs(lora)
        if unknown := self.lora.keys() - self.places.keys():
            raise UserError(f"{lora}: adapts {min(unknown)}, which {folder} doesn't have; it is of another base")

    def fill(self, module: nn.Module, prefix: str, buffer: Tensor | None = None) -> None:
        """Give a module of the meta device its tensors: slices of `buffer`, which is large enough, or of a new one."""
        names = list(module.state_dict())
        if missing := [name for name in names if prefix + name not in self.places]:
            raise UserError(f"the base's UNet has no {prefix}{missing[0]}")
        buffer = torch.empty(size(module)) if buffer is None else buffer
        tensors, taken = {}, 0
        for name in names:
            shape = self.places[prefix + name].shape
            tensors[name] = buffer[taken : taken + math.prod(shape)].view(shape)
            taken += math.prod(shape)
            self._read(prefix + name, tensors[name])
        module.load_state_dict(tensors, assign=True)

    def _read(self, name: str, tensor: Tensor) -> None:
        place = self.places[name]
        with place.file.open("rb") as file:
            file.seek(place.start)
            if file.readinto(tensor.numpy().reshape(-1).view("u1").data) != tensor.numel() * FLOAT:
                raise UserError(f"{place.file}: ends before {name} does")
        if name in self.lora:
            down, up = self.lora[name]
            tensor.view(len(tensor), -1).addmm_(up.flatten(1), down.flatten(1), alpha=self.scale)


def size(module: nn.Module) -> int:
    """Numbers in a module's state."""
    return sum(tensor.numel() for tensor in module.state_dict().values())


def _places(file: Path) -> Iterator[tuple[str, Place]]:
    """Names and places of a safetensors file's tensors, which its header lists: 8 bytes of length, then JSON."""
    with safe_open(file, "pt"):  # refuses a file that isn't whole
        pass
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        if tensor["dtype"] != "F32":
            raise UserError(f"{file}: {name} is {tensor['dtype']}; in little memory only float32 (F32) bases run")
        yield name, Place(file, 8 + length + tensor["data_offsets"][0], tensor["shape"])


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

    def __init__(self, skeleton: Any, prefix: str, weights: Weights, embedding: Tensor, buffer: Tensor):
        super().__init__()
        self.has_cross_attention = getattr(skeleton, "has_cross_attention", False)
        self.resnets = list(skeleton.resnets)  # a list: modules of the meta device are not this one's to move
        self._skeleton, self.prefix, self.weights, self.embedding = (skeleton,), prefix, weights, embedding
        self.buffer = buffer  # all blocks have the same one

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        block = copy.deepcopy(self._skeleton[0])
        self.weights.fill(block, self.prefix, self.buffer)
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
    buffer = torch.empty(max(map(size, (*unet.down_blocks, unet.mid_block, *unet.up_blocks))))
    for name in ("down_blocks", "up_blocks"):
        lent = [
            LentBlock(block, f"{name}.{i}.", weights, embedding, buffer) for i, block in enumerate(getattr(unet, name))
        ]
        setattr(unet, name, nn.ModuleList(lent))
    unet.mid_block = LentBlock(unet.mid_block, "mid_block.", weights, embedding, buffer)
    return FoldedUNet(unet)


def load(folder: Path) -> FoldedGenerator:
    """The generator of a bundle, folded, without its UNet in memory. Digests are not verified.

    Raises UserError for what is missing or of another shape.
    """
    from diffusers import AutoencoderKL, DDIMScheduler
    from safetensors.torch import load_file

    from osdface import bundle
    from osdface.base import Base, check_base, load_part
    from osdface.prompts import new_adapter, new_embedder

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
        embedder = new_embedder(shape.prompt, shape.vre, unet.config.cross_attention_dim)
        adapter = new_adapter(shape.prompt, shape.vre, unet.config.cross_attention_dim)
    for part, file in ((embedder, bundle.EMBEDDER.get(shape.prompt, "")), (adapter, bundle.ADAPTER)):
        if file in config.weights():
            part.load_state_dict(load_file(folder / file), assign=True)
    return FoldedGenerator(OneStepGenerator(Base(vae, unet, scheduler), embedder, adapter, shape.timestep), unet)
