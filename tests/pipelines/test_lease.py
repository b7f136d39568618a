"""One writer at a time: a second is refused and told who, a dead one's lease is taken over, an orphan cannot commit."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from osdface.errors import UserError
from pipelines import lease
from pipelines.store import Store

FOLDER = lease.FOLDER


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path) -> Store:
    return Store(tmp_path if request.param == "local" else request.getfixturevalue("s3"))


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(lease, "PATIENCE", 0.6)
    monkeypatch.setattr(lease, "BEAT", 0.1)


def leave(store: Store, number: int = 1, **changes) -> None:
    """A lease as a holder elsewhere that was killed leaves it."""
    holder = {"token": "theirs", "host": "elsewhere/pid:[1]", "pid": 4242, "since": time.time()} | changes
    store.put(f"{FOLDER}/lease-{number}.json", json.dumps(holder).encode())
    store.put(f"{FOLDER}/beat-{number}", b"1.0")


def refused(store: Store, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence), lease.hold(store):
        pass


def test_is_released_without_a_trace(store):
    with lease.hold(store) as token:
        lease.check(store, token)
        assert "lease-1.json" in store.names(FOLDER)
    assert store.names(FOLDER) == []
    with lease.hold(store) as again:
        assert again != token


def test_is_released_when_the_holder_fails(store):
    with pytest.raises(ZeroDivisionError), lease.hold(store):
        raise ZeroDivisionError
    assert store.names(FOLDER) == []


def test_a_second_holder_is_refused_at_once_and_told_who_holds(store):
    with lease.hold(store) as token:
        start = time.monotonic()
        refused(store, rf"{re.escape(str(store))}: another job writes to it \(process {os.getpid()} on [^/ ]+\); wait")
        assert time.monotonic() - start < lease.PATIENCE / 2  # did not wait for beats
        lease.check(store, token)


def test_one_of_many_gets_it(store):
    start, over = threading.Barrier(6), threading.Event()

    def take(_: int) -> bool:
        start.wait()
        try:
            with lease.hold(store) as token:
                over.wait(10)
                lease.check(store, token)
                return True
        except UserError:
            return False

    with ThreadPoolExecutor(6) as threads:
        taking = [threads.submit(take, number) for number in range(6)]
        while sum(task.done() for task in taking) < 5:
            time.sleep(0.02)
        over.set()
    assert [task.result() for task in taking].count(True) == 1


class TestTakeover:
    HOLDER = """
import sys, time
from pipelines import lease
from pipelines.store import Store
with lease.hold(Store(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""

    @pytest.fixture
    def holder(self, tmp_path):
        """A living process that holds `tmp_path`."""
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", self.HOLDER, str(tmp_path)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
            process.kill()

    @pytest.mark.parametrize("reaped", [True, False])
    def test_a_dead_process_s_lease_is_taken_over_at_once(self, holder, tmp_path, reaped):
        """Also where nobody has asked for its exit status: in a container perhaps nobody ever does."""
        store = Store(tmp_path)
        refused(store, rf"another job writes to it \(process {holder.pid} on ")
        holder.kill()
        if reaped:
            holder.wait()
        else:
            os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        start = time.monotonic()
        with lease.hold(store) as token:
            assert time.monotonic() - start < lease.PATIENCE / 2  # did not wait for beats
            lease.check(store, token)
            assert {name for name in store.names(FOLDER) if "beat-2" not in name} == {"lease-2.json"}

    def test_what_a_killed_beat_left_half_written_goes(self, tmp_path):
        store = Store(tmp_path)
        store.put(f"{FOLDER}/.beat-1.4242.abcdef", b"1.")
        with lease.hold(store):
            pass
        assert store.names(FOLDER) == []

    def test_a_number_that_another_process_has_now_is_no_holder(self, tmp_path):
        store = Store(tmp_path)
        leave(store, host=lease._host(), pid=os.getpid(), since=1.0)  # from long before this process was born
        with lease.hold(store) as token:
            lease.check(store, token)

    def test_elsewhere_only_after_missed_beats(self, store, impatient):
        leave(store, number=7)
        start = time.monotonic()
        with lease.hold(store) as token:
            assert time.monotonic() - start >= 0.6
            lease.check(store, token)
            assert {name for name in store.names(FOLDER) if "beat-8" not in name} == {"lease-8.json"}

    def test_elsewhere_not_while_it_beats(self, store, impatient):
        leave(store)
        over = threading.Event()
        thread = threading.Thread(target=lease._beat, args=(store, 1, over))
        thread.start()
        try:
            refused(
                store, r"another job writes to it \(process 4242 on elsewhere\); wait for it, or give another --out"
            )
        finally:
            over.set()
            thread.join()
        assert "lease-1.json" in store.names(FOLDER)

    @pytest.mark.usefixtures("impatient")
    def test_a_torn_lease_is_one_of_nobody(self, store):
        store.put(f"{FOLDER}/lease-3.json", b'{"token": "ab')
        with lease.hold(store) as token:
            lease.check(store, token)


class TestFencing:
    def test_an_orphan_of_a_job_that_was_taken_over_cannot_commit(self, store):
        with lease.hold(store) as token:
            leave(store, number=2)
            with pytest.raises(UserError, match="another job has taken this output over; this one stops without"):
                lease.check(store, token)

    def test_nor_after_its_job_has_ended(self, store):
        with lease.hold(store) as token:
            pass
        with pytest.raises(UserError, match="another job has taken this output over"):
            lease.check(store, token)

    def test_one_that_was_outlived_releases_nothing_of_its_successor(self, store):
        """The successor of its successor has its number again."""
        with lease.hold(store):
            leave(store, number=1)
        assert "lease-1.json" in store.names(FOLDER)
        lease.check(store, "theirs")

    def test_a_request_that_arrived_twice_is_no_other_job(self, tmp_path, monkeypatch):
        """A client that heard no answer asks again, and its second request loses to its first."""
        store = Store(tmp_path)
        create = store.create
        monkeypatch.setattr(store, "create", lambda name, data: create(name, data) and create(name, data))
        with lease.hold(store) as token:
            lease.check(store, token)

    def test_beats_go_on_while_it_holds(self, store, impatient):
        with lease.hold(store):
            seen = set()
            end = time.monotonic() + 5
            while len(seen) < 3 and time.monotonic() < end:
                seen.add(lease._pulse(store, 1))
        assert len(seen - {b""}) >= 2
