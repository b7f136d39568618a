"""The MLflow model registry: versions of restorers, aliases, and the way back from a version to its sources."""

from pipelines.registry.ancestry import lineage, lineage_of_answer
from pipelines.registry.model_versions import (
    ALIASES,
    NAME,
    Version,
    aliases,
    fetch,
    find,
    promote,
    register,
    repoint,
    resolve,
    version,
    versions,
)

__all__ = [
    "ALIASES",
    "NAME",
    "Version",
    "aliases",
    "fetch",
    "find",
    "lineage",
    "lineage_of_answer",
    "promote",
    "register",
    "repoint",
    "resolve",
    "version",
    "versions",
]
