"""An endpoint that runs, as whoever promotes sees it: stage a version beside the champion, watch, settle or withdraw.

The state of an endpoint is the configuration that Serve's controller holds: two slots, and the ingress's routing. Every
step here reads it, changes it and deploys it again, which Serve does without starting what has not changed.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from filelock import FileLock

from osdface.config import resolved
from osdface.errors import UserError
from pipelines import registry
from pipelines.serve import application, records
from pipelines.serve.application import INGRESS, NAME
from pipelines.serve.settings import SLOTS, Loaded, Routing, Settings, Slot

LOADING = 300.0  # seconds that a version may take to load and warm up
DRAINING = 120.0  # seconds that requests may take which a version that goes has begun
POLL = 0.1
_joined_before: set[str] = set()


class Observed(NamedTuple):
    """Of one version since it was staged: how many answers, how many failed, and percentiles of their seconds."""

    requests: int
    errors: int
    p50: float
    p95: float


class Endpoint(Protocol):
    """One running endpoint."""

    url: str

    def serving(self) -> str:
        """The version's number (or the bundle's digest) that has the traffic."""
        ...

    def stage(self, version: registry.Version, share: float, shadow: bool, seconds: float) -> None:
        """Load a version beside the champion, warm it, and give it `share` (0 to 1) of the traffic, or with `shadow`
        copies of so much, whose answers go nowhere.

        The endpoint takes the traffic back after `seconds`; calling again with the same version changes the share and
        renews the lease. Raises UserError if the version does not load or answer, or another one is staged.
        """
        ...

    def try_staged(self, pictures: Sequence[bytes]) -> list[bytes]:
        """Answers (PNG) of the staged version alone. Raises UserError for one that it does not give."""
        ...

    def observed(self) -> dict[str, Observed]:
        """What was seen of each version since the last one was staged."""
        ...

    def settle(self) -> None:
        """Give the staged version all the traffic; returns when the old one has nothing left to answer."""
        ...

    def withdraw(self, why: str) -> None:
        """Give the champion all the traffic; the staged version is unloaded. Nothing staged: nothing happens."""
        ...


def endpoints(url: str | None = None) -> list[Endpoint]:
    """The endpoints that run from this $OSDFACE_HOME, or the one of them at `url`.

    Raises UserError if none of them is at `url`.
    """
    found: list[Endpoint] = [Running(record) for record in records.alive() if "ray" in record]
    if url is None:
        return found
    chosen = [endpoint for endpoint in found if endpoint.url.rstrip("/") == url.rstrip("/")]
    if not chosen:
        raise UserError(f"{url}: no endpoint of this $OSDFACE_HOME is there; `osdface serve status` lists them")
    return chosen


class Running:
    """An endpoint, by its record under $OSDFACE_HOME/serve."""

    def __init__(self, record: dict[str, Any]):
        self.url: str = record["url"]
        self.address: str = record["ray"]
        self.tokens: bool = record["tokens"]
        self.lock = records.path(record["port"]).with_suffix(".lock")

    def serving(self) -> str:
        with self._joined() as serve:
            routing = serve.routing()
            return routing.models[routing.champion].version

    def stage(self, version: registry.Version, share: float, shadow: bool, seconds: float) -> None:
        self.stage_loaded(application.of_version(version), share, shadow, seconds)

    def stage_loaded(self, loaded: Loaded, share: float, shadow: bool, seconds: float) -> None:
        """`stage`, of any bundle."""
        with self._joined() as serve, self._alone():
            routing, now = serve.routing(), time.time()
            slot = _other(routing.champion)
            if routing.at_stake() and routing.models[slot] != loaded.model:
                raise UserError(
                    f"{self.url}: version {routing.models[slot].version} is being tried there; wait for its promotion "
                    f"to end, or for {routing.until - now:.0f} s"
                )
            leased: dict[str, Any] = {"share": share, "shadow": shadow, "until": now + seconds}
            if not routing.at_stake() or not serve.is_live(slot):
                serve.vacate(slot)
                serve.change(slot=application.live_slot(slot, loaded, serve.settings()))
                try:
                    serve.wait(slot, loaded)
                except BaseException:
                    serve.unload(slot)
                    raise
                leased |= {"staged": slot, "models": routing.models | {slot: loaded.model}, "since": time.time()}
                leased["until"] = time.time() + seconds
            serve.route(routing.model_copy(update=leased))

    def try_staged(self, pictures: Sequence[bytes]) -> list[bytes]:
        from pipelines.serve.replica import Task

        with self._joined() as serve:
            slot = _staged(serve.routing(), self.url)
            pending = [serve.handle(slot).restore.remote(Task(data=data)) for data in pictures]
            answers = []
            for i, response in enumerate(pending):
                with _said(f"{self.url}: the staged version does not answer picture {i} of the self-test"):
                    answer = response.result(timeout_s=LOADING)
                if answer.fault:
                    raise UserError(
                        f"{self.url}: the staged version refuses picture {i} of the self-test: {answer.fault}"
                    )
                answers.append(answer.picture)
            return answers

    def observed(self) -> dict[str, Observed]:
        with self._joined() as serve:
            seen = serve.handle(INGRESS).observed.remote().result(timeout_s=30)
            return {version: Observed(*numbers) for version, numbers in seen.items()}

    def settle(self) -> None:
        with self._joined() as serve, self._alone():
            routing = serve.routing()
            slot, old = _staged(routing, self.url), routing.champion
            serve.route(routing.model_copy(update={"champion": slot, "staged": None, "share": 0, "shadow": False}))
            serve.drained(old)
            serve.unload(old)

    def withdraw(self, why: str) -> None:
        with self._joined() as serve, self._alone():
            routing = serve.routing()
            if routing.staged:
                serve.route(routing.model_copy(update={"staged": None, "share": 0, "shadow": False}))
                serve.drained(routing.staged)
                serve.unload(routing.staged)

    def at_stake(self) -> bool:
        """Whether somebody has a version staged, whose lease lasts."""
        with self._joined() as serve:
            return serve.routing().at_stake() is not None

    def expire(self) -> None:
        """Unload a staged version whose lease is over: the ingress gives it nothing any more."""
        with self._joined() as serve:
            routing = serve.routing()
        if routing.staged and not routing.at_stake():
            self.withdraw("its lease is over")

    def note(self, notice: str) -> None:
        """Have `/readyz` say what is wrong around the endpoint; "" for nothing."""
        with self._joined() as serve, self._alone():
            routing = serve.routing()
            if routing.notice != notice:
                serve.route(routing.model_copy(update={"notice": notice}))

    @contextlib.contextmanager
    def _joined(self) -> Iterator["_Serve"]:
        """This process in the endpoint's Ray, where it stays until it ends or turns to another endpoint."""
        _join(self.address, self.tokens)
        with _said(f"{self.url}: its Serve application cannot be reached or changed"):
            yield _Serve(self.url)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One change at a time, of those who start from this $OSDFACE_HOME."""
        with FileLock(self.lock):
            yield


class _Serve:
    """The configuration that Serve's controller holds of one application, and the ways to change it."""

    def __init__(self, url: str):
        from ray.serve.context import _get_global_client

        self.url = url
        self.client: Any = _get_global_client()  # as `serve deploy` reaches it
        if self.client is None:
            raise UserError(f"{url}: Serve does not run there any more")

    def application(self) -> dict[str, Any]:
        import ray

        configs: Any = ray.get(self.client._controller.get_app_configs.remote())
        if NAME not in configs:
            raise UserError(f"{self.url}: no application '{NAME}' runs there")
        return configs[NAME].model_dump(mode="json", exclude_unset=True)

    def settings(self) -> Settings:
        return Settings.model_validate(self.application()["args"])

    def routing(self) -> Routing:
        return Routing.model_validate(self._deployment(self.application(), INGRESS)["user_config"])

    def is_live(self, slot: Slot) -> bool:
        return bool(self._deployment(self.application(), slot)["autoscaling_config"]["min_replicas"])

    def handle(self, deployment: str) -> Any:
        from ray import serve

        return serve.get_deployment_handle(deployment, NAME)

    def route(self, routing: Routing) -> None:
        """Change who gets the traffic; returns when the ingress does so."""
        self.change(ingress={"name": INGRESS, "user_config": resolved(routing)})
        self._until(
            lambda: self.handle(INGRESS).routing.remote().result(timeout_s=30) == routing, "takes no new routing"
        )

    def unload(self, slot: Slot) -> None:
        """Let go of a slot's replicas; what they were told stays, so that none changes while it still answers."""
        idle = self._deployment(self.application(), slot) | {"autoscaling_config": application.IDLE}
        self.change(idle=idle)

    def vacate(self, slot: Slot) -> None:
        """Unload a slot until its last replica is gone: Serve counts what befalls it then as the next version's."""
        if self.is_live(slot):
            self.unload(slot)
        self._until(lambda: not self._status(slot).replica_states, f"slot '{slot}' does not let go of its replicas")

    def change(self, **parts: dict[str, Any]) -> None:
        """Deploy the application with other deployments in place of those of the same names."""
        from ray.serve.schema import ServeDeploySchema

        config = self.application()
        new = {part["name"]: part for part in parts.values()}
        config["deployments"] = [new.get(part["name"], part) for part in config["deployments"]]
        self.client.deploy_apps(ServeDeploySchema.model_validate({"applications": [config]}))

    def wait(self, slot: Slot, loaded: Loaded) -> None:
        """Until every replica of a slot has a version loaded and warm. Raises UserError with what it says otherwise."""
        self._until(lambda: self._loaded(slot, loaded), f"version {loaded.model.version} does not load")

    def drained(self, slot: Slot) -> None:
        """Until the ingress waits for no answer of a slot: a slow one is let go after DRAINING seconds."""
        deadline = time.monotonic() + DRAINING
        while time.monotonic() < deadline and self.handle(INGRESS).pending.remote(slot).result(timeout_s=30):
            time.sleep(POLL)

    def _loaded(self, slot: Slot, loaded: Loaded) -> bool:
        status = self._status(slot)
        if status.status in ("DEPLOY_FAILED", "UNHEALTHY") or "failed to start" in status.message:
            raise UserError(f"{self.url}: version {loaded.model.version} does not load: {last_line(status.message)}")
        if status.status != "HEALTHY" or not status.replica_states.get("RUNNING"):
            return False
        return self.handle(slot).loaded.remote().result(timeout_s=LOADING) == loaded

    def _status(self, slot: Slot) -> Any:
        from ray import serve

        return serve.status().applications[NAME].deployments[slot]

    def _until(self, done: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + LOADING
        while not done():
            if time.monotonic() > deadline:
                raise UserError(f"{self.url}: {complaint} within {LOADING:.0f} s")
            time.sleep(POLL)

    def _deployment(self, config: dict[str, Any], name: str) -> dict[str, Any]:
        return next(part for part in config["deployments"] if part["name"] == name)


def _join(address: str, tokens: bool) -> None:
    """Be in the Ray cluster at `address`, which may want the token that this machine's clusters share.

    Raises UserError where this process works on another one, not of an endpoint, or none answers.
    """
    import ray
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    from pipelines import cluster

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if here == address:
            return
        if here not in _joined_before:
            raise UserError(f"this process works on another Ray cluster ({here}) than the endpoint ({address})")
        ray.shutdown()
    if tokens:
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as the endpoint's own `ray.init` did
    cluster.connect(address)
    _joined_before.add(address)


def last_line(message: str) -> str:
    """What Serve says of a failing deployment, without the traceback that it most often is."""
    lines = [line for line in message.splitlines() if line.strip()]
    return lines[-1].strip().rpartition("UserError: ")[2] if lines else ""


def _other(slot: Slot) -> Slot:
    return SLOTS[1 - SLOTS.index(slot)]


def _staged(routing: Routing, url: str) -> Slot:
    slot = routing.at_stake()
    if slot is None:
        raise UserError(f"{url}: no version is staged there (any more); its lease may have run out")
    return slot


@contextlib.contextmanager
def _said(sentence: str) -> Iterator[None]:
    """Ray's and Serve's many errors as one sentence."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        yield
    except (RayError, RayServeException, TimeoutError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{sentence} ({last_line(str(error)) or first})") from error
