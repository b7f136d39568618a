"""Who may ask, and how often: API keys, of which only hashes are kept."""

import hashlib
import hmac
import secrets
import time

from fastapi import Request

from pipelines.serve.problems import Problem
from pipelines.serve.settings import Key

SCHEME = "Bearer"


def new(name: str, per_minute: int) -> tuple[str, Key]:
    """A fresh key, which is kept nowhere, and what an endpoint needs to know of it."""
    secret = secrets.token_urlsafe(32)
    return secret, Key(name=name, sha256=_hashed(secret), per_minute=per_minute)


class Doorkeeper:
    """Lets those in who have a key, each as often as it may: a bucket of a minute's requests that fills steadily."""

    def __init__(self, keys: list[Key]):
        self.keys = keys
        self.left = {key.name: float(key.per_minute) for key in keys}
        self.counted = dict.fromkeys(self.left, time.monotonic())

    def admit(self, request: Request, cost: int = 1) -> None:
        """Raises Problem: 401 without one of the keys, 429 for one that asks too often."""
        if not self.keys:
            return
        key = self._known(request.headers.get("authorization", ""))
        cost = min(cost, key.per_minute)
        now, rate = time.monotonic(), key.per_minute / 60
        left = min(key.per_minute, self.left[key.name] + (now - self.counted[key.name]) * rate)
        self.counted[key.name] = now
        self.left[key.name] = left - cost if left >= cost else left
        if left < cost:
            wait = str(int((cost - left) / rate) + 1)
            raise Problem(429, f"more than {key.per_minute} requests a minute; try again later", {"Retry-After": wait})

    def _known(self, header: str) -> Key:
        scheme, _, secret = header.partition(" ")
        hashed = _hashed(secret.strip())
        found = [key for key in self.keys if hmac.compare_digest(key.sha256, hashed)]  # all of them, in equal time
        if scheme.lower() != SCHEME.lower() or not found:
            raise Problem(
                401, "give one of this endpoint's keys: Authorization: Bearer KEY", {"WWW-Authenticate": SCHEME}
            )
        return found[0]


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()
