"""What the nodes of a cluster must share: looked for on each of them before a training begins."""

import uuid
from collections.abc import Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from osdface.errors import UserError
from pipelines import cluster, tracking
from pipelines.store import STORAGE, Store


def refuse_unshared(storage: Store, read: Sequence[str]) -> None:
    """Raise UserError where a cluster has several nodes and one cannot reach the storage, or what it is to read.

    read: files or folders, each a path or URL. MLflow's records may not be in a file then. Nodes that an autoscaler
    adds later are looked at by Ray Train.
    """
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) > 1 or cluster.grown():
        _refuse_file(tracking.uri())
    if len(nodes) < 2:
        return
    mark = f".shared-{uuid.uuid4().hex}"
    storage.put(mark, b"")
    try:
        if fault := _unseen(nodes, storage.label(mark)):
            raise UserError(f"{storage}: {fault}; give a URL or a folder that all nodes share as {STORAGE}")
    finally:
        storage.remove(mark)
    for place in read:
        if fault := _unseen(nodes, place):
            raise UserError(f"{place}: {fault}; put it where all nodes reach it")


def _refuse_file(address: str) -> None:
    if "://" not in address or address.startswith(("sqlite:", "file:")):
        raise UserError(
            f"MLflow at {address}: a file on one node, and the cluster has several; start a server and name it in "
            "MLFLOW_TRACKING_URI"
        )


def _unseen(nodes: dict[str, str], place: str) -> str:
    """What is wrong with a file or folder as the first node has it that does not see it, and which; "" if all do."""
    asked = {node: _look.options(scheduling_strategy=_only(node)).remote(place) for node in nodes}
    return next((f"{fault} on {host}" for node, host in nodes.items() if (fault := ray.get(asked[node]))), "")


def _only(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


@ray.remote(num_cpus=0)
def _look(place: str) -> str:
    """What is wrong with a file or folder as this node sees it; "" if nothing is."""
    try:
        return "" if Store(place).exists() else "is not there"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
