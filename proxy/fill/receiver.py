"""What happens to an answer's bytes: the head is checked, the body is written range by range.

Runs in the thread of the connection. It decides nothing about what to fetch next: its verdict on
the answer is an :class:`Outcome`, and its progress is what the map and the fetch say.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from blake3 import blake3

from headstart.content.ranges import InvalidContentRange, parse_content_range
from headstart.store.geometry import MIB, UNIT_SIZE
from proxy.fill.blob_files import BlobFiles
from proxy.fill.fetch import Ending, Fetch, Outcome

BUFFER_SIZE = MIB
FLUSH_SECONDS = 0.02
LONGEST_LENGTH = 18
"""Digits of a Content-Length; with more it would not fit into a file offset."""
_REDIRECTS = {301, 302, 303, 307, 308}


@dataclass(slots=True)
class Head:
    """Status and header fields of an answer; names in lower case, values in order."""

    status: int = 0
    fields: dict[str, list[str]] = field(default_factory=dict)

    def first(self, name: str) -> str | None:
        """The first value of a field."""
        values = self.fields.get(name)
        return values[0] if values else None

    def length(self) -> int | None:
        """Content-Length, or None when it is absent or no number that a size can be."""
        text = self.first("content-length")
        if text is None or not text.isdecimal() or len(text) > LONGEST_LENGTH:
            return None
        return int(text)


class Admission(Protocol):
    """What the fill decides about an answer, before its first byte is written."""

    def admit(self, fetch: Fetch, size: int | None, etag: str | None) -> Outcome | None:
        """Accept the answer's total size and entity tag, or say why not."""

    def admit_stream(self, fetch: Fetch, size: int | None) -> Outcome | None:
        """Accept a whole answer where a range was asked, or say why not."""

    def opened_files(self) -> BlobFiles:
        """The files to write to; there once an answer has been admitted."""

    def reserve(self, extent: int) -> None:
        """Reserve the extent's space. Raises OSError."""

    def wrote(self, stripe: int, file_offset: int, length: int) -> None:
        """Count a write; may pace it."""

    def extent_whole(self, extent: int, digest: bytes | None) -> None:
        """An extent is whole; ``digest`` is its BLAKE3 when one range brought all of it."""

    def progressed(self) -> None:
        """Bytes were published."""


