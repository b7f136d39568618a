"""Real optimisation steps at full size with random weights: what is trained, in how much memory and time.

`python -m benchmarks.full_size` writes benchmarks/results/full_size.json and .md: two steps of `sd21` stage 2 at 512 px
from a folder in SD 2.1-base's layout, and one of stage 1 (HQ dictionary); batch 1, activation checkpointing,
DeepSpeed's engines; fp32 on this CPU, or with --device cuda and --precision on a GPU. Losses whose weights come with no
package (VGG's) are off; dlib's identity loss is on. Exits with 1 where a loss is not finite, a LoRA pair or the adapter
has no gradient, any other tensor changes, or the peak is above 20 GiB.

B of every LoRA pair is zero at first, so that A's gradients are zero in the very first step by construction: A is
looked at in the last.
"""

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks import record
from osdface import presets
from osdface.base import new_base, save_base
from osdface.profile import peak_memory
from pipelines import memory
from pipelines.train_osd import OSDConfig, OSDStage
from pipelines.train_vre import VREConfig, VREStage
from pipelines.training import Step, TrainConfig
from pipelines.training.alone import process_group
from pipelines.training.engines import Engine
from pipelines.training.worker import HALF

CPU = torch.device("cpu")
LIMIT = 20 * 2**30
OPTIMIZER = {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01}
STEPS = {"osd": 2, "vre": 1}  # on a CPU
MORE = 8  # on a GPU, where the first steps choose kernels


class Where(NamedTuple):
    """The device, and DeepSpeed's precision on it."""

    device: torch.device = CPU
    precision: str = "fp32"

    def steps(self, stage: str) -> int:
        return STEPS[stage] if self.device.type == "cpu" else MORE


def configuration(stage: str, preset: str, folder: Path, where: Where) -> TrainConfig:
    shared = {
        "preset": preset, "data": "none", "out": "none", "batch_size": 1, "workers": 0,
        "activation_checkpointing": True, "precision": where.precision,
    }  # fmt: skip
    once = {"steps": where.steps(stage)}
    if stage == "vre":
        phases = {"hq": once, "lq": {"steps": 0}, "association": {"steps": 0}}
        return VREConfig.model_validate(shared | phases | {"optimizer": OPTIMIZER, "losses": {"perceptual": 0}})
    losses = {"mse": 1.0, "perceptual": 0, "identity": 0.1, "adversarial": 0.01}
    both = {"generator": OPTIMIZER, "discriminator": OPTIMIZER, "duration": once, "losses": losses}
    return OSDConfig.model_validate(shared | both | {"base": folder / "base", "vre": folder / "vre"})


def make(preset: str, folder: Path) -> None:
    """A base in SD 2.1-base's layout and a stage-1 output, of random weights."""
    torch.manual_seed(0)
    save_base(new_base(presets.preset(preset)), folder / "base")
    VREStage(configuration("vre", preset, folder, Where()), CPU, {}).save(folder / "vre")  # type: ignore[arg-type]


def digests(tensors: dict[str, Tensor]) -> dict[str, str]:
    """sha256 of each tensor's values, in place."""
    return {
        name: hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()).hexdigest()
        for name, tensor in tensors.items()
    }


def all_tensors(stage: Any) -> dict[str, Tensor]:
    """Every parameter and buffer of a stage's modules, frozen ones too."""
    modules = nn.ModuleDict({name: value for name, value in vars(stage).items() if isinstance(value, nn.Module)})
    return dict(modules.named_parameters()) | dict(modules.named_buffers())


def run(stage: str, preset: str, folder: Path, where: Where) -> dict[str, Any]:
    """Train; what came of it."""
    device, steps = where.device, where.steps(stage)
    config = configuration(stage, preset, folder, where)
    start = time.perf_counter()
    made = (OSDStage if stage == "osd" else VREStage)(config, device, {})  # type: ignore[arg-type]
    loaded = time.perf_counter() - start
    phase = next(iter(made.phases()))
    gradients: dict[str, list[float]] = defaultdict(list)  # the largest of each trained tensor, step by step
    trained = {name: tensor for name, tensor in all_tensors(made).items() if tensor.requires_grad}
    seconds, losses = [], []
    size = presets.preset(preset).size
    half = HALF.get(where.precision)
    with process_group(device):
        engines = {name: Engine(module, how, config, steps) for name, (module, how) in phase.engines.items()}
        moving = {id(parameter) for engine in engines.values() for parameter in engine.parameters}
        trained = {name: tensor for name, tensor in trained.items() if id(tensor) in moving}
        statistics = running_statistics(made, [engine.module for engine in engines.values()])
        before = digests(all_tensors(made))  # here, after DeepSpeed's casts
        for index in range(steps):
            seen: dict[str, float] = dict.fromkeys(trained, 0.0)
            hooks = [tensor.register_hook(_watch(seen, name)) for name, tensor in trained.items()]
            source = torch.Generator().manual_seed(index)
            pictures = {n: (torch.rand(1, 3, size, size, generator=source) * 2 - 1).to(device) for n in ("hq", "lq")}
            start = time.perf_counter()
            with torch.autocast(device.type, half) if half else contextlib.nullcontext():
                measured = phase.step(Step(index, {"key": ["none"], **pictures}, engines, source))
            losses.append({name: float(value) for name, value in measured.items()})  # which waits for a GPU
            seconds.append(time.perf_counter() - start)
            for name, largest in seen.items():
                gradients[name].append(largest)
            for hook in hooks:
                hook.remove()
            print(stage, index, f"{seconds[-1]:.3g} s", losses[-1], file=sys.stderr, flush=True)
        peak = peak_memory(device)
        for engine in engines.values():
            engine.close()
    after = digests(all_tensors(made))
    changed = {name for name, digest in after.items() if digest != before[name]}
    last = {name: values[-1] for name, values in gradients.items()}
    return {
        "stage": stage,
        "load_seconds": loaded,
        "step_seconds": seconds,
        "losses": losses,
        "peak": peak,
        "estimate": memory.estimate(stage, config).total,
        "trained": len(trained),
        "parameters": sum(tensor.numel() for tensor in trained.values()),
        "frozen": len(after) - len(trained),
        "without_gradient": sorted(name for name, largest in last.items() if not largest > 0),
        "lora_a_without_gradient_at_first": sum("lora_A" in n and not v[0] > 0 for n, v in gradients.items()),
        "lora_a": sum("lora_A" in name for name in gradients),
        "changed_but_frozen": sorted(changed - trained.keys() - statistics),
        "trained_but_unchanged": sorted(trained.keys() - changed),
    }


