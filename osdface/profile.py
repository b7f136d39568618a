"""What a preset's generator costs, part by part: parameters, multiply-accumulates, time, memory (the paper's table 3).

Every number is counted on the modules themselves, nothing is quoted. Multiply-accumulates are counted on the meta
device, which computes shapes and no values: the full size takes seconds and no memory.
"""

import math
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from osdface.base import new_base
from osdface.generator import OneStepGenerator
from osdface.lora import lora_config
from osdface.presets import Preset
from osdface.prompts import new_adapter, new_embedder

STEPS = ("vae_encoder", "vre", "adapter", "unet", "vae_decoder")  # in the order in which they run
CONV_LINEAR, WITH_ATTENTION = "conv_linear", "with_attention"
_MATMUL = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


def fresh_generator(preset: Preset) -> OneStepGenerator:
    """The preset's generator with random weights and no LoRA, on torch's default device, ready to run."""
    base = new_base(preset)
    width = base.unet.config.cross_attention_dim
    embedder = new_embedder(preset.prompt, preset.vre, width)
    adapter = new_adapter(preset.prompt, preset.vre, width)
    return OneStepGenerator(base, embedder, adapter, preset.timestep).eval().requires_grad_(False)


def walk(generator: OneStepGenerator, images: Tensor, watch: Callable[[str], AbstractContextManager]) -> Tensor:
    """The generator's forward pass, (B, 3, H, W) in [-1, 1] -> (B, 3, H, W), each of STEPS inside `watch(step)`."""
    with watch("vae_encoder"):
        z = generator.encode(images)
    with watch("vre"):
        codes = generator.embedder(images)
    with watch("adapter"):
        prompt = generator.adapter(codes)
    with watch("unet"):
        z = generator.denoise(z, prompt)
    with watch("vae_decoder"):
        return generator.decode(z)


def _elements(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def parameters(generator: OneStepGenerator) -> dict[str, int]:
    """Parameters of "vae", "unet", "vre" (encoder, projection and dictionary), "adapter", and their "total"."""
    parts = {"vae": generator.vae, "unet": generator.unet, "vre": generator.embedder, "adapter": generator.adapter}
    counted = {name: _elements(module) for name, module in parts.items()}
    return counted | {"total": sum(counted.values())}


def without_norms_and_dictionary(generator: OneStepGenerator) -> int:
    """Parameters but for those of GroupNorm and Embedding layers, which common counters pass over."""
    unseen = (module for module in generator.modules() if isinstance(module, nn.GroupNorm | nn.Embedding))
    return _elements(generator) - _elements(*unseen)


class MACs(TorchFunctionMode):
    """Counts multiply-accumulates of what runs while it is active, by the step that `step` opened.

    `linear` holds those of convolutions and linear layers, `products` those of tensors with tensors: the two products
    of every attention, and the distances to the dictionary.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear: Counter[str] = Counter()
        self.products: Counter[str] = Counter()
        self._step = ""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._step = name
        yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (F.conv1d, F.conv2d):
            self.linear[self._step] += out.numel() * args[1][0].numel()
        elif func is F.linear:
            self.linear[self._step] += out.numel() * args[1].shape[1]
        elif func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            keys = math.prod(query.shape[:-1]) * key.shape[-2]  # every query meets every key
            self.products[self._step] += keys * (query.shape[-1] + value.shape[-1])
        elif func in _MATMUL:
            self.products[self._step] += out.numel() * args[0].shape[-1]
        return out


@torch.no_grad()
def macs(generator: OneStepGenerator, size: int) -> dict[str, dict[str, int]]:
    """Multiply-accumulates for one picture of `size` pixels, of a generator on the meta device.

    By "conv_linear" (convolutions and linear layers) and "with_attention" (all products of matrices): each of STEPS,
    "vae" (encoder and decoder) and "total".
    """
    counter = MACs()
    with counter:
        walk(generator, torch.empty(1, 3, size, size, device="meta"), counter.step)
    return {
        CONV_LINEAR: _summed(counter.linear),
        WITH_ATTENTION: _summed(counter.linear + counter.products),
    }


def _summed(counts: Counter[str]) -> dict[str, int]:
    vae = counts["vae_encoder"] + counts["vae_decoder"]
    return {step: counts[step] for step in STEPS} | {"vae": vae, "total": counts.total()}


def count(preset: Preset) -> dict[str, Any]:
    """Table 3 for a preset at its own size: "parameters" and "macs" as the functions above have them, LoRA merged.

    "lora" is what adapters add while they are not merged; "counted_parameters" is the total as common counters see it.
    """
    with torch.device("meta"):
        generator = fresh_generator(preset)
        counted, seen = parameters(generator), without_norms_and_dictionary(generator)
        merged = macs(generator, preset.size)
        generator.unet.add_adapter(lora_config(preset.lora))
        apart = macs(generator, preset.size)
    lora = {
        "parameters": _elements(generator.unet) - counted["unet"],
        "macs": apart[CONV_LINEAR]["total"] - merged[CONV_LINEAR]["total"],
    }
    facts = {"preset": preset.name, "size": preset.size}
    return facts | {"parameters": counted, "counted_parameters": seen, "macs": merged, "lora": lora}


@torch.inference_mode()
def measure(preset: Preset, device: str = "cpu", dtype: str = "float32", batch: int = 1, repeat: int = 3) -> dict:
    """Time a generator with random weights on this device; the first of its passes isn't counted.

    "seconds": the median over `repeat` passes of each of STEPS, and the whole, for `batch` pictures of the preset's
    size. "peak_memory": bytes, of the process on a CPU, of torch's allocations on CUDA.
    """
    place = torch.device(device)
    generator = fresh_generator(preset).to(place, getattr(torch, dtype))
    images = (torch.rand(batch, 3, preset.size, preset.size) * 2 - 1).to(place, getattr(torch, dtype))
    spent: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        _wait(place)
        spent[step].append(time.perf_counter() - start)

    for _ in range(repeat + 1):
        with timed("total"):
            walk(generator, images, timed)
    seconds = {step: median(spent[step][1:]) for step in (*STEPS, "total")}
    facts = {"device": device, "dtype": dtype, "batch": batch, "threads": torch.get_num_threads()}
    return facts | {"seconds": seconds, "peak_memory": peak_memory(place)}


def _wait(device: torch.device) -> None:
    """Kernels of a GPU run on after the call that starts them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process has had in memory, or that torch has had allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would begin with what the parent had when it started this process
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
