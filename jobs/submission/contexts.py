"""Where jobs go: an address, $RAY_ADDRESS, or a cluster that $OSDFACE_HOME/clusters.yaml names."""

import os
import re
from pathlib import Path

from osdface.config import Strict, home, load
from osdface.errors import UsageError

FILE = "clusters.yaml"
HOST_AND_PORT = re.compile(r"[\w.-]+:\d+|\[[0-9A-Fa-f:]+\]:\d+")


class Context(Strict):
    """A cluster. address: of its dashboard, http(s)://HOST:PORT. env: variables of every job there.

    token_env: the environment variable that holds its bearer token, where that isn't Ray's own RAY_AUTH_TOKEN; a
    token itself never stands in a file. image: what `--env image` runs in. nodes: what its autoscaler may add, since
    the cluster itself doesn't tell: the file that `ray up` was given, or a list of nodes' resources.
    """

    address: str
    env: dict[str, str] = {}
    token_env: str | None = None
    image: str | None = None
    nodes: Path | list[dict[str, float]] = []

    def headers(self) -> dict[str, str]:
        """HTTP headers with the token. Raises UsageError if the variable that should hold it is not set."""
        if not self.token_env:
            return {}
        if not (token := os.environ.get(self.token_env)):
            raise UsageError(f"{self.address}: its token belongs in the environment variable {self.token_env}: set it")
        return {"Authorization": f"Bearer {token}"}

    def grown(self) -> list[dict[str, float]]:
        """Resources of every node that there may be; empty where nothing is known of an autoscaler."""
        if isinstance(self.nodes, list):
            return self.nodes
        from pipelines.cluster import launched

        return launched(home() / self.nodes)


class Contexts(Strict):
    """clusters.yaml: clusters by name, and the name of the one that is meant where none is given."""

    clusters: dict[str, Context] = {}
    default: str | None = None


def find(address: str | None) -> Context:
    """The cluster that `--address` means. Raises UsageError where it names none, or nothing says which."""
    file = home() / FILE
    known = load(Contexts, file) if file.is_file() else Contexts()
    if address:
        return known.clusters.get(address) or _url(address, f"--address {address}", known, file)
    if ray_address := os.environ.get("RAY_ADDRESS"):
        return _url(ray_address, f"RAY_ADDRESS is {ray_address}", known, file)
    if known.default is None:
        raise UsageError(f"which cluster? Give --address http://HOST:8265, set RAY_ADDRESS, or name one in {file}")
    if known.default not in known.clusters:
        raise UsageError(f"{file}: default: '{known.default}' is none of its clusters")
    return known.clusters[known.default]


def _url(address: str, given: str, known: Contexts, file: Path) -> Context:
    """Ray's own forms of addresses but one: of the dashboard, since that is where the Job API is."""
    if HOST_AND_PORT.fullmatch(address) and not address.endswith(":6379"):
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        names = f", or a cluster of {file}: {', '.join(known.clusters)}" if known.clusters else ""
        raise UsageError(f"{given}: jobs go to the dashboard's address, http://HOST:8265{names}")
    return Context(address=address.rstrip("/"))
