"""Starting or joining Ray, in one place."""

import json
import logging
import os
import socket
from pathlib import Path

import ray
import ray.data
import yaml

from osdface.errors import UserError

NODES = "OSDFACE_NODES"  # the nodes that a cluster may grow to, their resources as a JSON list: of a submitted job
LAUNCHED = Path("~/ray_bootstrap_config.yaml")  # where `ray up` leaves a cluster's file on its head


def connect(address: str | None = None, cpus: int | None = None) -> None:
    """Join the cluster at `address`, or start Ray on this machine; a session of this process is used again.

    Raises UserError naming the address if no cluster answers there.
    """
    if ray.is_initialized():
        return
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # a job that was submitted: its cluster, also without --address
        address = address or "auto"
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # its controller also ends a run at this pace
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "pipelines.serve.proxy:middlewares")
    # Ray turns token authentication on for a local cluster and warns of it at every start: a good default, said once.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # that its bars are off is our own doing
    try:
        _reach(address)
        ray.init(
            address=address or "local",
            num_cpus=None if address else cpus,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (OSError, RuntimeError, ValueError) as error:
        if not address:
            raise
        raise UserError(f"--address {address}: no Ray cluster answers there ({str(error).splitlines()[0]})") from None
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _reach(address: str | None) -> None:
    """Knock first, since Ray tries for minutes. Raises OSError if nothing listens at HOST:PORT."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def require_cpus(needed: float) -> None:
    """Raise UserError if the cluster has fewer CPUs than the workers ask for (they would wait for ever)."""
    there = _most("CPU")
    if needed > there:
        raise UserError(
            f"the workers ask for {needed:g} CPUs but the cluster has {there:g}; "
            "lower workers or cpus_per_worker (--set workers=1), or join a larger cluster with --address"
        )


def require_gpus(needed: float) -> None:
    """Raise UserError if the cluster has fewer GPUs than the workers ask for."""
    there = _most("GPU")
    if needed > there:
        raise UserError(
            f"the workers ask for {needed:g} GPUs but the cluster has {there:g}; lower workers or gpus_per_worker, or "
            "join a larger cluster with --address"
        )


def launched(file: Path) -> list[dict[str, float]]:
    """Resources of every worker node that the autoscaler of a cluster launcher's file may start.

    Raises UserError where there is no such file.
    """
    try:
        cluster = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{file}: no cluster launcher's file ({str(error).splitlines()[0]})") from None
    kinds = dict(cluster.get("available_node_types", {}))
    kinds.pop(cluster.get("head_node_type"), None)
    return [kind["resources"] for kind in kinds.values() for _ in range(kind.get("max_workers", 0))]


def grown() -> list[dict[str, float]]:
    """Resources of every node that the cluster may grow to; none where no autoscaler is known of."""
    if NODES in os.environ:
        return json.loads(os.environ[NODES])
    file = LAUNCHED.expanduser()
    return launched(file) if file.is_file() else []


def _most(resource: str) -> float:
    """How much of a resource there is, or can be once the autoscaler has done its part."""
    return max(ray.cluster_resources().get(resource, 0), sum(node.get(resource, 0) for node in grown()))
