"""Training steps of the tiny preset under Ray Train and DeepSpeed, against a bare PyTorch loop of the same steps.

`python -m benchmarks.train_step` writes benchmarks/results/train_step.json and .md. Both sides train the same modules
with the same optimizers on the same stored pairs in the same order, the bare one with torch.optim, a DataLoader and,
for two workers, DDP over gloo. Each side has processes of its own; they take turns, a block of steps each. Ours is all
that a run does in a step: checks, figures, records. Exits with 1 where ours makes fewer than 0.97 of the bare loop's
pictures a second, or waits for data for more than 2 % of the time.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from benchmarks import record
from jobs import configs
from osdface import presets, procedural
from osdface.base import new_base, save_base
from osdface.config import load, resolved
from pipelines import cluster, launch, preemption, tracking
from pipelines.pairs.manifest import read_manifest
from pipelines.pairs.reading import PairDataset, ShuffledBatches
from pipelines.synthesize.build import synthesize
from pipelines.synthesize.config import SynthConfig
from pipelines.train_osd import OSDConfig, OSDStage
from pipelines.train_vre import VREConfig, VREStage
from pipelines.training import Optimizer, Phase, Step, TrainConfig

ENOUGH, WAIT = 0.97, 0.02
NICE = 15  # Ray's workers step behind all else on a machine; so does the other side
LIBRARIES = ("torch", "ray", "deepspeed", "mlflow")
CPU = torch.device("cpu")
SIDES = ("ours", "bare")


class Turns:
    """One side's turns. The judge writes `go-SIDE-BLOCK`; a side answers `done-SIDE-BLOCK` with the block's seconds."""

    def __init__(self, folder: str, side: str, block: int, rank: int):
        self.folder, self.side, self.block, self.rank = Path(folder), side, block, rank
        self.since = 0.0

    def at(self, step: int) -> None:
        """A step is about to begin: where that ends a block, say so and wait for the next turn."""
        number, rest = divmod(step, self.block)
        if rest:
            return
        if number and self.rank == 0:
            put(self.folder / f"done-{self.side}-{number - 1}", {"seconds": time.perf_counter() - self.since})
        wait(self.folder / f"go-{self.side}-{number}")
        self.since = time.perf_counter()


def put(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value))
    temporary.rename(path)


def wait(path: Path, alive: Any = lambda: None) -> Any:
    while not path.exists():
        alive()
        time.sleep(0.002)
    return json.loads(path.read_text())


# Ours


class _Paced:
    """A stage whose steps wait for their turn."""

    def __init__(self, config: TrainConfig, device: torch.device, origin: dict[str, Any]):
        super().__init__(config, device, {})  # type: ignore[call-arg]
        rank = dist.get_rank() if dist.is_initialized() else 0
        self.turns = Turns(origin["turns"], "ours", origin["block"], rank)

    def phases(self) -> Iterator[Phase]:
        for phase in super().phases():  # type: ignore[misc]
            yield dataclasses.replace(phase, step=self._paced(phase.step))

    def _paced(self, step: Any) -> Any:
        def paced(one: Step) -> Any:
            self.turns.at(one.index)
            return step(one)

        return paced


class PacedOSD(_Paced, OSDStage):
    pass


class PacedVRE(_Paced, VREStage):
    pass


class Figures:
    """Stands where a run's progress goes: keeps the seconds that each logged stretch of steps waited for data."""

    def __init__(self, folder: str, batch_size: int, block: int):
        self.folder, self.batch_size, self.block = folder, batch_size, block

    def put(self, event: tuple) -> None:
        phase, step, _, values = event
        rate, share = values[f"{phase}/pictures_per_second"], values[f"{phase}/data_wait"]
        steps = 1 if step == 1 else self.block
        path = Path(self.folder) / f"waited-{(step - 1) // self.block}"
        put(path, {"waited": share * steps * self.batch_size / rate})


def _work(loop: dict[str, Any]) -> None:
    launch.STAGES.update({"osd": f"{MODULE}:PacedOSD", "vre": f"{MODULE}:PacedVRE"})
    launch._work(loop)


MODULE = "benchmarks.train_step"


