"""How much a client may send before it is answered, and how long it may take over anything."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection; sizes in bytes, times in seconds."""

    url_bytes: int = 8 * 1024
    header_bytes: int = 32 * 1024
    """All names and values of one request's header fields, with ``: `` and the line's end."""

    header_count: int = 100
    pipelined_requests: int = 100
    """Requests that may wait for the response before theirs; one read can bring thousands."""

    header_seconds: float = 15.0
    """From a request's first byte (of a new connection: from its start) to its last header."""

    stall_seconds: float = 60.0
    """How long a client may take nothing of what waits for it; then its connection is reset."""

    linger_seconds: float = 2.0
    """How long input is thrown away after a refusal, so that the refusal is not lost to a reset."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the protocol itself answers to a request before it closes the connection."""

    status: int
    text: str


class RequestRefused(Exception):
    """A request goes beyond the limits."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


URL_TOO_LONG = Refusal(414, "The request's URL is too long.")
HEADERS_TOO_LARGE = Refusal(431, "The request's header fields are too large or too many.")
HEADERS_TOO_SLOW = Refusal(408, "The request's header fields did not arrive in time.")
TOO_MANY_PIPELINED = Refusal(503, "Too many requests wait on this connection.")
REQUEST_MALFORMED = Refusal(400, "Invalid HTTP request received.")


class RequestMeter:
    """Counts what arrives of one request and raises :class:`RequestRefused` beyond the limits.

    Bytes of which the parser makes nothing are counted too (:meth:`fed`): that bounds what it
    would keep of an endless header field or trailer. The bound is exact to one read.
    """

    __slots__ = ("_count", "_header_bytes", "_limits", "_unparsed", "_url_bytes")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.begin()

    def begin(self) -> None:
        """A request begins."""
        self._unparsed = self._url_bytes = self._header_bytes = self._count = 0

    def fed(self, size: int) -> None:
        """``size`` bytes are about to go to the parser."""
        self._unparsed += size

    def parsed(self) -> None:
        """The parser has come to the end of the headers, to bytes of the body, or to its end."""
        self._unparsed = 0

    def url(self, part: bytes) -> None:
        """A part of the URL."""
        self._url_bytes += len(part)
        if self._url_bytes > self._limits.url_bytes:
            raise RequestRefused(URL_TOO_LONG)

    def header(self, name: bytes, value: bytes) -> None:
        """A whole header field, or a trailer."""
        self._count += 1
        self._header_bytes += len(name) + len(value) + 4
        if (
            self._count > self._limits.header_count
            or self._header_bytes > self._limits.header_bytes
        ):
            raise RequestRefused(HEADERS_TOO_LARGE)

    def check_unparsed(self) -> None:
        """After each feeding."""
        if self._unparsed > self._limits.url_bytes + self._limits.header_bytes:
            raise RequestRefused(HEADERS_TOO_LARGE)
