"""What is served: from a model reference to a Serve application. The endpoint's own processes do not need this."""

from pathlib import Path

from ray import serve

from osdface import bundle
from pipelines import registry
from pipelines.serve import app, replica
from pipelines.serve.app import Limits, Model


def describe(ref: str) -> tuple[str, Model]:
    """The local bundle folder of a reference, and what is told about it. Raises UserError where it isn't found."""
    version = None if Path(ref).is_dir() else registry.find(ref)  # a folder comes first, as for the restorer
    folder = registry.fetch(version) if version else bundle.resolve(ref)
    config, digest = bundle.verify(folder), bundle.digest(folder)
    bundle.base_folder(folder, config)  # it may lie outside the bundle
    provenance = config.provenance
    return str(folder.absolute()), Model(
        model=f"models:/{version.name}/{version.version}" if version else folder.name,
        version=version.version if version else digest,
        run_id=provenance.runs.get("osd", "unknown"),
        dataset_digest=provenance.dataset_digest or "unknown",
        bundle_digest=digest,
        preset=config.preset,
    )


def build(ref: str, limits: Limits | None = None, threads: int = 1) -> tuple[serve.Application, Model]:
    """The Serve application for a model reference."""
    folder, model = describe(ref)
    limits = limits or Limits()
    model_replica = replica.deployment.bind(folder, limits.pixels, threads)
    return app.deployment.bind(model_replica, model.model_dump(), limits.model_dump()), model
