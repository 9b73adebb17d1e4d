"""Who has been let in by an upstream lately (``access: passthrough``)."""

import hashlib
import os
import time
from collections.abc import Callable

GRANT_SECONDS = 30.0
"""How long the upstream's consent holds for the same repository and credentials."""

MOST_GRANTS = 4096


class Grants:
    """Consents of upstreams to repository and credentials; no credential is kept as it is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nobody has been let in. ``clock`` counts seconds and never goes back."""
        self._clock = clock
        self._secret = os.urandom(32)
        self._until: dict[tuple[str, str, bytes], float] = {}

    def credential(self, authorization: str | None) -> bytes:
        """What stands for a client's Authorization field here: a keyed hash; without one empty."""
        if authorization is None:
            return b""
        return hashlib.blake2b(
            authorization.encode("utf-8", "surrogateescape"), digest_size=16, key=self._secret
        ).digest()

    def give(self, host: str, repository: str, authorization: str | None) -> None:
        """The upstream has just let this client have something of the repository."""
        key = (host, repository, self.credential(authorization))
        self._until.pop(key, None)
        if len(self._until) >= MOST_GRANTS:
            del self._until[next(iter(self._until))]
        self._until[key] = self._clock() + GRANT_SECONDS

    def holds(self, host: str, repository: str, authorization: str | None) -> bool:
        """Whether the upstream's consent is recent enough."""
        key = (host, repository, self.credential(authorization))
        return self._until.get(key, 0.0) > self._clock()

    def withdraw(self, host: str, repository: str, authorization: str | None) -> None:
        """The upstream has just refused this client."""
        self._until.pop((host, repository, self.credential(authorization)), None)
