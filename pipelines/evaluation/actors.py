"""Chunks measured over Ray Data, each actor with models and metrics of its own.

The cluster's machines see the pictures and the models at the same paths.
"""

import json
from collections.abc import Iterator

import numpy as np
import ray
import ray.data
from ray.exceptions import RayTaskError

from osdface.errors import UserError
from pipelines import cluster
from pipelines.evaluation.measure import Job, Measured, Measurer, chunks
from pipelines.restore_cluster import Shape

ROW, SHOWN, FEATURES = "row", "shown:", "features:"


class Actor:
    """Takes the numbers of a chunk and gives what is measured, as columns."""

    def __init__(self, job: Job):
        self.measure = Measurer(job)

    def __call__(self, batch: dict) -> dict:
        (chunk,) = batch["chunk"]
        return _columns(self.measure(json.loads(chunk)))


def over(job: Job, workers: int | None, address: str | None = None) -> Iterator[list[Measured]]:
    """Every chunk, in any order, from at most `workers` actors of a cluster, or of this machine.

    workers: None for as many as fit. Raises UserError as a `Measurer` does, and where there are no CPUs for an actor.
    """
    cluster.connect(address)
    shape = Shape.of([node["Resources"] for node in ray.nodes() if node["Alive"]])
    cpus = 1 if address is None else shape.cpus
    cluster.require_cpus(1 + cpus)  # one for reading
    orders = [{"chunk": json.dumps(list(chunk))} for chunk in chunks(job.pictures)]
    rows = ray.data.from_items(orders, override_num_blocks=len(orders)).map_batches(
        Actor,
        batch_size=1,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(workers or shape.actors, len(orders)))),
        num_cpus=cpus,
        num_gpus=shape.gpus,
    )
    try:
        for row in rows.iter_rows():
            yield [_measured(row)]
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


def _columns(measured: list[Measured]) -> dict[str, list | np.ndarray]:
    first = measured[0]
    columns: dict[str, list | np.ndarray] = {
        "number": [one.number for one in measured],
        ROW: [json.dumps(one.row) for one in measured],
    }
    columns |= {SHOWN + what: np.stack([one.shown[what] for one in measured]) for what in first.shown}
    return columns | {FEATURES + json.dumps(at): np.stack([m.features[at] for m in measured]) for at in first.features}


def _measured(row: dict) -> Measured:
    named = {tuple(json.loads(n.removeprefix(FEATURES))): value for n, value in row.items() if n.startswith(FEATURES)}
    shown = {name.removeprefix(SHOWN): value for name, value in row.items() if name.startswith(SHOWN)}
    return Measured(int(row["number"]), json.loads(row[ROW]), named, shown)
