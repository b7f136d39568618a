"""The pictures of `osdface restore` over Ray Data, each actor with a model of its own.

The cluster's machines see the pictures, the model and --out at the same paths.
"""

import json
from collections.abc import Iterator
from pathlib import Path

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


def on(address: str, actors: int = 1) -> Run:
    """Rows of tasks from the Ray cluster at `address`, in any order. Raises UserError as `photographs.run` does."""

    def run(tasks: list[Task], order: Order) -> Iterator[Row]:
        cluster.connect(address)
        cluster.require_cpus(actors)
        items = [{"task": json.dumps(task, default=str)} for task in tasks]
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= actors else 0
        rows = ray.data.from_items(items, override_num_blocks=max(1, len(items) // TOGETHER)).map_batches(
            Actor,
            batch_size=TOGETHER,
            fn_constructor_args=(order.model_dump_json(),),
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_gpus=gpus,
        )
        try:
            for row in rows.iter_rows() if items else ():
                yield json.loads(row["row"])
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise

    return run
