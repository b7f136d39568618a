"""What an endpoint is told: by its operator once (Settings), and by Serve's `user_config` while it runs."""

import time
from typing import Literal

from pydantic import Field

from osdface.config import Strict

Slot = Literal[
    "a", "b"
]  # the two places for a loaded version: the one that has the traffic, and the one that may get it
SLOTS: tuple[Slot, Slot] = ("a", "b")
BATCH = 8  # pictures that a replica takes at once


class Model(Strict):
    """What is served, as `GET /v1/model` tells it. version: the registry's number, or the bundle's digest."""

    model: str
    version: str
    run_id: str
    dataset_digest: str
    bundle_digest: str
    preset: str


class Loaded(Strict):
    """A slot's `user_config`. folder: the bundle on this machine; ref: where a machine without it gets it from."""

    folder: str
    ref: str
    model: Model


class Limits(Strict):
    """Of one request: bytes of its body; pixels of a picture, from its header; whole_pixels: of one with `faces=whole`,
    all of which goes through the network at once; pictures in a batch; faces in a picture; seconds for the answer;
    read_seconds for decoding and finding faces; body_seconds for the body to arrive. Of all together: held bytes of
    bodies and of what jobs made; jobs kept, and job_seconds, how long after their end."""

    bytes: int = Field(default=20 * 2**20, ge=1)
    pixels: int = Field(default=25_000_000, ge=256)
    whole_pixels: int = Field(default=2**20, ge=256)
    pictures: int = Field(default=16, ge=1)
    faces: int = Field(default=64, ge=1)
    seconds: float = Field(default=60, gt=0)
    read_seconds: float = Field(default=20, gt=0)
    body_seconds: float = Field(default=30, gt=0)
    held: int = Field(default=512 * 2**20, ge=1)
    jobs: int = Field(default=32, ge=1)
    job_seconds: float = Field(default=600, gt=0)


class Key(Strict):
    """Who may ask: sha256 (hex) of a key, and how often a minute."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    per_minute: int = Field(default=600, ge=1)


class Settings(Strict):
    """Arguments of the Serve application.

    keys: none lets everybody in. origins: of web pages elsewhere that may ask (CORS). threads: of torch in a replica;
    readers: processes beside it that decode; device, dtype, execution: as `Restorer.load` has them; replicas: least
    and most of a version that has traffic, between which queues decide; waiting: requests that may queue for them.
    """

    limits: Limits = Limits()
    keys: list[Key] = []
    origins: list[str] = []
    threads: int = Field(default=1, ge=1)
    readers: int = Field(default=2, ge=1)
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    execution: Literal["plain", "folded", "lean"] = "plain"
    replicas: tuple[int, int] = (1, 1)
    waiting: int = Field(default=2 * BATCH, ge=1)
    cpus: float = Field(default=0.2, ge=0)
    gpus: float = Field(default=0, ge=0)


class Routing(Strict):
    """The ingress's `user_config`: who gets the traffic.

    share: of the requests that the staged version answers; shadow: it gets copies instead, and its answers go nowhere.
    until: seconds since the epoch at which a staged version loses both; since: when it was staged. notice: what is
    wrong around the endpoint while it serves; "" for nothing.
    """

    champion: Slot
    models: dict[Slot, Model]
    staged: Slot | None = None
    share: float = Field(default=0, ge=0, le=1)
    shadow: bool = False
    until: float = 0
    since: float = 0
    notice: str = ""

    def at_stake(self) -> Slot | None:
        """The slot that is staged, while its lease lasts."""
        return self.staged if self.staged and time.time() < self.until else None
