"""`osdface run` with its state on S3: skipped, changed, removed, one at a time, taken over. Here for the S3 server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import s3fs

from jobs.chain import Chain, Runner, Selection
from osdface.config import parse
from osdface.errors import UserError
from pipelines import lease
from pipelines.store import Store

HOLDER = """
import sys, time
from jobs.chain import Chain, Runner
from osdface.config import parse

def invoke(words):
    print("at work", flush=True)
    time.sleep(100)

Runner(parse(Chain, {"work": sys.argv[1], "steps": [{"name": "a", "run": ["first"]}]}, "c"), invoke).run()
"""


def chain(work: str, second: str = "second") -> dict:
    """Two steps whose output is a folder of two objects."""
    return {
        "work": work,
        "steps": [
            {"name": "a", "run": ["first {work}/one"], "makes": ["{work}/one"]},
            {"name": "b", "run": [f"{second} {{a[made]}} {{work}}/two"], "makes": ["{work}/two"]},
        ],
    }


def run(data: dict, **selected) -> list[str]:
    """The commands that it took."""
    ran = []

    def invoke(words: list[str]) -> dict:
        ran.append(words[0])
        for name in ("x", "y/z"):
            Store(words[-1]).put(name, " ".join(words).encode())
        return {"made": words[-1]}

    Runner(parse(Chain, data, "chain.yaml"), invoke, Selection(**selected)).run()
    return ran


def test_a_chain_on_s3(s3, home):
    store = Store(s3)
    assert run(chain(s3)) == ["first", "second"]
    assert store.read("two/y/z") == f"second {s3}/one {s3}/two".encode()
    assert store.names("steps") == ["a.json", "b.json"]
    assert store.names(lease.FOLDER) == []
    assert run(chain(s3)) == []
    store.remove("one")
    assert run(chain(s3)) == ["first"], "the same again: what needs it stays"
    store.put("two/old", b"of the command before")
    assert run(chain(s3, "another")) == ["another"]
    assert store.names("two") == ["x", "y"]
    assert run(chain(s3), only="a", force=True) == ["first"]
    assert not home.exists(), "nothing lies on this disk"


def test_inputs_on_s3_count(s3, home):
    pictures = Store(f"{s3}/pictures")
    pictures.put("1.png", b"one")
    data = chain(f"{s3}/w")
    data["steps"][0]["inputs"] = [pictures.uri]
    assert run(data) == ["first", "second"]
    pictures.put("1.png", b"one")
    assert run(data) == [], "the same bytes written again"
    pictures.put("1.png", b"two")
    assert run(data) == ["first", "second"]


def test_a_second_run_is_refused_until_the_first_is_gone(s3, home, monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE", 60)  # of a machine that is busy
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, s3]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        while first.stdout.readline().strip() != "at work":
            assert first.poll() is None
        with pytest.raises(UserError, match=rf"^{s3}: another job writes to it \(process {first.pid} on "):
            run(chain(s3))
        first.send_signal(signal.SIGKILL)
    monkeypatch.setattr(lease, "_pulse", lambda *_: pytest.fail("waited, though this machine sees that it is gone"))
    assert run(chain(s3)) == ["first", "second"]


def test_a_lock_from_a_machine_that_is_gone_lapses(s3, home, monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE", 0.6)
    monkeypatch.setattr(lease, "BEAT", 0.1)
    theirs = {"token": "theirs", "host": "elsewhere/pid:[1]", "pid": 1, "since": time.time()}
    Store(s3).put(f"{lease.FOLDER}/lease-3.json", json.dumps(theirs).encode())
    assert run(chain(s3)) == ["first", "second"]


def test_a_server_that_is_gone_is_one_sentence(s3, home, monkeypatch, free_port, request):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port}")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()  # so that the address counts
    request.addfinalizer(s3fs.S3FileSystem.clear_instance_cache)
    with pytest.raises(UserError, match=rf"^{s3}-gone: cannot be read or written .*the same command again continues$"):
        run(chain(f"{s3}-gone"))
