"""The tracking server of this process: where it is, and whether it answers."""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from filelock import FileLock
from mlflow import MlflowClient, MlflowException

from osdface.config import home
from osdface.errors import UserError

SETTINGS = {  # of MLflow, where the environment has none
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # by default a server that is down takes minutes of every call
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def uri() -> str:
    """The tracking server: $MLFLOW_TRACKING_URI, or this machine's SQLite file.

    Raises UserError for a server's address with a password in it, since messages and notes have addresses in them.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
    if address.startswith("http") and urlsplit(address).password:
        raise UserError(
            "MLFLOW_TRACKING_URI: has a password in it; put it into MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or a token into MLFLOW_TRACKING_TOKEN"
        )
    return address


@functools.lru_cache
def client(address: str) -> MlflowClient:
    """A client of a tracking server. The first use of a new SQLite file makes its tables, one process at a time.

    Raises UserError naming the server if it does not answer.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        with _making(address):
            made = MlflowClient(address)
            made.search_experiments(max_results=1)
        return made
    except Exception as error:  # every kind of store has its own
        raise UserError(f"MLflow at {address}: does not answer ({reason(error)}); is it running?") from None


def _making(address: str) -> contextlib.AbstractContextManager[Any]:
    """A lock between the processes that may make a SQLite file's tables; servers look after themselves."""
    if not address.startswith("sqlite:///"):
        return contextlib.nullcontext()
    path = Path(address.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_suffix(".lock"))


@contextlib.contextmanager
def process_wide(address: str) -> Iterator[None]:
    """Make `address` MLflow's process-wide one for a while: its SQL registry looks LoggedModels up there alone."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(address)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None: back to the default


def reason(error: Exception) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def refused(error: Exception) -> bool:
    """Whether MLflow answered, and what it was asked for is not there or not allowed."""
    return getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def experiment(made: MlflowClient, stage: str, address: str) -> str:
    """The id of a stage's experiment; beside a local SQLite file, artifacts go to $OSDFACE_HOME/artifacts."""
    name = f"osdface/{stage}"
    if found := made.get_experiment_by_name(name):
        return found.experiment_id
    local = (home() / "artifacts" / stage).as_uri() if address.startswith("sqlite:") else None
    try:
        return made.create_experiment(name, local)
    except MlflowException:  # another process made it in the meantime
        found = made.get_experiment_by_name(name)
        if not found:
            raise
        return found.experiment_id


def exists(made: MlflowClient, run_id: str) -> bool:
    """Whether the server knows this run (and it is not deleted)."""
    try:
        return made.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if refused(error):
            return False
        raise
