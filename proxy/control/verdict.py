"""What held a pull up, with the evidence: a pure function of what was measured during it.

Cores without time to spare hold up everything else, so they are looked at first. Then whoever
waited tells: when the mirror waited for the client more than the client for bytes, it is the
client. Else bytes were late: because writers waited for their disk where the filler's figures say
so, and otherwise on the way from the upstream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from headstart.content.sizes import SIZE_UNITS, show_size
from proxy.control.figures import Figures, StripeFigures, UpstreamFigures

CACHE = "cache"
CLIENT_BOUND = "client-bound"
CPU_BOUND = "cpu-bound"
DISK_BOUND = "disk-bound"
NETWORK_BOUND = "network-bound"
NOTHING_SENT = "nothing-sent"
VERDICTS = (CACHE, CLIENT_BOUND, CPU_BOUND, DISK_BOUND, NETWORK_BOUND, NOTHING_SENT)

DISK_SHARE = 0.5
"""Of a pull's time: writers that wait for longer than this hold it up."""

CPU_SHARE = 0.85
"""Of the cores' time, used by mirror and filler; clients on the same node need the rest."""


LEAST_JUDGED = 32 * 1024
"""Bytes; fewer are no layer that takes time. A node that mounts layers asks for configurations."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What happened during one pull.

    ``sent`` and ``from_cache`` are bytes, the waits are seconds added up over its requests,
    ``figures`` is what the filler counted in its ``seconds`` (None when it did not answer),
    ``connections`` are the most that were open to the upstream at once.
    """

    upstream: str
    seconds: float
    sent: int
    from_cache: int
    waited_for_filler: float = 0.0
    waited_for_client: float = 0.0
    mirror_cpu_seconds: float = 0.0
    figures: Figures | None = None
    connections: int = 0

    @property
    def hit_ratio(self) -> float:
        """The share of the sent bytes that were in the cache; 1 when nothing was sent."""
        return self.from_cache / self.sent if self.sent else 1.0

    @property
    def rate(self) -> float:
        """Bytes a second to the client."""
        return self.sent / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """``word`` is one of :data:`VERDICTS`, ``evidence`` a sentence with figures for people."""

    word: str
    evidence: str


def judge(measured: Measured) -> Verdict:
    """Say what held the pull up."""
    if measured.sent == 0:
        return Verdict(NOTHING_SENT, "no bytes of a blob were asked for")
    if measured.from_cache >= measured.sent:
        return Verdict(CACHE, f"served from the cache{_spent(measured)}")
    if measured.sent < LEAST_JUDGED:
        few = f"{measured.sent} bytes: a configuration, no layer"
        return Verdict(NOTHING_SENT, f"{few}; what is mounted is not asked for here")
    figures = measured.figures
    if figures is not None and measured.seconds > 0:
        busy = figures.cpu_seconds + measured.mirror_cpu_seconds
        whole = figures.cores * measured.seconds
        if busy >= CPU_SHARE * whole:
            return Verdict(
                CPU_BOUND,
                f"mirror and filler used {busy:.1f} of {whole:.1f} core seconds "
                f"({_percent(busy, whole)} of {figures.cores} cores)",
            )
    if measured.waited_for_client > measured.waited_for_filler:
        return Verdict(
            CLIENT_BOUND,
            f"the client took {_rate(measured.rate)}: the mirror waited "
            f"{measured.waited_for_client:.1f} s for it, it waited "
            f"{measured.waited_for_filler:.1f} s for bytes",
        )
    if figures is not None:
        least = DISK_SHARE * measured.seconds
        slow = [stripe for stripe in figures.stripes if stripe.waited_seconds >= max(least, 0.05)]
        if slow:
            return Verdict(DISK_BOUND, _disks(slow, measured.seconds))
    return Verdict(NETWORK_BOUND, _network(measured))


def _spent(measured: Measured) -> str:
    if measured.waited_for_client > measured.seconds / 2:
        return f"; the client took {_rate(measured.rate)}"
    return ""


def _disks(slow: Sequence[StripeFigures], seconds: float) -> str:
    written = ", ".join(
        f"{_binary_rate(stripe.written, seconds)} written to {stripe.path}"
        f"{f' (device {stripe.device})' if stripe.device else ''} while its writers waited "
        f"{_percent(stripe.waited_seconds, seconds)} of the time"
        for stripe in slow
    )
    return f"{written}; add a stripe"


def _network(measured: Measured) -> str:
    if measured.figures is None:
        return (
            f"the client waited {measured.waited_for_filler:.1f} s for bytes of "
            f"{measured.upstream}; the filler gave no figures"
        )
    upstream = measured.figures.upstreams.get(measured.upstream, UpstreamFigures())
    connections = max(measured.connections, upstream.active)
    rate = _rate(upstream.received / measured.seconds if measured.seconds > 0 else 0.0)
    text = f"{rate} from {measured.upstream} over {_connections(connections)}"
    if connections and connections >= upstream.limit:
        text += ", as many as max_connections allows now"
    elif connections:
        text += f", of {upstream.limit} allowed"
    if upstream.paused_seconds >= 0.1:
        text += f"; it asked for pauses of {upstream.paused_seconds:.1f} s"
    return text


def _connections(number: int) -> str:
    if number == 0:
        return "connections that were soon closed"
    return "1 connection" if number == 1 else f"{number} connections"


def _percent(part: float, whole: float) -> str:
    return f"{min(100.0, 100 * part / whole) if whole else 0:.0f} %"


def _rate(rate: float) -> str:
    """As networks are measured: powers of 1000."""
    if rate >= SIZE_UNITS["MB"]:
        return f"{rate / SIZE_UNITS['MB']:.0f} MB/s"
    return f"{rate / SIZE_UNITS['KB']:.0f} KB/s"


def _binary_rate(written: int, seconds: float) -> str:
    """As disks are throttled: powers of 1024."""
    return f"{show_size(written / seconds if seconds > 0 else 0)}/s"
