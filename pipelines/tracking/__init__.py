"""MLflow runs: configuration, lineage, metrics and pictures of every stage. Nothing is pickled."""

from pipelines.tracking.recording import DIGEST_LENGTH, TAG, Named, Run, attach, system_metrics
from pipelines.tracking.revision import REVISION, git_revision
from pipelines.tracking.runs import VALUE_LENGTH, parent, run, surroundings
from pipelines.tracking.server import client, exists, experiment, process_wide, reason, refused, uri

__all__ = [
    "DIGEST_LENGTH",
    "REVISION",
    "TAG",
    "VALUE_LENGTH",
    "Named",
    "Run",
    "attach",
    "client",
    "exists",
    "experiment",
    "git_revision",
    "parent",
    "process_wide",
    "reason",
    "refused",
    "run",
    "surroundings",
    "system_metrics",
    "uri",
]
