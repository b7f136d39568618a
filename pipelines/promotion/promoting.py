"""From version to endpoint: judged, staged beside the champion, judged again by live requests, then champion.

The alias moves last but for the traffic: whatever goes wrong before leaves alias and traffic where they were, and what
goes wrong after brings both back.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from osdface.errors import UsageError, UserError
from pipelines import registry
from pipelines.promotion import history, judging, selftest, turn
from pipelines.promotion.checks import Check, Refused, failed
from pipelines.promotion.gates import Gates, Trial
from pipelines.promotion.history import Entry
from pipelines.registry import NAME, Version
from pipelines.registry.model_versions import succession

if TYPE_CHECKING:
    from pipelines.serve.live import Endpoint

LEASE = 120.0  # seconds after which an endpoint takes the traffic back from a version whose promoter is gone
POLL = 2.0  # seconds between two looks at live requests
UNFORCED = ("bundle", "trial")  # what is damaged, or restores nothing, is not served on anybody's word
Tell = Callable[[str], None]


class Wishes(NamedTuple):
    """How a version is promoted.

    share: of the traffic, 0..1, for so many seconds; shadow: copies of it, their answers thrown away. why: the reason,
    which force (gates that fail do not hold it back) needs. url: the one endpoint to promote at; else all here.
    """

    gates: Gates = Gates()
    share: float = 0.0
    seconds: float = 0.0
    shadow: bool = False
    force: bool = False
    why: str = ""
    url: str | None = None

    def check(self) -> None:
        """Raise UsageError for wishes that do not go together."""
        if self.force and not self.why.strip():
            raise UsageError("--force goes with --why: the reason, which the history keeps")
        if not 0 <= self.share <= 1:
            raise UsageError(f"--canary {self.share:.0%}: give a share of up to 100%")
        if bool(self.share) != (self.seconds > 0):
            raise UsageError("--canary and --shadow go with --for: how long live requests are watched")


def examine(number: str, gates: Gates, name: str = NAME, tell: Tell = print) -> list[Check]:
    """What the gates say of a version, changing nothing. Raises UserError if there is no such version."""
    version = registry.version(number, name)
    return judging.before(gates, version, _other_champion(version), tell)


def promote(number: str, wishes: Wishes, name: str = NAME, tell: Tell = print) -> dict[str, Any]:
    """Make a version the champion, of the registry and of the endpoints that run; returns what was done and checked.

    Where no endpoint runs, the alias moves once the gates are passed. Raises Refused, with all checks, where a gate,
    the self-test or live requests speak against it; UserError where another promotion is under way, an endpoint fails,
    or there is no such version. Alias and traffic then are where they were.
    """
    wishes.check()
    version = registry.version(number, name)
    with turn.taken(name, f"version {number}") as renew:
        before = registry.aliases(name)
        former = before.get("champion")
        running = _running(wishes, name)
        if former == version.version and all(endpoint.serving() == former for endpoint in running):
            return {"version": number, "former": former, "outcome": "is the champion already", "checks": []}
        with history.recorded("promote", version, former, wishes.why) as entry:
            entry.checks += judging.before(wishes.gates, version, _other_champion(version), tell)
            _require_passed(version, entry.checks, wishes.force)
            behind = [endpoint for endpoint in running if endpoint.serving() != version.version]
            rollout = Rollout(version, behind, wishes, entry, renew, tell)
            rollout.prepare()
            rollout.move(succession(before, version.version), former)
            entry.outcome = "promoted"
            return _result(entry, version, former, running)


def rollback(wishes: Wishes, name: str = NAME, tell: Tell = print) -> dict[str, Any]:
    """Make the version before the champion the champion again, without asking the gates it once passed.

    `previous` then is the one that came before that; the version that is left is nowhere, and can be promoted again.
    Raises UserError where there is no version before, or an endpoint cannot go back to it.
    """
    with turn.taken(name, "rollback") as renew:
        before = registry.aliases(name)
        left, number = before.get("champion"), before.get("previous")
        if not number or number == left:
            raise UserError(f"'{name}' has no previous champion to go back to; `osdface models history` shows what was")
        version = registry.version(number, name)
        registry.fetch(version)
        there = {one.version for one in registry.versions(name)}
        earlier = version.promotion.get("replaced")
        running = _running(wishes, name)
        with history.recorded("rollback", version, left, wishes.why) as entry:
            behind = [endpoint for endpoint in running if endpoint.serving() != version.version]
            rollout = Rollout(version, behind, wishes, entry, renew, tell)
            rollout.prepare()
            rollout.move({"champion": number, "previous": earlier if earlier in there - {left} else None}, left)
            entry.outcome = "rolled back"
            return _result(entry, version, left, running)


def _result(entry: Entry, version: Version, former: str | None, running: Sequence["Endpoint"]) -> dict[str, Any]:
    entry.more |= {"version": version.version, "former": former, "endpoints": [one.url for one in running]}
    return entry.told() | {"run": entry.run.id}


def _other_champion(version: Version) -> Version | None:
    champion = registry.aliases(version.name).get("champion")
    return registry.version(champion, version.name) if champion and champion != version.version else None


def _require_passed(version: Version, checks: Sequence[Check], force: bool) -> None:
    bad = [check for check in failed(checks) if not force or check.gate in UNFORCED]
    if bad:
        raise refusal(version, bad, checks)


def refusal(version: Version, bad: Sequence[Check], checks: Sequence[Check]) -> Refused:
    """The error that names what fails."""
    return Refused(f"{version.ref} is refused: " + "; ".join(check.sentence() for check in bad), checks)


def _running(wishes: Wishes, name: str) -> list["Endpoint"]:
    """The endpoints to promote at: the one at a URL, or all here that were started to serve this model's champion.

    Raises UserError where live requests are to be watched and there is no endpoint.
    """
    from pipelines.serve import live, records

    found = live.endpoints(wishes.url)
    if not wishes.url:  # one that serves a certain version, or a bundle, is meant to go on with that
        refs = {record["url"]: record["ref"] for record in records.alive()}
        champion = f"models:/{name}@champion"
        short = {"champion": f"models:/{NAME}@champion"}
        found = [one for one in found if (ref := refs.get(one.url, champion)) and short.get(ref, ref) == champion]
    if wishes.share and not found:
        raise UserError(f"no endpoint runs here that serves the champion of '{name}': there are no requests to watch")
    return found


class Rollout:
    """A version on its way to endpoints."""

    def __init__(
        self, version: Version, running: Sequence["Endpoint"], wishes: Wishes, entry: Entry,
        renew: Callable[[], None], tell: Tell,
    ):  # fmt: skip
        self.version, self.running, self.wishes, self.entry = version, running, wishes, entry
        self.renew, self.tell = renew, tell
        self.before: dict[str, str | None] = {}

    def prepare(self) -> None:
        """Load it beside the champion, let it answer the self-test, then live requests; nothing stays of a failure."""
        self.before = registry.repoint({"challenger": self.version.version}, self.version.name)
        try:
            for endpoint in self.running:
                self.tell(f"{endpoint.url}: loading {self.version.ref} beside {endpoint.serving()}")
                endpoint.withdraw("its promoter is gone")  # whose turn this is has nothing staged yet
                endpoint.stage(self.version, 0.0, False, LEASE)
                self._self_test(endpoint)
                self.renew()
            if self.wishes.share and self.running:
                self._watch()
        except BaseException as error:
            self._withdraw(str(error) or type(error).__name__)
            raise

    def move(self, wanted: dict[str, str | None], former: str | None) -> None:
        """Point the aliases, then give it all traffic; if that fails somewhere, both come back."""
        name = self.version.name
        held: dict[str, str | None] = {}
        settled: list[Endpoint] = []
        try:
            now = registry.aliases(name)
            if now.get("champion") != former:
                raise UserError(f"'{name}' got another champion meanwhile ({now.get('champion')}); promote again")
            for endpoint in self.running:  # others may have taken long to load
                endpoint.stage(self.version, self.wishes.share, self.wishes.shadow, LEASE)
            held = {alias: now.get(alias) for alias in ("champion", "previous")}
            registry.repoint(wanted | {"challenger": None}, name)
            for endpoint in self.running:
                endpoint.settle()
                settled.append(endpoint)
        except BaseException as error:
            with contextlib.suppress(Exception):  # a server that is gone cannot be told; endpoints stay all the same
                registry.repoint(held, name)
            self._withdraw(str(error) or type(error).__name__)
            if former:
                self._bring_back(settled, registry.version(former, name))
            raise

    def _self_test(self, endpoint: "Endpoint") -> None:
        gate = self.wishes.gates.trial or Trial()
        given = selftest.pictures(gate.pictures)
        faults = selftest.faults(given, endpoint.try_staged(given), gate.deviation)
        found = "; ".join(faults) or f"{len(given)} pictures answered"
        self.entry.checks.append(Check(f"self-test at {endpoint.url}", found, "answers pictures", not faults))
        self._require()

    def _watch(self) -> None:
        """Give it its share until the time is over; leave at the first thing that speaks against it."""
        wishes = self.wishes
        what = "copies of" if wishes.shadow else "of"
        self.tell(f"{wishes.share:.0%} {what} the traffic for {wishes.seconds:.0f} s")
        end, leased = time.monotonic() + wishes.seconds, -LEASE
        while True:
            if time.monotonic() - leased > LEASE / 3:
                leased = time.monotonic()
                for endpoint in self.running:
                    endpoint.stage(self.version, wishes.share, wishes.shadow, LEASE)
                self.renew()
            over = time.monotonic() >= end
            checks = [check for endpoint in self.running for check in self._live(endpoint, over)]
            if over or failed(checks):
                self.entry.checks += checks
                self._require()
                return
            time.sleep(max(min(POLL, end - time.monotonic()), 0))

    def _live(self, endpoint: "Endpoint", over: bool) -> list[Check]:
        observed = endpoint.observed()
        staged = observed.get(self.version.version)
        if staged:
            self.entry.run.metrics({f"live/{name}": float(v) for name, v in staged._asdict().items()}, int(time.time()))
        return judging.live(self.wishes.gates.live, observed.get(endpoint.serving()), staged, over)

    def _require(self) -> None:
        checks = [check for check in self.entry.checks if check.gate.startswith(("self-test", "live"))]
        if bad := failed(checks):
            raise refusal(self.version, bad, self.entry.checks)

    def _withdraw(self, why: str) -> None:
        for endpoint in self.running:
            with contextlib.suppress(Exception):  # one that is gone has its lease
                endpoint.withdraw(why)
        with contextlib.suppress(Exception):
            registry.repoint(self.before, self.version.name)

    def _bring_back(self, settled: Sequence["Endpoint"], former: Version) -> None:
        for endpoint in settled:
            with contextlib.suppress(Exception):  # it follows the alias by itself
                endpoint.stage(former, 0.0, False, LEASE)
                endpoint.settle()
