"""One pull: what a client took of one repository, from its first request to its last."""

import json
import re
import time
from dataclasses import dataclass, field
from typing import Self

from headstart.content.sizes import SIZE_UNITS
from proxy.control.figures import Figures
from proxy.control.verdict import Measured, Verdict

LONGEST_AGENT = 200
MOST_REASONS = 5

_QUERY = re.compile(r"\?\S*")
_PLAIN = re.compile(r"[^\s\"=\\]+")


@dataclass(slots=True, eq=False)
class Pull:
    """What was sent and waited for; bytes and seconds, ``started`` and ``active_at`` monotonic."""

    number: int
    client: str
    upstream: str
    repository: str
    agent: str = ""
    tag: str | None = None
    digest: str | None = None
    wanted: int | None = None
    """Bytes of everything that the manifest names; None before one was served."""

    started: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)
    active_at: float = field(default_factory=time.monotonic)
    noted_at: float = 0.0
    open_requests: int = 0
    requests: int = 0
    sent: int = 0
    from_cache: int = 0
    waited_for_filler: float = 0.0
    waited_for_client: float = 0.0
    failed: int = 0
    reasons: list[str] = field(default_factory=list)
    connections: int = 0
    cpu_at_start: float = field(default_factory=time.process_time)
    cpu_at_end: float | None = None
    figures_at_start: Figures | None = None
    figures_at_end: Figures | None = None
    verdict: Verdict | None = None

    @property
    def image(self) -> str:
        """The image's name as far as the client has told it: by tag, else by digest."""
        name = f"{self.upstream}/{self.repository}"
        if self.tag is not None:
            return f"{name}:{self.tag}"
        return f"{name}@{self.digest}" if self.digest is not None else name

    @property
    def seconds(self) -> float:
        """From the first request to the last byte, or to now while a request is open."""
        return (time.monotonic() if self.open_requests else self.active_at) - self.started

    def idle_seconds(self) -> float:
        """For how long no request has been open."""
        return 0.0 if self.open_requests else time.monotonic() - self.active_at

    def is_over_for(self, tag: str | None, agent: str) -> bool:
        """Whether a manifest for this tag (None: by digest) and program begins another pull."""
        if self.open_requests:
            return False
        other_tag = None not in (tag, self.tag) and tag != self.tag
        return other_tag or (bool(self.agent) and agent != self.agent)

    def fail(self, reason: str) -> None:
        """Count a request that ended early, with the reason; queries of URLs are left out."""
        self.failed += 1
        reason = _QUERY.sub("", " ".join(reason.split()))[:300]
        if reason not in self.reasons:
            self.reasons = [*self.reasons, reason][-MOST_REASONS:]

    def measured(self) -> Measured:
        """What the verdict is made from."""
        figures = None
        if self.figures_at_end is not None:
            figures = self.figures_at_end
            if self.figures_at_start is not None:
                figures = figures.since(self.figures_at_start)
        cpu_at_end = time.process_time() if self.cpu_at_end is None else self.cpu_at_end
        return Measured(
            upstream=self.upstream,
            seconds=self.seconds,
            sent=self.sent,
            from_cache=self.from_cache,
            waited_for_filler=self.waited_for_filler,
            waited_for_client=self.waited_for_client,
            mirror_cpu_seconds=cpu_at_end - self.cpu_at_start,
            figures=figures,
            connections=self.connections,
        )

    def describe(self) -> dict[str, object]:
        """The pull as ``GET /pulls`` shows it."""
        measured = self.measured()
        return {
            "image": self.image,
            "digest": self.digest,
            "client": self.client,
            "agent": self.agent,
            "state": "running" if self.verdict is None else "ended",
            "started_at": round(self.started_at, 3),
            "seconds": round(measured.seconds, 3),
            "requests": self.requests,
            "open_requests": self.open_requests,
            "bytes": self.sent,
            "bytes_from_cache": self.from_cache,
            "bytes_wanted": self.wanted,
            "hit_ratio": round(measured.hit_ratio, 4),
            "rate": round(measured.rate),
            "waited_for_filler_seconds": round(self.waited_for_filler, 3),
            "waited_for_client_seconds": round(self.waited_for_client, 3),
            "failed": self.failed,
            "reasons": list(self.reasons),
            "verdict": self.verdict.word if self.verdict else None,
            "evidence": self.verdict.evidence if self.verdict else None,
        }

    def line(self) -> str:
        """The pull as one line of logfmt."""
        measured = self.measured()
        fields = {
            "image": self.image,
            "client": self.client or "local",
            "bytes": str(self.sent),
            "hit_ratio": f"{measured.hit_ratio:.2f}",
            "seconds": f"{measured.seconds:.2f}",
            "rate": f"{measured.rate / SIZE_UNITS['MB']:.1f}MB/s",
        }
        if self.failed:
            fields |= {"failed": str(self.failed), "reason": "; ".join(self.reasons)}
        if self.verdict is not None:
            fields |= {"verdict": self.verdict.word, "evidence": self.verdict.evidence}
        return "pull " + " ".join(f"{name}={_quoted(text)}" for name, text in fields.items())


class PullWatch:
    """One blob request of a pull; a context as long as the request is open."""

    __slots__ = ("_pull",)

    def __init__(self, pull: Pull) -> None:
        self._pull = pull

    def __enter__(self) -> Self:
        self._pull.open_requests += 1
        self._pull.requests += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._pull.open_requests -= 1
        self._pull.active_at = time.monotonic()

    def sent(self, count: int, from_cache: bool) -> None:
        """``count`` bytes have gone to the client."""
        self._pull.sent += count
        if from_cache:
            self._pull.from_cache += count

    def waited_for_filler(self, seconds: float) -> None:
        """The next byte was not here yet."""
        self._pull.waited_for_filler += seconds

    def waited_for_client(self, seconds: float) -> None:
        """The client's connection took no more bytes."""
        self._pull.waited_for_client += seconds

    def failed(self, reason: str) -> None:
        """The request ended before its last byte."""
        self._pull.fail(reason)


def printable(text: str, longest: int) -> str:
    """Text from a client's header, bounded and without control characters."""
    return "".join(sign for sign in text[:longest] if sign.isprintable())


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
