"""Pulls of clients that are not within containerd: nerdctl, ``ctr-remote images rpull``.

containerd passes neither their namespace nor their lease on (seen with 1.6.20). The namespace is in
the key of Prepare, but not in the List by which containerd then looks for what it was told is here
already: a base layer could be found under another namespace, whose removal would take it away. So
it is remembered which one is looked for, and at any moment only one namespace pulls a layer so.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from mount.snapshotter.snapshot import REF_LABEL, Snapshot

LOOKS_SECONDS = 10.0
"""containerd looks at once; after so long it has gone away."""

_Place = tuple[str, str]
"""Chain ID and parent."""


@dataclass(slots=True)
class _Looking:
    namespace: str
    until: float
    count: int = 0


class NamelessPulls:
    """What containerd looks for, and what it has not been told the end of."""

    def __init__(self) -> None:
        """Nobody pulls."""
        self._looking: dict[_Place, _Looking] = {}
        self.unsettled: set[str] = set()
        """Names of layers whose pull has still to wait: no lease says so."""

    def enter(self, chain: object, parent: str, namespace: str) -> bool:
        """A layer is about to be committed; False while another namespace pulls the same one."""
        now, place = time.monotonic(), (str(chain), parent)
        self._looking = {key: one for key, one in self._looking.items() if one.until > now}
        looking = self._looking.setdefault(place, _Looking(namespace, 0.0))
        if looking.namespace != namespace:
            return False
        looking.count += 1
        looking.until = now + LOOKS_SECONDS
        return True

    def found(self, listed: Sequence[Snapshot]) -> list[Snapshot]:
        """What containerd looks for by its chain ID and parent, of what has both."""
        layers = [one for one in listed if one.remote is not None]
        if not layers:
            return list(listed)
        place = layers[0].labels.get(REF_LABEL, ""), layers[0].parent
        looking = self._looking.get(place)
        if looking is None:
            # Whose layer that would be cannot be told.
            return [one for one in listed if one.remote is None]
        looking.count -= 1
        if looking.count == 0:
            del self._looking[place]
        mine = f"{looking.namespace}/"
        return [one for one in listed if one.name.startswith(mine)]