def running_statistics(stage: Any, modules: list[nn.Module]) -> set[str]:
    """Names of the trained modules' BatchNorm statistics, which a step changes without training them."""
    norms = [layer for module in modules for layer in module.modules() if isinstance(layer, _BatchNorm)]
    buffers = {id(buffer) for norm in norms for buffer in norm.buffers()}
    return {name for name, tensor in all_tensors(stage).items() if id(tensor) in buffers}


def _watch(seen: dict[str, float], name: str) -> Any:
    def watch(gradient: Tensor) -> None:
        seen[name] = max(seen[name], float(gradient.abs().max()))

    return watch


def faults(one: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    found = [f"{name} is {value}" for step in one["losses"] for name, value in step.items() if not abs(value) < 1e9]
    found += [f"{name}: no gradient" for name in one["without_gradient"]]
    found += [f"{name}: changed, though frozen" for name in one["changed_but_frozen"]]
    found += [f"{name}: not changed" for name in one["trained_but_unchanged"]]
    return found + ([f"peak of {one['peak'] / 2**30:.1f} GiB"] if one["peak"] > LIMIT else [])


def report(machine: dict[str, Any], preset: str, where: Where, runs: list[dict[str, Any]]) -> str:
    rows = [
        {
            "stage": {"osd": "2", "vre": "1, HQ dictionary"}[one["stage"]],
            "steps": len(one["step_seconds"]),
            "s a step": ", ".join(f"{s:.3g}" for s in one["step_seconds"]),
            "peak, GiB": one["peak"] / 2**30,
            "estimate, GiB": one["estimate"] / 2**30,
            "tensors trained": one["trained"],
            "of M parameters": one["parameters"] / 1e6,
            "tensors frozen, unchanged": one["frozen"] - len(one["changed_but_frozen"]),
            "faults": len(faults(one)),
        }
        for one in runs
    ]
    on_gpu = where.device.type == "cuda"
    processor = torch.cuda.get_device_name() if on_gpu else f"{machine['cpu']}, {torch.get_num_threads()} threads"
    sections = [
        f"# Optimisation steps at full size, {preset}",
        f"{machine['date']}; {processor}; torch {machine['versions']['torch']}. Random weights, batch 1, "
        f"{where.precision}, activation checkpointing.",
        record.table(rows),
    ]
    for one in runs:
        if one["lora_a"]:
            sections.append(
                f"Of {one['lora_a']} LoRA pairs, A has no gradient in the first step for "
                f"{one['lora_a_without_gradient_at_first']}, since B is zero then; in the last step for none that is "
                "not among the faults."
            )
        sections += [f"- {fault}" for fault in faults(one)[:20]]
    return "\n\n".join(sections)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__)
    parser.add_argument("--preset", default="sd21", help="tiny tries the program out")
    parser.add_argument("--stages", nargs="*", default=["osd", "vre"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", *HALF], default="fp32", help="half precision needs a GPU")
    parser.add_argument("--name", default="full_size", help="of the results' files")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the results")
    parser.add_argument("--run", nargs=2, metavar=("STAGE", "FOLDER"), help="one process, whose peak is its own")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = Where(torch.device(options.device), options.precision)
    if options.run:
        stage, folder = options.run
        found = run(stage, options.preset, Path(folder), where)
        (Path(folder) / f"{stage}.json").write_text(json.dumps(found))
        return 0
    runs = []
    with tempfile.TemporaryDirectory() as name:
        words = [sys.executable, "-m", "benchmarks.full_size", "--preset", options.preset]
        words += ["--threads", str(options.threads), "--device", options.device, "--precision", options.precision]
        made = (
            f"from pathlib import Path; from benchmarks.full_size import make; make({options.preset!r}, Path({name!r}))"
        )
        subprocess.run([sys.executable, "-c", made], check=True)
        for stage in options.stages:
            subprocess.run([*words, "--run", stage, name], check=True)
            runs.append(json.loads((Path(name) / f"{stage}.json").read_text()))
    machine = record.machine(["torch", "diffusers", "peft", "deepspeed"])
    facts = {"preset": options.preset, "threads": options.threads, "precision": options.precision, "runs": runs}
    text = report(machine, options.preset, where, runs)
    record.write(options.name, machine | facts, text, options.out)
    print(text)
    return 1 if any(faults(one) for one in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
