"""Real optimisation steps at full size with random weights on this CPU: what is trained, in how much memory and time.

`python -m benchmarks.full_size` writes benchmarks/results/full_size.json and .md: two steps of `sd21` stage 2 at 512 px
from a folder in SD 2.1-base's layout, and one of stage 1 (HQ dictionary); batch 1, fp32,
activation checkpointing, DeepSpeed's engines. Losses whose weights come with no package (VGG's) are off; dlib's
identity loss is on. Exits with 1 where a loss is not finite, a LoRA pair or the adapter has no gradient, any other
tensor changes, or the peak is above 20 GiB.

B of every LoRA pair is zero at first, so that A's gradients are zero in the very first step by construction: A is
looked at in the second.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

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

CPU = torch.device("cpu")
LIMIT = 20 * 2**30
OPTIMIZER = {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01}
STEPS = {"osd": 2, "vre": 1}


def configuration(stage: str, preset: str, folder: Path) -> TrainConfig:
    shared = {
        "preset": preset, "data": "none", "out": "none", "batch_size": 1, "workers": 0,
        "activation_checkpointing": True,
    }  # fmt: skip
    once = {"steps": STEPS[stage]}
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
    VREStage(configuration("vre", preset, folder), CPU, {}).save(folder / "vre")  # type: ignore[arg-type]


def digests(tensors: dict[str, Tensor]) -> dict[str, str]:
    """sha256 of each tensor's values, in place."""
    return {
        name: hashlib.sha256(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()).hexdigest()
        for name, tensor in tensors.items()
    }


def all_tensors(stage: Any) -> dict[str, Tensor]:
    """Every parameter and buffer of a stage's modules, frozen ones too."""
    modules = nn.ModuleDict({name: value for name, value in vars(stage).items() if isinstance(value, nn.Module)})
    return dict(modules.named_parameters()) | dict(modules.named_buffers())


def run(stage: str, preset: str, folder: Path) -> dict[str, Any]:
    """Train; what came of it."""
    config = configuration(stage, preset, folder)
    start = time.perf_counter()
    made = (OSDStage if stage == "osd" else VREStage)(config, CPU, {})  # type: ignore[arg-type]
    loaded = time.perf_counter() - start
    before = digests(all_tensors(made))
    phase = next(iter(made.phases()))
    gradients: dict[str, list[float]] = defaultdict(list)  # the largest of each trained tensor, step by step
    trained = {name: tensor for name, tensor in all_tensors(made).items() if tensor.requires_grad}
    seconds, losses = [], []
    size = presets.preset(preset).size
    with process_group(CPU):
        engines = {name: Engine(module, how, config, STEPS[stage]) for name, (module, how) in phase.engines.items()}
        moving = {id(parameter) for engine in engines.values() for parameter in engine.parameters}
        trained = {name: tensor for name, tensor in trained.items() if id(tensor) in moving}
        statistics = running_statistics(made, [engine.module for engine in engines.values()])
        for index in range(STEPS[stage]):
            seen: dict[str, float] = dict.fromkeys(trained, 0.0)
            hooks = [tensor.register_hook(_watch(seen, name)) for name, tensor in trained.items()]
            source = torch.Generator().manual_seed(index)
            pictures = {name: torch.rand(1, 3, size, size, generator=source) * 2 - 1 for name in ("hq", "lq")}
            start = time.perf_counter()
            measured = phase.step(Step(index, {"key": ["none"], **pictures}, engines, source))  # type: ignore[arg-type]
            seconds.append(time.perf_counter() - start)
            losses.append({name: float(value) for name, value in measured.items()})
            for name, largest in seen.items():
                gradients[name].append(largest)
            for hook in hooks:
                hook.remove()
            print(stage, index, f"{seconds[-1]:.0f} s", losses[-1], file=sys.stderr, flush=True)
        peak = peak_memory(CPU)
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


def report(machine: dict[str, Any], preset: str, runs: list[dict[str, Any]]) -> str:
    rows = [
        {
            "stage": {"osd": "2", "vre": "1, HQ dictionary"}[one["stage"]],
            "steps": len(one["step_seconds"]),
            "s a step": ", ".join(f"{s:.0f}" for s in one["step_seconds"]),
            "peak, GiB": one["peak"] / 2**30,
            "estimate, GiB": one["estimate"] / 2**30,
            "tensors trained": one["trained"],
            "of M parameters": one["parameters"] / 1e6,
            "tensors frozen, unchanged": one["frozen"] - len(one["changed_but_frozen"]),
            "faults": len(faults(one)),
        }
        for one in runs
    ]
    sections = [
        f"# Optimisation steps at full size, {preset}, {torch.get_num_threads()} threads",
        f"{machine['date']}; {machine['cpu']}; torch {machine['versions']['torch']}. Random weights, batch 1, fp32, "
        "activation checkpointing.",
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
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of full_size.json and full_size.md")
    parser.add_argument("--run", nargs=2, metavar=("STAGE", "FOLDER"), help="one process, whose peak is its own")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.run:
        stage, folder = options.run
        found = run(stage, options.preset, Path(folder))
        (Path(folder) / f"{stage}.json").write_text(json.dumps(found))
        return 0
    runs = []
    with tempfile.TemporaryDirectory() as name:
        words = [sys.executable, "-m", "benchmarks.full_size", "--preset", options.preset]
        words += ["--threads", str(options.threads)]
        made = (
            f"from pathlib import Path; from benchmarks.full_size import make; make({options.preset!r}, Path({name!r}))"
        )
        subprocess.run([sys.executable, "-c", made], check=True)
        for stage in options.stages:
            subprocess.run([*words, "--run", stage, name], check=True)
            runs.append(json.loads((Path(name) / f"{stage}.json").read_text()))
    machine = record.machine(["torch", "diffusers", "peft", "deepspeed"])
    facts = {"preset": options.preset, "threads": options.threads, "runs": runs}
    text = report(machine, options.preset, runs)
    record.write("full_size", machine | facts, text, options.out)
    print(text)
    return 1 if any(faults(one) for one in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
