"""What a training worker will need in memory, by part, before it starts.

The stage is made on the meta device, which knows shapes and holds no values, and takes a step there: its tensors are
counted as they come and go. Not counted: a GPU's context, workspaces of convolutions, and what allocators waste.
"""

import contextlib
import pkgutil
import unittest.mock
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from osdface import presets
from pipelines.launch import STAGES
from pipelines.training import Phase, Step, TrainConfig
from pipelines.training.engines import BUCKET, MOMENTS, zero_stage

FP32, HALF = 4, 2  # bytes
GATHERED = 10**9  # elements that ZeRO 3 keeps gathered at most: DeepSpeed's own default
STATES = ("fp32 copies of trained parameters", "optimizer states", "moving average")
META = torch.device("meta")


class Estimate(NamedTuple):
    """Bytes of one worker by part, in its phase that needs most.

    device: on the GPU, or in main memory where there is none. host: what is offloaded to the CPU's memory.
    """

    phase: str
    device: dict[str, int]
    host: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.device.values())


def estimate(stage: str, config: TrainConfig) -> Estimate:
    """What a worker of `config` needs for a stage ("base", "vre" or "osd").

    Raises what the stage raises where its inputs are missing or do not fit.
    """
    with _counting() as live:
        with META:
            made = pkgutil.resolve_name(STAGES[stage])(config, META, {})
        resident = live.now
        phases = [_of_phase(made, phase, config, live, resident) for phase in made.phases()]
    return max(phases, key=lambda one: one.total)


def _of_phase(made: Any, phase: Phase, config: TrainConfig, live: "Live", resident: int) -> Estimate:
    own = FP32 if config.precision == "fp32" else HALF  # bytes of an element inside an engine
    zero, world = zero_stage(config), max(config.workers, 1)
    modules = [(module, how) for module, how in phase.engines.values()]
    trained = [sum(p.numel() for p in module.parameters() if p.requires_grad) for module, _ in modules]
    inside = sum(parameter.numel() for module, _ in modules for parameter in module.parameters())
    states = sum(count * len(MOMENTS[how.name]) for count, (_, how) in zip(trained, modules, strict=True))
    saved, peak = _step(phase, config, live)
    share = world if zero else 1
    of_parameters = world if zero == 3 else 1
    kept = {
        STATES[0]: sum(trained) * FP32 // world if zero else 0,
        STATES[1]: states * FP32 // share,
        STATES[2]: sum(trained) * FP32 // share if config.ema else 0,
    }
    frozen = resident - inside * FP32 + (inside - sum(trained)) * own // of_parameters
    parameters = {"frozen parameters": frozen, "trained parameters": sum(trained) * own // of_parameters}
    counted = own / FP32  # the step is counted in fp32
    device = {
        **(parameters if config.offload != "parameters" else {"frozen parameters": resident - inside * FP32}),
        "gradients": sum(trained) * own // (world if zero >= 2 else 1),
        **(kept if config.offload == "none" else {}),
        "gradients being reduced": sum(min(count, BUCKET) for count in trained) * own if zero else 0,
        "parameters being gathered": min(inside, GATHERED) * own if zero == 3 else 0,
        f"activations of {config.micro_batch} pictures": int(saved * counted),
        "largest transient": int((peak - saved) * counted),
    }
    host = {} if config.offload == "none" else dict(kept)
    if config.offload == "parameters":
        host["parameters"] = inside * own // world
    return Estimate(phase.name, {k: v for k, v in device.items() if v}, {k: v for k, v in host.items() if v})


def room(config: TrainConfig) -> int:
    """Bytes that a worker may use: its GPU's, or its share of what is free in main memory."""
    if config.gpus_per_worker and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().available // max(config.workers, 1)


def warning(needed: Estimate, config: TrainConfig) -> str | None:
    """A sentence where this machine has less than that."""
    there = room(config)
    if needed.total <= there:
        return None
    less = [
        "activation_checkpointing" if not config.activation_checkpointing else "",
        "a larger accumulation" if config.micro_batch > 1 else "",
        "workers on other machines (--address)" if not config.gpus_per_worker else "offload or a higher zero_stage",
    ]
    return (
        f"a worker needs about {needed.total / 2**30:.1f} GiB and this machine has {there / 2**30:.1f} GiB for it; "
        f"try {' or '.join(filter(None, less))}"
    )


class Live(TorchDispatchMode):
    """Counts the bytes of meta tensors that are alive, while it is active, and the most that were at once.

    What would look at values sees ones, and false: no code is in use, no condition holds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (blind := BLIND.get(func)) and args[0].is_meta:
            out = blind(*args, **(kwargs or {}))
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _bincount(values: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    return values.new_zeros(minlength)


BLIND: dict[Any, Callable[..., Any]] = {  # operators whose result depends on values
    torch.ops.aten._local_scalar_dense.default: lambda tensor: 1.0 if tensor.dtype.is_floating_point else 0,
    torch.ops.aten.nonzero.default: lambda tensor: tensor.new_empty(0, tensor.ndim, dtype=torch.int64),
    torch.ops.aten.bincount.default: _bincount,
}


_attention = F.scaled_dot_product_attention


def _fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """Attention without its matrix, as CPUs and GPUs compute it where there are heads; the meta device would not."""
    if attn_mask is not None or query.ndim != 4 or not query.is_meta:
        return _attention(query, key, value, attn_mask, **options)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]


@contextlib.contextmanager
def _counting() -> Iterator[Live]:
    # Not by a mode: those rest during a backward pass, which computes checkpointed activations again.
    fused = unittest.mock.patch.object(F, "scaled_dot_product_attention", _fused)
    with warnings.catch_warnings(), fused, Live() as live:
        warnings.simplefilter("ignore")  # that weights from files do not arrive
        yield live


class _Engine:
    """An engine's part, that moves no weight: what `backward` finds saved is `saved`."""

    def __init__(self, module: nn.Module, kept: "_Kept"):
        self.module, self.kept = module, kept

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        self.kept.look()
        loss.backward()

    def step(self) -> None:
        for parameter in self.module.parameters():
            parameter.grad = None


class _Kept:
    """The bytes that autograd keeps for backward passes, but for what is `there` anyway, as parameters are."""

    def __init__(self, there: set[int]):
        self.there, self.most = there, 0
        self._alive: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.there and storage._cdata not in self._alive:
            self._alive[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, storage._cdata, None)
        return tensor.detach()  # an operator that saved its own result would never let go of it

    def look(self) -> None:
        self.most = max(self.most, sum(self._alive.values()))


def _step(phase: Phase, config: TrainConfig, live: Live) -> tuple[int, int]:
    """Bytes that one micro-batch's step keeps for its backward pass, and the most beyond what was there before it."""
    size, count = presets.preset(config.preset).size, config.micro_batch
    modules = [module for module, _ in phase.engines.values()]
    before = live.now
    kept = _Kept(set(live.known))
    batch = {"key": [""] * count} | {name: torch.empty(count, 3, size, size, device=META) for name in ("hq", "lq")}
    engines = {name: _Engine(module, kept) for name, (module, _) in phase.engines.items()}
    hooks = [
        parameter.register_post_accumulate_grad_hook(_forget)
        for module in modules
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    live.most = live.now
    # A step at which all losses take part.
    step = Step(10**9, batch, engines, torch.Generator("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        phase.step(step)
    for hook in hooks:
        hook.remove()
    return kept.most, live.most - before


def _forget(parameter: Tensor) -> None:
    """Gradients are counted apart, not as they come."""
    parameter.grad = None
