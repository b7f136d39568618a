"""Training runs: the names they go by in the storage, which one is gone on with, and what they have come to."""

import fnmatch
import json
from datetime import datetime
from typing import Any, NamedTuple

from osdface.errors import UserError
from pipelines import tracking
from pipelines.store import STORAGE, Reference, Store, storage

FOLDER = "runs"  # of the storage: a note for each run, and its checkpoints in a folder of its name
NOTE = "state.json"  # in a checkpoint: where training stood
OWN = "checkpoint_??????"  # those that training without Ray leaves, by number; Ray Train's, by date, have longer names
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of the checkpoints that are whole
STAGES = ("base", "vre", "osd")
OF_THE_MACHINE = ("pictures_per_second", "data_wait", "memory_gib", "checkpoint_mib")


class Training(NamedTuple):
    """A training as the tracking server has it. losses: the last value of each; output: where it was put, if it was."""

    name: str
    id: str
    stage: str
    status: str
    begun: datetime
    dataset: str
    losses: dict[str, float]
    output: str


class Kept(NamedTuple):
    """A checkpoint in the storage: where training stood, its size, and what validation gave."""

    folder: str
    at: str
    mib: float
    scores: dict[str, float]


class Found(NamedTuple):
    """A run in the storage. known: what was noted of it, empty for one that is to begin."""

    name: str
    known: dict[str, Any]


def place() -> Store:
    """Where runs are kept."""
    return storage(FOLDER)


def note_of(name: str) -> dict[str, Any]:
    """What is noted of a run: stage, digest, run_id, identity. Empty where there is none.

    Raises UserError for a storage that does not answer.
    """
    try:
        return json.loads(place().read(f"{name}.json"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{place()}: cannot be read ({error.strerror or error}); see {STORAGE}") from None


def remember(name: str, note: dict[str, Any]) -> None:
    """Note a run, as it begins."""
    place().put(f"{name}.json", json.dumps(note, indent=2, default=str).encode())


def choose(stage: str, digest: str, identity: dict[str, Any], resume: str) -> Found:
    """The run to go on with, or the name of a new one.

    resume: "auto" takes the newest run of this digest; "never" a new name; anything else is a run's name. Raises
    UserError for a run that is not there, or was begun with something else: what differs is named.
    """
    plain = f"{stage}-{digest[:12]}"
    if resume not in ("auto", "never"):
        note = note_of(resume)
        if not note:
            raise UserError(f"--resume {resume}: no such run in {place()}; see osdface runs list")
        if note["digest"] != digest:
            differing = ", ".join(_differing(note.get("identity", {}), identity)) or "its format"
            raise UserError(f"--resume {resume}: it was begun otherwise ({differing}); --resume auto begins a new one")
        return Found(resume, note)
    names = [plain]
    while note_of(names[-1]):
        names.append(f"{plain}-{len(names) + 1}")
    if resume == "never" or len(names) == 1:
        return Found(names[-1], {})
    found = Found(names[-2], note_of(names[-2]))
    if found.known.get("digest", digest) != digest:
        raise UserError(f"{found.name}: a run of this name was begun with something else; give --resume never")
    return found


def _differing(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key in sorted(before.keys() | now.keys()):
        one, two = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            names += _differing(one, two, f"{prefix}{key}.")
        elif one != two:
            names.append(f"{prefix}{key} was {one}" if key in before else f"{prefix}{key} is new")
    return [name.removeprefix("config.") for name in names]


def whole_checkpoints(name: str) -> list[str]:
    """A run's checkpoints that were written to their end, as folders or URLs, the one that is furthest last."""
    run = Store(place().label(name))
    found = set(fnmatch.filter(run.names(), OWN))
    if run.exists(SNAPSHOT):
        snapshot = json.loads(run.read(SNAPSHOT))
        results = [*snapshot["checkpoint_results"], *filter(None, [snapshot.get("latest_checkpoint_result")])]
        found |= {result["checkpoint_dir_name"] for result in results}
    whole = [folder for folder in found if run.exists(f"{folder}/{NOTE}")]
    return [run.label(folder) for folder in sorted(whole, key=lambda folder: _reached(run, folder))]


def checkpoint_note(checkpoint: Reference) -> dict[str, Any]:
    """What is noted of a checkpoint."""
    return json.loads(Store(checkpoint).read(NOTE))


def _reached(run: Store, checkpoint: str) -> tuple:
    note, name = checkpoint_note(run.label(checkpoint)), f"{checkpoint}/{NOTE}"
    return note["phase"], note["step"], note.get("exported") is not None, run.modified(name)


def trainings(stage: str | None = None, count: int = 20) -> list[Training]:
    """The newest trainings. Raises UserError for a stage that is none, or a server that does not answer."""
    if stage not in (None, *STAGES):
        raise UserError(f"--stage {stage}: no such stage; there are {', '.join(STAGES)}")
    return [_training(run) for run in _search([stage] if stage else list(STAGES), "", count)]


def training(name: str) -> Training:
    """A training by its name or id, the newest of that name. Raises UserError if there is none."""
    for condition in (f"attributes.run_name = '{name}'", f"attributes.run_id = '{name}'"):
        if "'" not in name and (found := _search(list(STAGES), condition, 1)):
            return _training(found[0])
    raise UserError(f"{name}: no such run; see osdface runs list")


def measured(run_id: str) -> dict[str, float]:
    """All that was ever measured in a run: the last values, but for the machine's."""
    values = tracking.client(tracking.uri()).get_run(run_id).data.metrics
    return {name: value for name, value in sorted(values.items()) if not name.startswith("system/")}


def checkpoints(name: str) -> list[Kept]:
    """A run's whole checkpoints in the storage, the last one last."""
    kept = []
    for folder in whole_checkpoints(name):
        note = checkpoint_note(folder)
        at = "end" if note.get("exported") else f"phase {note['phase']}, step {note['step']}"
        size = sum(size for file, size in Store(folder).sizes("").items() if file.endswith(".safetensors"))
        kept.append(Kept(folder, at, size / 2**20, note.get("scores", {})))
    return kept


def _search(stages: list[str], condition: str, count: int) -> list[Any]:
    made = tracking.client(tracking.uri())
    found = [made.get_experiment_by_name(f"osdface/{stage}") for stage in stages]
    ids = [experiment.experiment_id for experiment in found if experiment]
    return list(made.search_runs(ids, condition, max_results=count, order_by=["start_time DESC"])) if ids else []


def _training(run: Any) -> Training:
    """Losses are what is left when norms, rates and the machine's figures are taken away."""
    tags, metrics = run.data.tags, run.data.metrics
    losses = {name: value for name, value in sorted(metrics.items()) if _is_loss(name)}
    stage = tags.get(f"{tracking.TAG}stage", run.info.run_name.partition("-")[0])
    begun = datetime.fromtimestamp(run.info.start_time / 1000)
    dataset, output = (tags.get(f"{tracking.TAG}{name}", "") for name in ("dataset_digest", "output"))
    return Training(run.info.run_name, run.info.run_id, stage, run.info.status, begun, dataset, losses, output)


def _is_loss(name: str) -> bool:
    phase, _, rest = name.partition("/")
    return phase not in ("system", "start", "end") and bool(rest) and "/" not in rest and rest not in OF_THE_MACHINE
