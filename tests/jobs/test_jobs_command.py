"""`osdface jobs`: what is refused before anything is sent; and, on a real cluster, jobs from submission to retry."""

import contextlib
import http.server
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray
import yaml
from packaging.requirements import Requirement
from ray.runtime_env import RuntimeEnv

from jobs import console
from jobs.cli import app
from jobs.commands.jobs import _next
from jobs.submission import contexts, packing, parsing, spec
from osdface.errors import UsageError, UserError
from pipelines.synthesize.config import SynthConfig
from pipelines.training.config import TrainConfig
from tests.heads import ray_head, wait

ROOT = Path(__file__).parent.parent.parent
TOKEN = "a-token-that-is-long-enough-for-ray"
CHAIN = {
    "work": "chain",
    "steps": [
        {"name": "faces", "run": ["faces make {work}/faces --count 2 --size 64"], "makes": ["{work}/faces"]},
    ],
}
ENDLESS = {"work": "endless", "steps": [{"name": "faces", "run": ["faces make {work}/faces --count 9999999"]}]}


@pytest.fixture(autouse=True)
def _nothing_is_named(home, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # set by what is tested; undone here
    home.mkdir()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A working directory with two chains, and what should stay behind."""
    made = tmp_path / "work"
    (made / ".git").mkdir(parents=True)
    (made / ".git" / "objects").write_bytes(bytes(5000))
    (made / ".gitignore").write_text("secret\n")
    (made / "secret").write_bytes(bytes(3000))
    (made / "pairs.parquet").write_bytes(bytes(4000))
    (made / "chain.yaml").write_text(yaml.safe_dump(CHAIN))
    (made / "endless.yaml").write_text(yaml.safe_dump(ENDLESS))
    return made


def osdface(*words: str) -> int:
    return console.run(app, ["jobs", *words])


def refusal(capsys, *words: str, code: int) -> str:
    """The one sentence that a command ends with."""
    assert osdface(*words) == code
    text = capsys.readouterr().err.strip()
    assert text.startswith("Error: ")
    assert "Traceback" not in text
    return text.removeprefix("Error: ")


def know(home: Path, **clusters: dict) -> None:
    (home / contexts.FILE).write_text(yaml.safe_dump({"clusters": clusters, "default": next(iter(clusters))}))


# Where to


def test_an_address_a_variable_or_a_named_cluster(home, monkeypatch):
    assert contexts.find("http://h:8265/").address == contexts.find("h:8265").address == "http://h:8265"
    know(home, lab={"address": "https://lab:8265"}, other={"address": "http://other:8265"})
    assert contexts.find(None).address == "https://lab:8265"
    assert contexts.find("other").address == "http://other:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://variable:8265")
    assert contexts.find(None).address == "http://variable:8265"


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "ray://h:10001", "nowhere", "h:8265:1"])
def test_an_address_that_is_no_dashboards(address, capsys, home):
    know(home, lab={"address": "http://lab:8265"})
    said = refusal(capsys, "list", "--address", address, code=2)
    assert f"--address {address}: jobs go to the dashboard's address, http://HOST:8265" in said
    assert "lab" in said


def test_nothing_says_which_cluster(capsys):
    assert "which cluster? Give --address" in refusal(capsys, "list", code=2)


def test_a_token_comes_from_the_environment_alone(home, capsys):
    know(home, lab={"address": "http://127.0.0.1:1", "token_env": "NOT_SET"})
    assert "environment variable NOT_SET" in refusal(capsys, "list", code=2)
    know(home, lab={"address": "http://127.0.0.1:1", "token": "secret"})
    assert "unknown key 'token'" in refusal(capsys, "list", code=2)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://no-such-host.invalid:8265"])
def test_no_dashboard_answers(address, capsys):
    said = refusal(capsys, "list", "--address", address, code=1)
    assert said.startswith(f"{address}: no Ray dashboard answers there (")


@contextlib.contextmanager
def dashboard(status: int, body: str):
    """Something that gives one answer to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_): ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_another_version_of_ray(capsys):
    with dashboard(200, json.dumps({"ray_version": "2.44.1", "version": "4"})) as address:
        said = refusal(capsys, "list", "--address", address, code=1)
    assert said.startswith(f"{address} runs Ray 2.44.1, this is {ray.__version__}: submit with the version")


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_are_missing_or_out_of_date(status, capsys):
    with dashboard(status, "no") as address:
        said = refusal(capsys, "list", "--address", address, code=1)
    assert said.startswith(f"{address} refuses these credentials: the token is missing, wrong or out of date")


@pytest.mark.parametrize(("status", "body"), [(404, "no"), (200, "<html>a web server</html>"), (500, "broken")])
def test_what_answers_is_no_dashboard(status, body, capsys):
    with dashboard(status, body) as address:
        assert refusal(capsys, "list", "--address", address, code=1).startswith(f"{address}: ")


