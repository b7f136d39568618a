"""The pictures of `osdface restore` over Ray Data, each actor with a model of its own.

The cluster's machines see the pictures, the model and --out at the same paths.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ray
import ray.data
from ray.exceptions import RayTaskError

from osdface.errors import UserError
from pipelines import cluster, photographs
from pipelines.photographs import Order, Row, Task
from pipelines.restore_folder import Run

TOGETHER = 8  # pictures that an actor takes at once


class Actor:
    """Holds a model; takes tasks and gives rows, both as JSON."""

    def __init__(self, order: str):
        self.order = Order.model_validate_json(order)
        self.restorer = photographs.load(self.order)

    def __call__(self, batch: dict) -> dict:
        tasks = [Task(name, at, Path(out), earlier) for name, at, out, earlier in map(json.loads, batch["task"])]
        return {"row": [json.dumps(row) for row in photographs.run(tasks, self.order, self.restorer)]}


class Shape(NamedTuple):
    """How many actors a cluster holds, and what each takes: a GPU, or else the CPUs of the smallest machine but one.

    That one is for reading; there is then an actor for each machine.
    """

    actors: int
    cpus: int
    gpus: int

    @classmethod
    def of(cls, machines: list[dict[str, float]]) -> "Shape":
        """Of machines with their CPUs and GPUs, as Ray names its resources."""
        gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
        if gpus:
            return cls(gpus, 1, 1)
        cpus = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
        return cls(len(cpus), max(1, min(cpus, default=1) - 1), 0)


def on(address: str) -> Run:
    """Rows of tasks from the Ray cluster at `address`, in any order. Raises UserError as `photographs.run` does."""

    def run(tasks: list[Task], order: Order) -> Iterator[Row]:
        cluster.connect(address)
        shape = Shape.of([node["Resources"] for node in ray.nodes() if node["Alive"]])
        cluster.require_cpus(max(1, shape.cpus))
        items = [{"task": json.dumps(task, default=str)} for task in tasks]
        blocks = -(-len(items) // TOGETHER) or 1
        rows = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
            Actor,
            batch_size=TOGETHER,
            fn_constructor_args=(order.model_dump_json(),),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(shape.actors, blocks))),
            num_cpus=shape.cpus,
            num_gpus=shape.gpus,
        )
        try:
            for row in rows.iter_rows() if items else ():
                yield json.loads(row["row"])
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise

    return run