def ours(stage: str, config: TrainConfig, turns: Path, block: int) -> None:
    """Train on Ray Train workers, as `launch` does it."""
    import ray.train.torch

    manifest = read_manifest(config.folder)
    with tracking.run(stage, turns.name, resolved(config), manifest, config.folder, {}) as run:
        loop = {
            "stage": stage, "config": resolved(config), "origin": {"turns": str(turns), "block": block},
            "run": (run.id, run.uri), "queue": Figures(str(turns), config.batch_size, block), "checkpoint": [],
            "flag": preemption.beside(),
        }  # fmt: skip
        scaling = ray.train.ScalingConfig(
            num_workers=config.workers, resources_per_worker={"CPU": config.cpus_per_worker}
        )
        where = ray.train.RunConfig(name=turns.name, storage_path=str(turns.parent / "runs"))
        ray.train.torch.TorchTrainer(_work, train_loop_config=loop, scaling_config=scaling, run_config=where).fit()


# The bare loop


class Bare:
    """A module and its optimizer; DDP around it where there are ranks."""

    def __init__(self, module: nn.Module, how: Optimizer):
        self.module = module
        self.optimizer = how.build([p for p in module.parameters() if p.requires_grad])
        parallel = dist.is_initialized()
        self.called = DistributedDataParallel(module, broadcast_buffers=False) if parallel else module

    def __call__(self, *inputs: Any) -> Any:
        return self.called(*inputs)

    def backward(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()


def bare(stage: str, config: TrainConfig, turns: Path, block: int, rank: int) -> None:
    """The same steps, written down."""
    os.nice(NICE - os.nice(0))
    torch.set_num_threads(config.threads)
    if config.workers > 1:
        meeting = f"file://{turns}/meeting"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=config.workers)
    made = (OSDStage if stage == "osd" else VREStage)(config, CPU, {})  # type: ignore[arg-type]
    phase = list(made.phases())[-1]
    data = PairDataset(config.folder, "train")
    batches, steps = ShuffledBatches(data, config.batch_size, config.seed), phase.duration.resolve(1)
    order = [batches.part(index, rank, config.workers) for index in range(steps)]
    engines = {name: Bare(module, how) for name, (module, how) in phase.engines.items()}
    pace = Turns(str(turns), "bare", block, rank)
    for index, batch in enumerate(DataLoader(data, batch_sampler=order, num_workers=1)):
        pace.at(index)
        noise = torch.Generator().manual_seed(index)
        phase.step(Step(index, batch, engines, noise, rank, config.workers))
    if config.workers > 1:
        dist.destroy_process_group()


# The race


def inputs(folder: Path, pictures: int) -> None:
    """Pairs of procedural faces, an untrained base and an untrained stage 1."""
    procedural.make(folder / "faces", pictures, presets.preset("tiny").size)
    synthesize(SynthConfig(sources=[folder / "faces"], out=str(folder / "pairs"), size=64, shard_rows=64))
    torch.manual_seed(0)
    save_base(new_base(presets.preset("tiny")), folder / "base")
    VREStage(configuration("vre", folder, 1, 1, 1), CPU, {}).save(folder / "vre")  # type: ignore[arg-type]


def configuration(stage: str, folder: Path, workers: int, steps: int, block: int) -> TrainConfig:
    """The tiny preset's own, with as many steps of its last phase."""
    wanted = [f"workers={workers}", f"log_every={block}", "checkpoint_every=1000000"]
    places = {"data": str(folder / "pairs"), "out": folder / "out"}
    path = configs.find("tiny", stage)
    if stage == "osd":
        wanted += [f"duration={{steps: {steps}}}"]
        return load(OSDConfig, path, wanted, base=folder / "base", vre=folder / "vre", **places)
    wanted += ["hq={steps: 0}", "lq={steps: 0}", f"association={{steps: {steps}}}", "losses.adversarial_start=0"]
    return load(VREConfig, path, wanted, **places)


