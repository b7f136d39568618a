"""A Ray cluster of several machines on this one: `ray start` nodes, each in a network namespace of its own.

Where the machine lets nobody make namespaces, all nodes share its loopback.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
from ray.util.state.api import StateApiClient
from ray.util.state.common import ListApiOptions, StateResource

from tests.heads import ROOT, free, wait

BIN = Path(sys.executable).parent
MARK = "OSDFACE_TEST_NODE"  # in the environment of every process of a node
TOKEN = "a-token-that-is-long-enough-for-ray"


class Network:
    """A bridge with this machine at its one end, and namespaces at the others."""

    def __init__(self) -> None:
        self.bridge, self.made = f"of{os.getpid()}", 0
        self.subnet = f"10.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}"
        try:
            _ip("link", "add", self.bridge, "type", "bridge")
            _ip("addr", "add", f"{self.subnet}.1/24", "dev", self.bridge)
            _ip("link", "set", self.bridge, "up")
            self.host = f"{self.subnet}.1"
        except (OSError, subprocess.CalledProcessError):  # no such program, or not allowed
            self.host = "127.0.0.1"

    def join(self) -> tuple[str, list[str]]:
        """A new machine: its address, and the words before a command that is to run on it."""
        if self.host == "127.0.0.1":
            return self.host, []
        self.made += 1
        space, address = f"{self.bridge}-{self.made}", f"{self.subnet}.{self.made + 1}"
        _ip("netns", "add", space)
        _ip("link", "add", f"{self.bridge}v{self.made}", "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", f"{self.bridge}v{self.made}", "master", self.bridge, "up")
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", space, "link", "set", device, "up")
        return address, ["nsenter", f"--net=/run/netns/{space}"]

    def close(self) -> None:
        for number in range(1, self.made + 1):
            _ip("netns", "del", f"{self.bridge}-{number}")
        if self.host != "127.0.0.1":
            _ip("link", "del", self.bridge)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Node:
    """One machine of a cluster. address: its IP. words: what `ray start` gets beside the address."""

    def __init__(self, cluster: "Nodes", words: list[str]):
        self.address, before = cluster.network.join()
        self.mark, self.folder = uuid.uuid4().hex, Path(tempfile.mkdtemp(prefix="rn"))  # short: sockets are under it
        environment = cluster.environment | {MARK: self.mark, "RAY_TMPDIR": str(self.folder)}
        if before:
            environment["GLOO_SOCKET_IFNAME"] = "eth0"  # by itself it takes the address of the machine's name
        command = [
            *before, str(BIN / "ray"), "start", "--block", f"--node-ip-address={self.address}", "--min-worker-port=0",
            "--max-worker-port=0", f"--dashboard-agent-listen-port={free()}", f"--temp-dir={self.folder}",
            "--object-store-memory=200000000", "--disable-usage-stats", f"--node-name={self.mark}", *words,
        ]  # fmt: skip
        self.told = self.folder / "start.log"
        with self.told.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def wait(self) -> None:
        """Until it has joined."""
        wait(lambda: "Ray runtime started" in self.told.read_text() or self.process.poll() is not None, 300)
        assert self.process.poll() is None, self.told.read_text()

    def processes(self, part: str = "") -> list[psutil.Process]:
        """Those that live, with this in their command line."""
        return [process for process in psutil.process_iter() if self._ours(process, part)]

    def _ours(self, process: psutil.Process, part: str) -> bool:
        try:
            if process.environ().get(MARK) != self.mark or process.status() == psutil.STATUS_ZOMBIE:
                return False
            return part in " ".join(process.cmdline())
        except (psutil.Error, OSError):  # gone meanwhile, or another user's
            return False

    def kill(self) -> None:
        """SIGKILL to everything that runs on it, as when its power fails."""
        while left := self.processes():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=10)
        self.process.wait()


class Nodes:
    """A head without CPUs, and worker nodes of one CPU, which may be killed and join again."""

    def __init__(self, network: Network, environment: dict[str, str]):
        self.network = network
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT), "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN,
        } | environment  # fmt: skip
        self.port, self.dashboard_port = free(), free()
        self.every: list[Node] = []
        self.workers: list[Node] = []

    def start(self, workers: int) -> None:
        words = [
            "--head", "--num-cpus=0", f"--port={self.port}", "--include-dashboard=true", "--dashboard-host=0.0.0.0",
            f"--dashboard-port={self.dashboard_port}", f"--ray-client-server-port={free()}",
        ]  # fmt: skip
        self.head = self._add(words)
        self.dashboard = f"http://{self.head.address}:{self.dashboard_port}"
        for _ in range(workers):
            self.workers.append(self.join())

    def join(self) -> Node:
        """One more worker node."""
        return self._add([f"--address={self.head.address}:{self.port}", "--num-cpus=1"])

    def replace(self, number: int) -> None:
        """A machine in the place of one that was lost."""
        self.workers[number] = self.join()

    def drain(self, node: Node, seconds: int) -> None:
        """Say that a node will be taken away after so many seconds, as a cloud says of its spot machines."""
        states = StateApiClient(self.dashboard, headers={"Authorization": f"Bearer {TOKEN}"})
        (found,) = states.list(
            StateResource.NODES, ListApiOptions(filters=[("node_name", "=", node.mark)]), raise_on_missing_output=False
        )
        words = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        words += ["--address", f"{self.head.address}:{self.port}", "--node-id", found["node_id"]]
        words += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run([BIN / "ray", "drain-node", *words], check=True, env=self.environment, capture_output=True)

    def _add(self, words: list[str]) -> Node:
        self.every.append(Node(self, words))
        self.every[-1].wait()
        return self.every[-1]

    def end(self) -> None:
        for node in reversed(self.every):
            node.kill()
            shutil.rmtree(node.folder, ignore_errors=True)


@contextlib.contextmanager
def cluster(network: Network, environment: dict[str, str], workers: int = 2) -> Iterator[Nodes]:
    """A cluster whose nodes have these variables beside this process's; nothing of it outlives the block."""
    nodes = Nodes(network, environment)
    try:
        nodes.start(workers)
        yield nodes
    finally:
        nodes.end()


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network, taken down at the end."""
    made = Network()
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def mlflow_server(network: Network, folder: Path) -> Iterator[str]:
    """A tracking server that all nodes of a network reach; yields its URI."""
    place = f"{network.host}:{free()}"
    host, _, port = place.partition(":")
    words = [
        BIN / "mlflow", "server", "--host", host, "--port", port, "--workers", "1", "--allowed-hosts", place,
        "--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--artifacts-destination", folder / "artifacts",
    ]  # fmt: skip
    told = folder / "server.log"
    with told.open("wb") as log:
        alone = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"
        }  # those of its own, which nothing here uses
        server = subprocess.Popen(words, env=alone, stdout=log, stderr=log)
    try:
        wait(lambda: "Application startup complete" in told.read_text() or server.poll() is not None, 300)
        assert server.poll() is None, told.read_text()
        yield f"http://{place}"
    finally:
        family = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.terminate()
        server.wait(30)
        psutil.wait_procs(family, timeout=10)
