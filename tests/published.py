"""Random weights in the layout of the published release: a narrow base in SD 2.1's shape, LoRA, adapter, full-size VRE.

A tensor's values depend on its name and shape alone, so that what the published program made of them can be kept.
"""

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

VRE, LORA, ADAPTER = "associate_2.ckpt", "pytorch_lora_weights.safetensors", "embedding_change_weights.pth"
KEYS = Path(__file__).parent / "data" / "vre_keys.txt"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # what diffusers renames to lora.down and lora.up
LINEAR = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "conv_out", ".conv")
RANK = 16


def tensor(name: str, shape: Iterable[int]) -> torch.Tensor:
    """Biases around 0, other vectors around 1, matrices and kernels scaled by what goes into them."""
    shape = tuple(shape)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if name.endswith(".bias"):
        values = 0.02 * values
    elif len(shape) == 1:
        values = 1 + 0.05 * values
    else:
        values = values / np.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def write(folder: Path, mixed: bool = False) -> Path:
    """Write `folder`/sd21 and the three checkpoints beside it. mixed: attention's LoRA under the other key style."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_lora(_base(folder / "sd21"), mixed), folder / LORA)
    shapes = {
        "conv1.weight": (256, 512, 1),
        "conv1.bias": (256,),
        "conv2.weight": (1024, 256, 1),
        "conv2.bias": (1024,),
    }
    torch.save({name: tensor(f"ec.{name}", shape) for name, shape in shapes.items()}, folder / ADAPTER)
    rows = [line.split(maxsplit=1) for line in KEYS.read_text().splitlines()]
    vre = {f"vqvae_LQ.{name}": tensor(f"lq.{name}", _shape(text)) for name, text in rows}
    vre["vqvae_LQ.decoder.conv_in.weight"] = tensor("lqd", (512, 512, 3, 3))
    torch.save({"state_dict": vre, "epoch": 2}, folder / VRE)
    return folder


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.strip("()[] ").split(",") if part.strip())


def _base(folder: Path) -> UNet2DConditionModel:
    attention, plain = "CrossAttn{}Block2D", "{}Block2D"
    unet = UNet2DConditionModel(
        sample_size=64,
        down_block_types=[kind.format("Down") for kind in (attention, attention, attention, plain)],
        up_block_types=[kind.format("Up") for kind in (plain, attention, attention, attention)],
        block_out_channels=(32, 64, 64, 64),
        attention_head_dim=(2, 4, 4, 4),
        cross_attention_dim=1024,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        sample_size=768,
    )
    for part, model in (("unet", unet), ("vae", vae)):
        model.load_state_dict({name: tensor(f"{part}.{name}", v.shape) for name, v in model.state_dict().items()})
        model.save_pretrained(folder / part)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False).save_pretrained(folder / "scheduler")
    return unet


def _lora(unet: UNet2DConditionModel, mixed: bool) -> dict[str, torch.Tensor]:
    made = {}
    for name, module in unet.named_modules():
        ends = {torch.nn.Linear: LINEAR, torch.nn.Conv2d: CONVOLUTIONS}.get(type(module), ())
        if not name.endswith(tuple(ends)):
            continue
        out, into, *kernel = module.weight.shape
        down, up = ("lora.down", "lora.up") if mixed and name.endswith(ATTENTION) else ("lora_A", "lora_B")
        ones = [1] * len(kernel)
        made[f"unet.{name}.{down}.weight"] = tensor(f"A.{name}.weight", (RANK, into, *kernel)) * 0.5
        made[f"unet.{name}.{up}.weight"] = tensor(f"B.{name}.weight", (out, RANK, *ones)) * 0.5
    return made