# What


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "'train' is no job file and none of synth, train-base"),
        (["train-vre", "--", "--cofnig", "tiny", "--out", "/o"], "No such option: --cofnig"),
        (["train-vre"], "Missing option '--out'"),
        (["train-vre", "--", "--out", "vre"], "--out vre: it would be lost with the job's own folder"),
        (["train-vre", "--", "--config", "huge", "--out", "/o"], "--config huge: neither a file nor a set"),
        (["run", "--", "absent.yaml"], "absent.yaml"),
        (["synth", "--name", "a b", "--", "/in", "--out", "/o"], "'a b': a job's name is letters"),
        (["synth", "--env", "conda", "--", "/in", "--out", "/o"], "environment"),
        (["synth", "--env", "image", "--", "/in", "--out", "/o"], "--env image needs the image's name"),
    ],
)
def test_a_command_line_is_refused_before_a_cluster_is_asked(words, said, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert said in refusal(capsys, "submit", *words, code=2)


def test_a_job_file_with_another_command_or_key(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    for data, said in ({"run": "serve up"}, "'serve up' is none of the commands"), ({"runs": "run x"}, "did you mean"):
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(data))
        assert said in refusal(capsys, "submit", str(tmp_path / "job.yaml"), code=2)


def test_options_after_the_dashes_come_after_those_of_the_job_file():
    job = spec.find("paper/vre", ["--set", "losses.beta=0.3", "--workers", "4"])
    assert job.words()[-4:] == ["--set", "losses.beta=0.3", "--workers", "4"]
    assert parsing.parse(job.words(), ROOT).asked[0].workers == 4


def test_defaults_of_what_is_asked_are_those_of_the_configurations():
    for config in SynthConfig, TrainConfig:
        for name, field in parsing.Asked.model_fields.items():
            if name in config.model_fields:
                assert config.model_fields[name].default == field.default


def test_the_digest_is_of_configuration_and_words(tmp_path):
    file = tmp_path / "vre.yaml"
    digests = set()
    for seed in (1, 2):
        file.write_text(f"preset: tiny\nbatch_size: 2\nseed: {seed}\n")
        digests |= {parsing.parse(["train", "vre", "--config", str(file), "--out", o], ROOT).config_digest for o in "/"}
    assert len(digests) == 2


def test_a_chain_asks_for_what_its_steps_ask_for():
    asked = parsing.parse(["run", "jobs/configs/tiny/demo.yaml"], ROOT).asked
    assert [str(each) for each in asked] == ["2 workers of 0.5 CPUs"] * 4


def test_more_than_any_node_has_is_refused_and_said_how_to_allow_it():
    parsed = parsing.parse(shlex.split("train osd --config paper --data /p --vre /v --base /b --out /o"), ROOT)
    few, many = [{"CPU": 64.0}], [{"CPU": 8.0, "GPU": 1.0}] * 2
    with pytest.raises(UserError, match=r"2 workers of 8 CPUs, 1 GPUs, and the 1 nodes of http://h .*64 CPUs, 0 GPUs"):
        parsing.require(parsed, few, [], "http://h")
    with pytest.raises(UserError, match="no more with all of the 1"):
        parsing.require(parsed, few, many[:1], "http://h")
    parsing.require(parsed, few, many, "http://h")
    parsing.require(parsed, many, [], "http://h")


def test_a_named_cluster_tells_what_it_may_grow_to(home):
    know(home, aws={"address": "http://h:8265", "nodes": str(ROOT / "cluster.yaml")})
    assert sum(node.get("GPU", 0) for node in contexts.find("aws").grown()) == 8
    know(home, aws={"address": "http://h:8265", "nodes": "absent.yaml"})
    with pytest.raises(UserError, match="absent.yaml: no cluster launcher's file"):
        contexts.find("aws").grown()


# What goes with it


def test_what_git_ignores_and_data_stay_behind(folder):
    sent = [
        path.stat().st_size for path in folder.iterdir() if path.name in {".gitignore", "chain.yaml", "endless.yaml"}
    ]
    assert packing.measure(folder, packing.EXCLUDES) == sum(sent)


def test_a_working_directory_that_is_too_large_is_refused_with_its_largest_files(folder):
    (folder / "weights.bin").write_bytes(bytes(2 * 2**20))
    with pytest.raises(UserError, match=r"holds more than the 1 MiB that a job may bring, weights.bin \(2.0 MiB\)"):
        packing.measure(folder, packing.EXCLUDES, limit=2**20)
    assert packing.measure(folder, [*packing.EXCLUDES, "weights.bin"], limit=2**20)
    with pytest.raises(UsageError, match="no such folder"):
        packing.measure(folder / "absent", [])


def test_this_project_is_small_enough_and_brings_what_it_needs():
    assert 2**20 < packing.measure(ROOT, packing.EXCLUDES) < packing.LIMIT / 4


def test_the_environments_are_what_ray_takes(folder):
    run = "train vre --out /o"
    own = packing.environment(spec.Job(run=run, env={"A": "job"}), folder, {"A": "cluster", "B": "cluster"}, "abc")
    assert own["env_vars"] == {
        "A": "job",
        "B": "cluster",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "OSDFACE_GIT_REVISION": "abc",
    }
    image = packing.environment(spec.Job(run=run, environment="image", image="r/i:1"), folder, {}, None)
    lock = packing.environment(spec.Job(run=run, environment="lock"), ROOT, {}, None)
    for each in own, image, lock:
        RuntimeEnv(**each)
    names = {Requirement(pin).name for pin in lock["uv"]["packages"]}
    assert {"torch", "torchvision", "mlflow", "deepspeed"} <= names
    assert "ray" not in names
    with pytest.raises(UsageError, match="requirements.lock is not there"):
        packing.environment(spec.Job(run=run, environment="lock"), folder, {}, None)


def test_names_of_retries():
    assert _next("a", {"a"}) == "a.2"
    assert _next("a.2", {"a", "a.2"}) == "a.3"
    assert _next("v1.5", {"v1.5", "v1.2"}) == "v1.3"


# On a cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head that asks for a token; its address."""
    environment = {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "OSDFACE_HOME": str(tmp_path_factory.mktemp("home")),
    }  # fmt: skip
    with ray_head(environment) as head:
        yield head.dashboard


@pytest.fixture
def lab(cluster, home, monkeypatch, folder) -> list[str]:
    """The cluster by a name, and the options that submit to it from the working directory."""
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    know(home, lab={"address": cluster, "token_env": "LAB_TOKEN", "env": {"OSDFACE_HOME": str(home / "there")}})
    return ["--working-dir", str(folder)]


def told(capsys, *words: str) -> dict:
    capsys.readouterr()
    osdface(*words, "--json")
    return json.loads(capsys.readouterr().out)


@pytest.mark.full
def test_a_job_is_sent_followed_listed_and_seen_by_stock_ray(lab, home, cluster, capfd):
    assert osdface("submit", "run", *lab, "--name", "good", "--wait", "--", "chain.yaml") == 0
    assert "osdface faces make" in capfd.readouterr().out
    assert (home / "there" / "chain" / "faces").is_dir()  # the environment of clusters.yaml reached it
    status = told(capfd, "status", "good")
    assert (status["status"], status["exit_code"]) == ("SUCCEEDED", 0)
    assert status["command"] == "run chain.yaml --address auto"
    assert re.fullmatch(r"[0-9a-f]{40}\+?", status["git_revision"])
    assert re.fullmatch(r"[0-9a-f]{64}", status["config_digest"])
    assert status["user"]
    assert "good" in [job["name"] for job in told(capfd, "list")["jobs"]]
    assert "faces" in told(capfd, "logs", "good")["logs"]
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_API_SERVER_ADDRESS": cluster}
    stock = subprocess.run(
        [Path(sys.executable).with_name("ray"), "job", "list"], env=environment, capture_output=True, text=True
    )
    assert "submission_id='good'" in stock.stdout + stock.stderr
    said = refusal(capfd, "submit", "run", *lab, "--name", "good", "--", "chain.yaml", code=1)
    assert said.startswith("a job 'good' is there already (succeeded): give another --name")


@pytest.mark.full
def test_a_failure_has_the_jobs_exit_code_and_is_tried_again(lab, folder, capfd):
    (folder / "fails.yaml").write_text(yaml.safe_dump({"work": "f", "steps": [{"name": "s", "run": ["doctor --no"]}]}))
    assert osdface("submit", "run", *lab, "--name", "bad", "--wait", "--", "fails.yaml") == 2
    assert "Error: job 'bad' failed: " in capfd.readouterr().err
    (folder / "fails.yaml").write_text(yaml.safe_dump(CHAIN))
    assert osdface("retry", "bad", *lab, "--wait") == 0
    assert told(capfd, "status", "bad.2")["retry_of"] == "bad"


@pytest.mark.full
def test_an_interrupt_leaves_a_job_running_until_it_is_stopped(lab, capfd):
    def interrupt() -> None:
        wait(lambda: "faces" in capfd.readouterr().out, 120)
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Thread(target=interrupt)
    timer.start()
    assert osdface("submit", "run", *lab, "--name", "long", "--wait", "--", "endless.yaml") == console.INTERRUPTED
    timer.join()
    assert "long goes on: `osdface jobs logs -f long` comes back to it" in capfd.readouterr().err
    assert told(capfd, "status", "long")["status"] == "RUNNING"
    assert "is still running" in refusal(capfd, "retry", "long", *lab, code=1)
    assert told(capfd, "stop", "long")["status"] == "STOPPED"


@pytest.mark.full
def test_what_the_cluster_refuses(lab, cluster, capfd, monkeypatch):
    assert "no job 'absent'" in refusal(capfd, "status", "absent", code=1)
    assert "no job 'absent'" in refusal(capfd, "logs", "-f", "absent", code=1)
    words = ["train-vre", *lab, "--", "--config", "paper", "--data", "/p", "--out", "/o"]
    said = refusal(capfd, "submit", *words, code=1)
    assert "8 workers of 8 CPUs, 1 GPUs, and the 1 nodes of" in said
    assert "(2 CPUs, 0 GPUs)" in said
    monkeypatch.setenv("LAB_TOKEN", "expired-token-of-the-same-length-as-it")
    assert "refuses these credentials" in refusal(capfd, "list", code=1)
