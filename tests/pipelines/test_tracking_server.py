"""Records at MLflow's own server: a database behind it, artifacts through it, hosts and passwords checked."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow.artifacts import download_artifacts

from osdface.errors import UserError
from pipelines import registry, tracking
from tests.heads import free

pytestmark = pytest.mark.full
PAIRS = tracking.Named("s3://bucket/pairs", "d" * 64, {"rows": 48})


@contextlib.contextmanager
def server(folder: Path, database: str, *options: str, **env: str) -> Iterator[str]:
    """`mlflow server` as docs/cluster.md starts it; yields its address."""
    port = free()
    words = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", database, "--artifacts-destination", (folder / "served").as_uri(), "--serve-artifacts",
        "--allowed-hosts", f"localhost:*,127.0.0.1:{port}", *options,
    ]  # fmt: skip
    with (folder / "server.log").open("wb") as log:
        run = subprocess.Popen(words, env=os.environ | env, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 240
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert run.poll() is None, (folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < end, (folder / "server.log").read_text()[-3000:]
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(run.pid, 15)
        run.wait(30)


def answers(url: str, **headers: str) -> int:
    """The status that a URL answers with; 0 where nothing does."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of Debian's package, with a database; yields its URL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    programs = found[-1].parent if found else Path(shutil.which("initdb") or "/none/initdb").parent
    if not (programs / "postgres").is_file():
        pytest.skip("no postgres binary is found: apt-get install postgresql")
    if not importlib.util.find_spec("psycopg2"):
        pytest.skip("no driver is found: pip install psycopg2-binary")
    data, port = folder / "data", free()
    as_owner = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
    data.mkdir()
    if as_owner:
        shutil.chown(data, "postgres")
        for parent in (folder, *folder.parents):  # temporary folders are their owner's alone
            if parent.stat().st_uid == os.geteuid() and str(parent).startswith("/tmp/"):
                parent.chmod(parent.stat().st_mode | 0o011)
    subprocess.run([*as_owner, programs / "initdb", "-D", data, "-A", "trust", "-U", "osdface"], check=True, cwd="/")
    words = [programs / "postgres", "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", data]
    run = subprocess.Popen([*as_owner, *words], cwd="/", stderr=subprocess.DEVNULL)
    try:
        ready = [*as_owner, programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, cwd="/", capture_output=True).returncode:
            assert run.poll() is None
            time.sleep(0.2)
        yield f"postgresql+psycopg2://osdface@127.0.0.1:{port}/postgres"
    finally:
        run.terminate()
        run.wait(30)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request, home, tmp_path, monkeypatch) -> Iterator[str]:
    """A server with that database, which this process keeps its records at."""
    home.mkdir()
    with contextlib.ExitStack() as held:
        kept = f"sqlite:///{tmp_path / 'served.db'}"
        database = held.enter_context(postgres(tmp_path)) if request.param == "postgresql" else kept
        there = held.enter_context(server(tmp_path, database))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", there)
        yield there


def test_records_artifacts_and_versions_go_through_the_server(address, home, with_provenance, tmp_path):
    with tracking.run("vre", "vre-1", {"preset": "tiny"}, PAIRS, PAIRS.uri, {}) as run:
        run.metrics({"hq/l1": 0.5}, 3)
        run.image("sheet/end.png", np.zeros((4, 4, 3), np.uint8))
    client = tracking.client(address)
    found = client.get_run(run.id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"hq/l1": 0.5})
    assert found.info.artifact_uri.startswith("mlflow-artifacts:/")
    fetched = download_artifacts(run_id=run.id, artifact_path="sheet/end.png", tracking_uri=address)
    assert Path(fetched).read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in (tmp_path / "served").rglob("end.png")] == ["end.png"]
    made = registry.register(with_provenance(runs={"vre": run.id}, dataset_digest=PAIRS.digest))
    assert registry.fetch(registry.find("models:/osdface/1"), again=True).is_dir()
    assert made.version == "1"
    assert not (home / "mlflow.db").exists()
    assert not (home / "artifacts").exists()
    assert answers(f"{address}/api/2.0/mlflow/experiments/search", Host="evil.example") == 403


def test_a_password_comes_from_the_environment_alone(tmp_path, home, monkeypatch):
    if not importlib.util.find_spec("flask_wtf"):
        pytest.skip("MLflow's own sign-in is not installed: pip install 'mlflow[auth]'")
    password = "a password of twelve"
    config = tmp_path / "auth.ini"
    config.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/auth.db\nadmin_username = admin\n"
        f"admin_password = {password}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    env = {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "k"}
    with server(tmp_path, f"sqlite:///{tmp_path}/served.db", "--app-name", "basic-auth", **env) as there:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", there)
        with pytest.raises(UserError, match=f"MLflow at {there}: does not answer"):
            tracking.client(there)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        with tracking.run("vre", "vre-1", {}, PAIRS, PAIRS.uri, {}) as run:
            run.metrics({"l1": 1.0}, 0)
        assert tracking.client(there).get_run(run.id).data.metrics == {"l1": 1.0}
