"""An endpoint that serves an alias follows it: the registry says who is champion, and may be out of reach."""

import time
from pathlib import Path

from osdface.config import home
from osdface.errors import UserError
from osdface.files import write_json
from pipelines import registry, tracking
from pipelines.serve import application
from pipelines.serve.live import Running
from pipelines.serve.settings import Loaded

EVERY = 3.0  # seconds between two looks at the registry
AGAIN = 60.0  # seconds until a version that did not load is tried again
LEASE = 600.0


def first(ref: str) -> tuple[Loaded, str]:
    """What an endpoint starts with: what `ref` names, or with MLflow out of reach named last; and that as a notice.

    Raises UserError for a reference that names nothing, or that was never served from here.
    """
    if Path(ref).is_dir():
        return application.describe(ref), ""
    try:
        loaded = application.describe(ref)
    except Exception as error:
        reason = unreachable()
        kept = _last(ref)
        if not reason or not kept.is_file():
            raise
        last = Loaded.model_validate_json(kept.read_text())
        loaded = application.of_folder(Path(last.folder), last.ref, last.model.version)
        del error
        return loaded, f"{reason}; version {loaded.model.version} was {ref} when it last did"
    remember(ref, loaded)
    return loaded, ""


def remember(ref: str, loaded: Loaded) -> None:
    """Keep what a reference names, for a start without the registry."""
    write_json(_last(ref), loaded.model_dump())


def unreachable() -> str:
    """Why MLflow does not answer; "" if it does."""
    try:
        tracking.client(tracking.uri()).search_experiments(max_results=1)
    except Exception as error:  # every kind of store has its own
        return str(error) if isinstance(error, UserError) else f"MLflow does not answer ({tracking.reason(error)})"
    return ""


def _last(ref: str) -> Path:
    return home() / "serve" / "last" / f"{ref.replace('/', '_')}.json"


class Follower:
    """Looks at the registry now and then. follow: serve the champion that it finds; else only say so."""

    def __init__(self, endpoint: Running, ref: str, follow: bool):
        self.endpoint, self.ref, self.follow = endpoint, ref, follow
        self.watches = not Path(ref).is_dir() and (ref in registry.ALIASES or "@" in ref)
        self.refused: dict[str, float] = {}

    def look(self) -> None:
        """Compare endpoint and registry, and mend what differs; what cannot be mended is a notice of `/readyz`."""
        self.endpoint.expire()
        if self.watches and not self.endpoint.at_stake():
            self.endpoint.note(self._notice())

    def _notice(self) -> str:
        serving = self.endpoint.serving()
        try:
            version = registry.find(self.ref)
        except Exception as error:
            return f"{unreachable() or tracking.reason(error)}; serving version {serving} as before"
        if version is None or version.version == serving:
            return ""
        if not self.follow:
            return f"{self.ref} is version {version.version}; serving version {serving}, as --no-follow has it"
        if time.monotonic() - self.refused.get(version.version, -AGAIN) < AGAIN:
            return f"{self.ref} is version {version.version}, which does not load; serving version {serving}"
        return self._adopt(version, serving)

    def _adopt(self, version: registry.Version, serving: str) -> str:
        try:
            loaded = application.of_version(version)
            self.endpoint.stage_loaded(loaded, share=0, shadow=False, seconds=LEASE)
            self.endpoint.settle()
        except Exception as error:
            self.refused[version.version] = time.monotonic()
            return f"{self.ref} is version {version.version}, which is not served ({error}); serving version {serving}"
        remember(self.ref, loaded)
        return ""