class RangeReceiver:
    """Takes one answer for one fetch."""

    def __init__(
        self,
        fetch: Fetch,
        admission: Admission,
        buffer: bytearray,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``buffer`` has :data:`BUFFER_SIZE` bytes and belongs to the connection."""
        self._fetch = fetch
        self._admission = admission
        self._buffer = memoryview(buffer)
        self._clock = clock
        self._filled = 0
        self._flushed_at = clock()
        self._position = fetch.start
        self._requested_stop = fetch.asked[1]
        self._hasher: blake3 | None = None
        self._hashed_to = -1
        self._files: BlobFiles | None = None
        self.outcome: Outcome | None = None

    # --- the head ---

    def answered(self, head: Head) -> bool:
        """Judge the head; False ends the request, with :attr:`outcome` set."""
        fetch = self._fetch
        fetch.first_byte = self._clock()
        self.outcome = self._judge(head)
        if self.outcome is None:
            self._files = self._admission.opened_files()
            if fetch.stream:
                self._requested_stop = self._files.geometry.size
            else:
                size = self._files.geometry.size
                self._requested_stop = min(self._requested_stop, size)
                with fetch.lock:
                    # Not to where the answer ends: what it leaves out is this fetch's to release.
                    fetch.stop = min(fetch.stop, size)
            self._position = fetch.start
        return self.outcome is None

    def _judge(self, head: Head) -> Outcome | None:
        if head.status in _REDIRECTS:
            return Outcome(Ending.REDIRECT, location=head.first("location") or "")
        if head.status == 401:
            challenges = head.fields.get("www-authenticate", [])
            return Outcome(Ending.CHALLENGE, status=401, challenges=challenges)
        if head.status == 416:
            return self._unsatisfiable(head)
        if head.status not in (200, 206):
            return Outcome(
                Ending.STATUS,
                status=head.status,
                retry_after=head.first("retry-after"),
                date=head.first("date"),
            )
        encoding = head.first("content-encoding")
        if encoding is not None and encoding.lower() != "identity":
            return Outcome(
                Ending.PROTOCOL, f"Content-Encoding: {encoding}, though identity was asked for"
            )
        kind = (head.first("content-type") or "").split(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml", "multipart/byteranges"):
            return Outcome(Ending.PROTOCOL, f"the answer is {kind}, no blob")
        if head.status == 206:
            return self._judge_range(head)
        return self._admission.admit_stream(self._fetch, head.length())

    def _unsatisfiable(self, head: Head) -> Outcome:
        size: int | None = None
        try:
            size = parse_content_range(head.first("content-range") or "").size
        except InvalidContentRange:
            # An upstream that does not say how long the blob is: the caller asks by HEAD.
            size = None
        return Outcome(Ending.UNSATISFIABLE, status=416, size=size)

    def _judge_range(self, head: Head) -> Outcome | None:
        fetch = self._fetch
        text = head.first("content-range")
        if text is None:
            return Outcome(Ending.PROTOCOL, "206 without Content-Range")
        try:
            given = parse_content_range(text)
        except InvalidContentRange:
            return Outcome(Ending.PROTOCOL, f"206 with Content-Range {text!r}")
        if given.start != fetch.start:
            return Outcome(Ending.PROTOCOL, f"206 starts at {given.start}, asked was {fetch.start}")
        if given.stop > self._requested_stop or given.stop <= given.start:
            return Outcome(
                Ending.PROTOCOL, f"206 ends at {given.stop}, asked was {self._requested_stop}"
            )
        length = head.length()
        if length is not None and length != given.stop - given.start:
            return Outcome(
                Ending.PROTOCOL, f"206 {text!r} with Content-Length {length}: they disagree"
            )
        refused = self._admission.admit(fetch, given.size, head.first("etag"))
        if refused is None:
            self._requested_stop = given.stop
        return refused

    # --- the body ---

    def feed(self, received: bytes) -> bool:
        """Take body bytes; False ends the request, with :attr:`outcome` set."""
        fetch = self._fetch
        if fetch.cut_reason is not None or self._files is None:
            return False
        fetch.received += len(received)
        if self._position + self._filled + len(received) > self._requested_stop:
            if self._cut():
                self.outcome = Outcome(
                    Ending.PROTOCOL, f"the body is longer than declared ({self._requested_stop})"
                )
            return False
        taken = 0
        try:
            while taken < len(received):
                room = BUFFER_SIZE - (self._position % BUFFER_SIZE + self._filled)
                count = min(room, len(received) - taken)
                self._buffer[self._filled : self._filled + count] = received[taken : taken + count]
                self._filled += count
                taken += count
                if count == room and not self._flush():
                    return self._cut()
            if self._due() and not self._flush():
                return self._cut()
        except OSError as error:
            self.outcome = Outcome(Ending.DISK, str(error), error=error)
            return False
        return True

    def room(self) -> memoryview:
        """Where the next bytes of the body may be put without a copy; see :meth:`came`."""
        return self._buffer[self._filled : BUFFER_SIZE - self._position % BUFFER_SIZE]

    def came(self, count: int) -> bool:
        """``count`` bytes (or none yet) are in :meth:`room`; as :meth:`feed` otherwise."""
        fetch = self._fetch
        if fetch.cut_reason is not None or self._files is None:
            return False
        fetch.received += count
        self._filled += count
        full = self._position % BUFFER_SIZE + self._filled == BUFFER_SIZE
        try:
            if (full or self._due()) and not self._flush():
                return self._cut()
        except OSError as error:
            self.outcome = Outcome(Ending.DISK, str(error), error=error)
            return False
        return True

    def _due(self) -> bool:
        if not self._fetch.bulk and self._filled >= UNIT_SIZE:
            return True
        return self._clock() - self._flushed_at >= FLUSH_SECONDS

    def _cut(self) -> bool:
        """Note that the fetch was shortened or cut; always False when it was."""
        if self._fetch.cut_reason is not None:
            self.outcome = self._fetch.cut_reason
        elif self._position >= self._fetch.stop:
            self.outcome = Outcome(Ending.COMPLETE)
        else:
            return self.outcome is None
        return False

    def finished(self, failure: Outcome | None) -> Outcome:
        """The transfer has ended, by itself or by ``failure``; write what is left and judge."""
        try:
            if self._filled:
                self._flush()
        except OSError as error:
            return Outcome(Ending.DISK, str(error), error=error)
        fetch = self._fetch
        if self.outcome is not None:
            return self.outcome
        if self._files is not None and self._position >= fetch.stop:
            return Outcome(Ending.COMPLETE)
        if fetch.cut_reason is not None:
            return fetch.cut_reason
        if failure is not None:
            return failure
        if self._files is None:
            return Outcome(Ending.NETWORK, "the answer ended before its head")
        if self._position >= self._requested_stop and fetch.received >= UNIT_SIZE:
            return Outcome(Ending.CUT, "the upstream answered with less than it was asked for")
        return Outcome(
            Ending.NETWORK,
            f"the body ended at byte {self._position}, declared were {self._requested_stop}",
        )

    def _flush(self) -> bool:
        """Write the buffer; False when the fetch has been shortened to what is written now."""
        fetch, files = self._fetch, self._files
        if files is None or not self._filled:
            return True
        start = self._position
        with fetch.lock:
            stop = min(start + self._filled, fetch.stop)
            fetch.reserved = max(fetch.reserved, stop)
        shortened = stop < start + self._filled
        extent_size = files.geometry.extent_size
        done = start
        while done < stop:
            piece_stop = min(stop, (done // extent_size + 1) * extent_size)
            if fetch.stream and (here := files.map.available(done, piece_stop - done)):
                # Readers and the digest have had them: a stream must not put others in their place.
                done += here
                with fetch.lock:
                    fetch.committed = done
                continue
            self._write(files, done, self._buffer[done - start : piece_stop - start])
            done = piece_stop
        self._filled = 0
        self._position = max(start, stop)
        self._flushed_at = self._clock()
        self._admission.progressed()
        return not shortened

    def _write(self, files: BlobFiles, start: int, payload: memoryview) -> None:
        """Write one extent's part: bytes first, then the map."""
        extent_size = files.geometry.extent_size
        extent = start // extent_size
        stop = start + len(payload)
        self._admission.reserve(extent)
        files.write(start, payload)
        if start == extent * extent_size:
            self._hasher, self._hashed_to = blake3(), start
        hashed = self._hasher is not None and self._hashed_to == start
        if hashed and self._hasher is not None:
            self._hasher.update(payload)
            self._hashed_to = stop
        origin = self._fetch.start // UNIT_SIZE * UNIT_SIZE
        whole = files.publish(origin, stop, start)
        with self._fetch.lock:
            self._fetch.committed = stop
        for number in whole:
            mine = (
                hashed
                and number == extent
                and stop == extent * extent_size + (files.geometry.extent_length(extent))
            )
            digest = self._hasher.digest() if mine and self._hasher is not None else None
            self._admission.extent_whole(number, digest)
        stripe, file_offset = files.geometry.place(start)
        self._admission.wrote(stripe, file_offset, len(payload))
