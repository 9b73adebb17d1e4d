"""The filler's counters as they were at one moment, and what happened between two of them."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from headstart.store.wire import Message


@dataclass(frozen=True, slots=True)
class UpstreamFigures:
    """One upstream: connections now (``active`` of ``limit``), the rest since the filler's start.

    ``received`` and ``refetched`` are bytes, ``waiting`` are wants without a connection.
    """

    active: int = 0
    limit: int = 0
    waiting: int = 0
    received: int = 0
    requests: int = 0
    failed: int = 0
    refetched: int = 0
    paused_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StripeFigures:
    """One stripe: bytes ``written``, seconds in which a writer waited for the disk, bytes dirty."""

    path: str = ""
    device: str = ""
    written: int = 0
    waited_seconds: float = 0.0
    dirty: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """All counters of the filler; those of events and bytes count from its start."""

    uptime_seconds: float = 0.0
    cpu_seconds: float = 0.0
    cores: int = 1
    received: int = 0
    hashed: int = 0
    allocated: int = 0
    high_water: int = 0
    low_water: int = 0
    objects: int = 0
    open: int = 0
    evicted_objects: int = 0
    evicted_bytes: int = 0
    upstreams: dict[str, UpstreamFigures] = field(default_factory=dict)
    stripes: tuple[StripeFigures, ...] = ()

    @classmethod
    def read(cls, message: Message) -> Self:
        """Read the answer to ``figures``; what is absent counts as zero."""
        upstreams, stripes = message.get("upstreams"), message.get("stripes")
        return cls(
            **_numbers(cls, message),
            upstreams={
                host: UpstreamFigures(**_numbers(UpstreamFigures, given))
                for host, given in (upstreams if isinstance(upstreams, dict) else {}).items()
            },
            stripes=tuple(
                StripeFigures(
                    path=str(given.get("path", "")),
                    device=str(given.get("device", "")),
                    **_numbers(StripeFigures, given),
                )
                for given in (stripes if isinstance(stripes, list) else [])
            ),
        )

    def since(self, earlier: "Figures") -> "Figures":
        """What the counters counted after ``earlier``; all of it where the filler has restarted.

        Quantities of the moment (connections, dirty bytes, what is allocated) stay as they are.
        """
        if self.uptime_seconds < earlier.uptime_seconds:
            return self
        before = {stripe.path: stripe for stripe in earlier.stripes}
        return replace(
            self,
            **_differences(self, earlier, _COUNTED),
            upstreams={
                host: replace(
                    now,
                    **_differences(
                        now, earlier.upstreams.get(host, UpstreamFigures()), _COUNTED_UPSTREAM
                    ),
                )
                for host, now in self.upstreams.items()
            },
            stripes=tuple(
                replace(
                    now,
                    **_differences(now, before.get(now.path, StripeFigures()), _COUNTED_STRIPE),
                )
                for now in self.stripes
            ),
        )


_COUNTED = (
    "uptime_seconds",
    "cpu_seconds",
    "received",
    "hashed",
    "evicted_objects",
    "evicted_bytes",
)
_COUNTED_UPSTREAM = ("received", "requests", "failed", "refetched", "paused_seconds")
_COUNTED_STRIPE = ("written", "waited_seconds")


def _numbers(kind: type, message: object) -> dict[str, Any]:
    """The fields of ``kind`` that stand in ``message`` as numbers."""
    given = message if isinstance(message, dict) else {}
    return {
        known.name: given[known.name]
        for known in fields(kind)
        if isinstance(given.get(known.name), int | float)
    }


def _differences(now: object, earlier: object, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: max(0, getattr(now, name) - getattr(earlier, name)) for name in names}
