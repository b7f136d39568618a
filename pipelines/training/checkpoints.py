"""Checkpoints: what is trained, what its optimizers keep, and where training stands, whatever machines it runs on.

Tensors are whole and fp32, by the names of `Stage.state`, so a training goes on with any number of workers and at any
ZeRO stage. Frozen parts are not in them.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from osdface.errors import UserError
from pipelines.runs import NOTE, checkpoint_note
from pipelines.store import Reference
from pipelines.training.engines import AVERAGE, Engine, Position
from pipelines.training.stage import Stage

FORMAT = 2  # 1 had the engines' own pickled files, partitioned as the workers were
STATE, MOMENTS = "state.safetensors", "moments.safetensors"


@dataclass
class Snapshot:
    """A training at the beginning of step `step` of phase `phase`.

    state: by the names of `Stage.state`. moments: "exp_avg/NAME" and so on for the running phase's parameters, and
    "ema/NAME" for all that were ever trained. positions: of the running phase's engines. exported: the choice of
    weights that its output was made with, of a training at its end.
    """

    phase: int = 0
    step: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    positions: dict[str, Position] = field(default_factory=dict)
    exported: str | None = None

    def load(self, stage: Stage) -> None:
        """Put the tensors into a stage."""
        _copy(self.state, stage)

    def ended(self) -> "Snapshot":
        """The same at the end of its phase: of what is kept, only the averages are wanted any more."""
        averages = {name: value for name, value in self.moments.items() if name.startswith(f"{AVERAGE}/")}
        return Snapshot(self.phase, self.step, self.state, averages)

    def export(self, stage: Stage, choice: str) -> None:
        """Put the last weights into a stage, or their moving average."""
        averages = {name.partition("/")[2]: value for name, value in self.ended().moments.items()}
        _copy(self.state | averages if choice == AVERAGE else self.state, stage)

    def kept(self, stage: Stage) -> dict[tuple[str, nn.Parameter], Tensor]:
        """The moments by name and parameter, for engines."""
        live = stage.state()
        split = {name: name.partition("/") for name in self.moments}
        return {(kind, live[of]): self.moments[name] for name, (kind, _, of) in split.items()}  # type: ignore[misc]


def _copy(tensors: dict[str, Tensor], stage: Stage) -> None:
    for name, tensor in stage.state().items():
        tensor.data.copy_(tensors[name])


def take(stage: Stage, engines: dict[str, Engine], phase: int, step: int, averages: dict[str, Tensor]) -> Snapshot:
    """A snapshot, on the CPU. Every rank calls it. averages: "ema/NAME" of what no engine trains now."""
    owners = {id(parameter): engine for engine in engines.values() for parameter in engine.parameters}
    names = {id(tensor): name for name, tensor in stage.state().items()}
    assert owners.keys() <= names.keys(), "Stage.state() does not name every parameter that its engines train"
    snapshot = Snapshot(phase, step, moments=dict(averages))
    for name, tensor in stage.state().items():
        if engine := owners.get(id(tensor)):
            snapshot.state[name] = _kept(engine.whole(tensor))  # type: ignore[arg-type]
            for kind in engine.kept():
                snapshot.moments[f"{kind}/{name}"] = _kept(engine.whole(tensor, kind))  # type: ignore[arg-type]
        else:
            snapshot.state[name] = _kept(tensor)
    snapshot.positions = {name: engine.position() for name, engine in engines.items()}
    return snapshot


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def write(folder: Path, snapshot: Snapshot, seconds: float, **note: Any) -> int:
    """Write a snapshot, the seconds that training took up to it, and what else is noted; returns the bytes written."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(snapshot.state, folder / STATE)
    save_file(snapshot.moments, folder / MOMENTS)
    where = {"phase": snapshot.phase, "step": snapshot.step, "positions": snapshot.positions}
    noted = {"format_version": FORMAT, **where, "exported": snapshot.exported, "seconds": seconds, **note}
    (folder / NOTE).write_text(json.dumps(noted, indent=2))
    return sum(path.stat().st_size for path in (folder / STATE, folder / MOMENTS))


def note(folder: Reference) -> dict[str, Any]:
    """What is noted of a checkpoint. Raises UserError for one of another format."""
    found = checkpoint_note(folder)
    if (version := found.get("format_version", 1)) != FORMAT:
        raise UserError(
            f"{folder}: a checkpoint of format {version}, where this program reads {FORMAT}; train anew with "
            "--resume never"
        )
    return found


def seconds(folder: Reference) -> float:
    """What training took up to a checkpoint; 0 where that was not noted yet."""
    return note(folder).get("seconds", 0.0)


def read(folder: Path) -> Snapshot:
    """The snapshot in a folder. Raises UserError for one of another format."""
    found = note(folder)
    positions = {name: Position(position) for name, position in found["positions"].items()}
    state, moments = (load_file(folder / name) for name in (STATE, MOMENTS))
    return Snapshot(found["phase"], found["step"], state, moments, positions, found["exported"])