def race(stage: str, folder: Path, workers: int, rounds: int, block: int) -> dict[str, Any]:
    """Seconds of every block of both sides, the first left out, and what comes of them."""
    steps = (rounds + 1) * block + 1
    config = configuration(stage, folder, workers, steps, block)
    turns = folder / f"{stage}-{workers}"
    turns.mkdir()
    put(turns / "config.json", resolved(config))
    words = [sys.executable, "-m", MODULE, "--run", stage, str(turns), str(block)]
    started = [subprocess.Popen([*words, "ours", "0"])]
    started += [subprocess.Popen([*words, "bare", str(rank)]) for rank in range(workers)]

    def alive() -> None:
        if failed := [process.args for process in started if process.poll()]:
            raise SystemExit(f"a side failed: {failed}")

    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    try:
        for number in range(rounds + 1):
            for side in SIDES:
                put(turns / f"go-{side}-{number}", {})
                seconds[side].append(wait(turns / f"done-{side}-{number}", alive)["seconds"])
        for side in SIDES:
            put(turns / f"go-{side}-{rounds + 1}", {})
        for process in started:
            process.wait()
    finally:
        for process in started:
            process.kill()
    waited = [wait(turns / f"waited-{number}")["waited"] for number in range(2, rounds + 2)]
    middle = {side: median(seconds[side][1:]) for side in SIDES}
    return {
        "stage": stage,
        "workers": workers,
        "pictures_per_second": {side: block * config.batch_size / middle[side] for side in SIDES},
        "ratio": median(bare / ours for ours, bare in zip(*(seconds[side][1:] for side in SIDES), strict=True)),
        "data_wait": sum(waited) / sum(seconds["ours"][1:]),
        "seconds": {side: seconds[side][1:] for side in SIDES},
    }


def good(one: dict[str, Any]) -> bool:
    return one["ratio"] >= ENOUGH and one["data_wait"] <= WAIT


def report(machine: dict[str, Any], races: list[dict[str, Any]], rounds: int, block: int) -> str:
    rows = [
        {
            "stage": {"osd": "2", "vre": "1, association"}[one["stage"]],
            "workers": one["workers"],
            "bare, pictures/s": one["pictures_per_second"]["bare"],
            "ours, pictures/s": one["pictures_per_second"]["ours"],
            "ratio": f"{one['ratio']:.3f}",
            "data wait": f"{100 * one['data_wait']:.2f} %",
        }
        for one in races
    ]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return "\n\n".join(
        [
            "# Training steps, tiny preset, a thread a worker",
            f"{machine['date']}; {machine['cpu']}, {machine['cores']} cores; Python {machine['python']}, {versions}.",
            f"Medians over {rounds} blocks of {block} steps, both sides in turn; ratios are of neighbouring blocks, "
            f"held to {ENOUGH}, and to {100 * WAIT:g} % of the time waiting for data.",
            record.table(rows),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--stages", nargs="*", default=["osd", "vre"])
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9, help="blocks of each side that count")
    parser.add_argument("--block", type=int, default=8, help="steps of a block")
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of train_step.json and train_step.md")
    parser.add_argument("--run", nargs=5, metavar=("STAGE", "TURNS", "BLOCK", "SIDE", "RANK"), help="one process")
    options = parser.parse_args()
    if options.run:
        stage, turns, block, side, rank = options.run
        kind = OSDConfig if stage == "osd" else VREConfig
        config = kind.model_validate(json.loads((Path(turns) / "config.json").read_text()))
        if side == "bare":
            bare(stage, config, Path(turns), int(block), int(rank))
        else:
            cluster.connect(cpus=4)
            ours(stage, config, Path(turns), int(block))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"OSDFACE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        subprocess.run([sys.executable, "-c", _MAKE, name, str(options.pictures)], check=True)  # its Ray ends with it
        races = []
        for stage in options.stages:
            for workers in options.workers:
                races.append(race(stage, folder, workers, options.rounds, options.block))
                print({key: value for key, value in races[-1].items() if key != "seconds"}, file=sys.stderr)
    machine = record.machine(LIBRARIES)
    text = report(machine, races, options.rounds, options.block)
    record.write("train_step", {"machine": machine, "races": races}, text, options.out)
    print(text)
    return 0 if all(map(good, races)) else 1


_MAKE = (
    f"import sys; from pathlib import Path; from {MODULE} import inputs; inputs(Path(sys.argv[1]), int(sys.argv[2]))"
)


if __name__ == "__main__":
    sys.exit(main())
