"""What a scripted upstream records of each request, and the rules by which it misbehaves."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class RecordedRequest:
    """One request as it was received and answered; times are ``time.monotonic()`` seconds."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    """Names in lower case; of a repeated field the last value."""
    connection: int
    """Number of the connection, counted from 1."""
    started: float
    server_name: str | None = None
    """The name in the client's TLS hello."""
    status: int = 0
    bytes_sent: int = 0
    """Bytes of the body that were handed to the kernel."""
    first_byte: float | None = None
    finished: float | None = None
    client_left: bool = False

    @property
    def range(self) -> tuple[int | None, int | None] | None:
        """First and last byte of the Range field; None when there is none or several."""
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("range", ""))
        if found is None or found[0] == "bytes=-":
            return None
        return (int(found[1]) if found[1] else None, int(found[2]) if found[2] else None)

    @property
    def authorization(self) -> str | None:
        """The Authorization field."""
        return self.headers.get("authorization")


@dataclass(slots=True, kw_only=True)
class Rule:
    """One misbehaviour and the requests that it meets; the first rule that applies wins.

    The first group of fields chooses requests, all others are off by default and can be combined.
    Offsets of ``flip`` are in the blob, all other byte counts are of the answer's body.
    """

    method: str | None = None
    path: str | None = None
    """A regular expression, searched in the path."""
    ranged: bool | None = None
    """True: only requests with a Range field; False: only those without."""
    when: Callable[[RecordedRequest], bool] | None = None
    skip: int = 0
    """How many requests that would match pass unharmed first."""
    times: int | None = None
    """How many requests it applies to; None: to all."""

    delay: float = 0.0
    """Seconds before the first byte; infinity: never an answer."""
    close_before_answer: bool = False
    status: int | None = None
    """This status, with ``headers`` and ``body`` (empty when None), instead of the content."""
    headers: dict[str, str] = field(default_factory=dict)
    """Fields added to the answer, in place of equal ones."""
    body: bytes | None = None
    """These bytes instead of the content; without ``status`` an honest 200 of them."""
    location: Callable[[RecordedRequest], str] | None = None
    """Makes the Location field of a redirect out of the request."""

    receive_only: int | None = None
    """Take so many bytes of the request's body, act on them, and close without an answer."""

    payload: bytes | None = None
    """Serve ranges of these bytes as if they were the blob."""
    etag: str | None = None
    ignore_range: bool = False
    """200 and the whole where a range was asked for."""
    range_shift: int = 0
    """Added to the start and stop that Content-Range names; the bytes stay those asked for."""
    range_total: int | None = None
    """The total that Content-Range names."""
    without_content_range: bool = False
    without_range_support: bool = False
    """As ``ignore_range``, and no Accept-Ranges."""
    chunked: bool = False
    """Chunked coding, no Content-Length."""
    close_delimited: bool = False
    """No Content-Length: the end of the connection ends the body."""
    declared_length: int | None = None
    """This Content-Length, whatever is sent."""
    extra: int = 0
    """Bytes sent after the declared ones."""
    flip: int | None = None
    """Offset in the blob of a byte whose lowest bit is turned over."""
    gzip: bool = False
    """The body compressed, with Content-Encoding: gzip."""

    close_after: int | None = None
    """Close the connection after so many bytes of the body."""
    reset: bool = False
    """Close by RST, at ``close_after`` or before the answer."""
    stall_after: int | None = None
    """Send nothing more after so many bytes of the body, until the client leaves."""
    stall_seconds: float | None = None
    """End the stall after so long and go on."""
    rate: float | None = None
    """Bytes a second of the body."""
    head_rate: float | None = None
    """Bytes a second of the answer's head."""

    seen: int = 0
    used: int = 0

    def applies(self, request: RecordedRequest) -> bool:
        """Whether this rule is for ``request``; counts it when it is."""
        if self.method is not None and request.method != self.method:
            return False
        if self.path is not None and re.search(self.path, request.path) is None:
            return False
        if self.ranged is not None and ("range" in request.headers) != self.ranged:
            return False
        if self.when is not None and not self.when(request):
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.times is not None and self.used >= self.times):
            return False
        self.used += 1
        return True


CAPTIVE_PAGE = b"<!doctype html><title>Sign in</title><p>Please accept the terms of this network."


def captive_page(*, times: int | None = None, path: str | None = None) -> Rule:
    """200 and a page of HTML, as a hotel's network answers."""
    return Rule(
        path=path,
        times=times,
        status=200,
        body=CAPTIVE_PAGE,
        headers={"Content-Type": "text/html; charset=utf-8"},
    )
