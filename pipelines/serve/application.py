"""What is served: the Serve application, and the configuration file that starts it anywhere.

Everything that changes while an endpoint runs is in the `user_config` of its deployments, and how many replicas a slot
has; Serve then changes running replicas and starts none anew.
"""

from pathlib import Path
from typing import Any

from ray import serve

from osdface import bundle
from osdface.config import resolved
from pipelines import registry
from pipelines.serve.settings import BATCH, SLOTS, Loaded, Model, Routing, Settings, Slot

NAME = "osdface"  # of the application
IMPORT = "pipelines.serve.application:build"
INGRESS = "ingress"
IDLE = {"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1, "downscale_delay_s": 2}


def describe(ref: str) -> Loaded:
    """The bundle of a model reference, and what is told about it. Raises UserError where it isn't found."""
    version = None if Path(ref).is_dir() else registry.find(ref)  # a folder comes first, as for the restorer
    return of_version(version) if version else of_folder(bundle.resolve(ref))


def of_version(version: registry.Version) -> Loaded:
    """The bundle of a registered version, fetched where it isn't here."""
    ref = f"models:/{version.name}/{version.version}"
    return of_folder(registry.fetch(version), ref, version.version)


def of_folder(folder: Path, ref: str = "", version: str = "") -> Loaded:
    """A bundle on disk; one that isn't registered has its digest as its version."""
    config, digest = bundle.verify(folder), bundle.digest(folder)
    bundle.base_folder(folder, config)  # it may lie outside the bundle
    provenance = config.provenance
    return Loaded(
        folder=str(folder.absolute()),
        ref=ref or str(folder.absolute()),
        model=Model(
            model=ref or folder.name,
            version=version or digest,
            run_id=provenance.runs.get("osd", "unknown"),
            dataset_digest=provenance.dataset_digest or "unknown",
            bundle_digest=digest,
            preset=config.preset,
        ),
    )


def build(settings: Settings) -> serve.Application:
    """The application of an ingress and two slots, as Serve builds it from a configuration file's arguments."""
    from pipelines.serve.ingress import Ingress
    from pipelines.serve.replica import Replica

    replica = serve.deployment(
        max_ongoing_requests=4 * BATCH,
        max_queued_requests=settings.waiting,
        max_constructor_retry_count=3,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        health_check_period_s=10,
        health_check_timeout_s=60,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=60,
    )(Replica)
    slots = [replica.options(name=slot).bind(settings) for slot in SLOTS]
    ingress = serve.deployment(
        name=INGRESS,
        max_ongoing_requests=1000,  # refused by what it asks, not by this
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_wait_loop_s=0.2,
    )(Ingress)
    return ingress.bind(settings, *slots)


def configuration(settings: Settings, loaded: Loaded, host: str, port: int) -> dict[str, Any]:
    """A Serve configuration file (`serve deploy`, KubeRay's `serveConfigV2`) of an endpoint, and its first model."""
    routing = Routing(champion="a", models={"a": loaded.model})
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": port},
        "logging_config": {"enable_access_log": False},
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": IMPORT,
                "args": resolved(settings),
                "deployments": [
                    {"name": INGRESS, "user_config": resolved(routing)},
                    live_slot("a", loaded, settings),
                    {"name": "b", "autoscaling_config": IDLE},
                ],
            }
        ],
    }


def live_slot(slot: Slot, loaded: Loaded, settings: Settings) -> dict[str, Any]:
    """A slot's part of the file while it has a version: as many replicas as their queues need."""
    least, most = settings.replicas
    scaling = {
        "min_replicas": least,
        "max_replicas": most,
        "target_ongoing_requests": 2 * BATCH,
        "upscale_delay_s": 5,
        "downscale_delay_s": 120,
    }
    return {"name": slot, "user_config": resolved(loaded), "autoscaling_config": scaling}
