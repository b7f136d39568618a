"""One promotion of a model at a time, on this machine and among all that share its registry."""

import contextlib
import json
import socket
import time
import uuid
from collections.abc import Callable, Iterator

from filelock import FileLock, Timeout

from osdface.config import home
from osdface.errors import UserError
from pipelines import tracking
from pipelines.registry.model_versions import who
from pipelines.tracking import TAG

KEY = TAG + "promoting"  # a tag of the registered model
LEASE = 600.0  # seconds that it holds without being renewed: a promoter that dies keeps others waiting no longer
SETTLING = 0.5  # seconds in which another machine's simultaneous claim would show


@contextlib.contextmanager
def taken(name: str, what: str) -> Iterator[Callable[[], None]]:
    """Be the only promoter of a model for a while; yields a function that renews the lease.

    A lock of this $OSDFACE_HOME, exact, and a tag of the registered model that other machines heed. Raises UserError
    naming who promotes what where that is another.
    """
    path = home() / "serve" / f"promoting-{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0), _claimed(name, what) as renew:
            yield renew
    except Timeout:
        holder = _holder(name)
        raise _refusal(name, holder) from None


@contextlib.contextmanager
def _claimed(name: str, what: str) -> Iterator[Callable[[], None]]:
    client = tracking.client(tracking.uri())
    mine = {"token": uuid.uuid4().hex, "by": who(), "what": what, "place": _place()}

    def renew() -> None:
        client.set_registered_model_tag(name, KEY, json.dumps(mine | {"until": time.time() + LEASE}))

    # Of this place it is a dead one's: a living one would have the lock.
    if (held := _holder(name)) and held["until"] > time.time() and held["place"] != _place():
        raise _refusal(name, held)
    renew()
    time.sleep(SETTLING)
    if (held := _holder(name)).get("token") != mine["token"]:
        raise _refusal(name, held)
    try:
        yield renew
    finally:
        with contextlib.suppress(Exception):  # the lease ends by itself where the server does not answer
            if _holder(name).get("token") == mine["token"]:
                client.delete_registered_model_tag(name, KEY)


def _holder(name: str) -> dict:
    tags = tracking.client(tracking.uri()).get_registered_model(name).tags
    return json.loads(tags[KEY]) if KEY in tags else {}


def _refusal(name: str, held: dict) -> UserError:
    what = f"{held['what']} by {held['by']}" if held else "by another process"
    return UserError(f"'{name}' is being promoted already ({what}); wait for it, `osdface models history` shows it")


def _place() -> str:
    return f"{socket.gethostname()}:{home()}"
