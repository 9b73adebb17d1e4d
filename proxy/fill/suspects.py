"""Blobs whose bytes were wrong, remembered for a while: the second failure is answered at once."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from headstart.content.digest import Digest

SUSPECT_SECONDS = 60.0
"""How long a blob whose digest failed is remembered."""
REFUSE_SECONDS = 10.0
"""How long a blob whose digest failed again is not asked for."""


@dataclass(slots=True)
class _Suspect:
    failures: int
    until: float
    refused_until: float = 0.0


class Suspects:
    """What is remembered of failed digests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._suspects: dict[Digest, _Suspect] = {}

    def failed(self, digest: Digest) -> None:
        """The bytes of a blob were wrong."""
        now = self._clock()
        self._suspects = {key: old for key, old in self._suspects.items() if old.until > now}
        suspect = self._suspects.setdefault(digest, _Suspect(0, 0.0))
        suspect.failures += 1
        suspect.until = now + SUSPECT_SECONDS
        if suspect.failures > 1:
            suspect.refused_until = now + REFUSE_SECONDS

    def passed(self, digest: Digest) -> None:
        """They are right by now."""
        self._suspects.pop(digest, None)

    def refused(self, digest: Digest) -> bool:
        """Whether nobody is to be asked for the blob now."""
        suspect = self._suspects.get(digest)
        return suspect is not None and self._clock() < suspect.refused_until
