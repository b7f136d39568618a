"""A real S3 server for tests: SeaweedFS, which can be killed and started again; and a proxy that does harm."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "osdface"


class Weed:
    """SeaweedFS over one folder, with a bucket; the same port after every start."""

    def __init__(self, folder: Path):
        self.folder = folder
        keys = {"credentials": [{"accessKey": "k", "secretKey": "s"}], "actions": ["Admin", "Read", "Write", "List"]}
        (folder / "identities.json").write_text(json.dumps({"identities": [{"name": "t", **keys}]}))
        (folder / "data").mkdir()
        server = [f"{name}.port{kind}" for name in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
        self.ports = dict(zip(server, free_ports(len(server)), strict=True))
        self.process: subprocess.Popen | None = None

    @property
    def port(self) -> int:
        return self.ports["s3.port"]

    def start(self) -> None:
        options = {
            "dir": self.folder / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1",
            "s3.config": self.folder / "identities.json", "s3.port.iceberg": 0, "s3.port.lance": 0,
            "master.volumeSizeLimitMB": 64, "master.telemetry": "false",
        } | self.ports  # fmt: skip
        command = [Path(sys.prefix) / "bin" / "weed", "server", "-s3", *(f"-{k}={v}" for k, v in options.items())]
        with (self.folder / "log").open("a") as log:  # `weed` starts a child
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._wait()

    def kill(self) -> None:
        """SIGKILL, whatever it is about."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _wait(self) -> None:
        import s3fs
        from botocore.exceptions import BotoCoreError

        end = time.monotonic() + 60
        while True:
            try:
                address = f"http://127.0.0.1:{self.port}"
                own = s3fs.S3FileSystem(skip_instance_cache=True, key="k", secret="s", endpoint_url=address)
                if not own.exists(BUCKET):
                    own.mkdir(BUCKET)
                own.pipe_file(f"{BUCKET}/.started", b"with bytes, which wait for the volumes")
                return
            except (OSError, BotoCoreError):  # refused, or not ready
                assert self.process is not None
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < end, (self.folder / "log").read_text()
                time.sleep(0.2)


@contextlib.contextmanager
def weed(folder: Path) -> Iterator[Weed]:
    """A server that runs, and ends with the block."""
    server = Weed(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def configure(port: int) -> Path:
    """Have this process and its children find the server at a port, by AWS's own configuration file."""
    config = Path(os.environ["AWS_CONFIG_FILE"])
    keys = "aws_access_key_id=k\naws_secret_access_key=s\nregion=x\n"
    config.write_text(f"[default]\n{keys}endpoint_url=http://127.0.0.1:{port}\n")
    return config


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Proxy:
    """Before a server: passes requests on, but for those that `harm` chooses.

    Kinds of harm: "500" (refused), "500 after" (done, and said to have failed), "hang" (no answer), "drop" (the
    connection ends), "truncated" (half of an answer's body), "short" (half, and said to be all). `moment` is called
    instead where it is a function: of the request's method and path, before it is passed on.
    """

    def __init__(self, port: int):
        self.target, self.seen, self._left, self._over = port, [], 0, threading.Event()
        self._kind: str | Callable[[], None] = ""
        self._chosen: Callable[[str, str], bool] = lambda method, path: False
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def handle_any(self) -> None:
                proxy.answer(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def harm(self, kind: str | Callable[[], None], chosen: Callable[[str, str], bool], times: int = 1) -> None:
        """The next so many requests of those that are chosen (by method and path) come to harm."""
        with self._lock:
            self._kind, self._chosen, self._left, self.done = kind, chosen, times, 0

    def close(self) -> None:
        self._over.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        with self._lock:
            harmed = self._left > 0 and self._chosen(request.command, request.path)
            self._left -= harmed
            self.done = getattr(self, "done", 0) + harmed
        kind = self._kind if harmed else ""
        if callable(kind):
            kind()
            kind = ""
        if kind == "hang":
            self._over.wait(20)
        if kind in ("hang", "drop"):
            request.close_connection = True
            return
        if kind == "500":
            return self._reply(request, 500, [], b"")
        try:
            backend = http.client.HTTPConnection("127.0.0.1", self.target, timeout=30)
            backend.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() != "expect":
                    backend.putheader(name, value)
            backend.endheaders(body)
            response = backend.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException):  # the server is down
            request.close_connection = True
            return
        headers = [(n, v) for n, v in response.getheaders() if n.lower() not in ("transfer-encoding", "connection")]
        if kind == "500 after":
            return self._reply(request, 500, [], b"")
        if kind == "short":
            data = data[: len(data) // 2]
            headers = [(n, v) for n, v in headers if n.lower() != "content-length"]
        self._reply(request, response.status, headers, data, cut=kind == "truncated")

    def _reply(self, request, status: int, headers: list, data: bytes, cut: bool = False) -> None:
        request.send_response_only(status)
        for name, value in headers:
            request.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data[: len(data) // 2] if cut else data)
        request.close_connection = request.close_connection or cut
