"""Which bytes of a blob an answer has, and how it is framed: 200, 206, or 206 in parts. Pure."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from headstart.content.digest import Digest
from headstart.content.ranges import ByteRange, RangeSpec, satisfiable
from proxy.serve.errors import RangeUnsatisfiable

MEDIA_TYPE = b"application/octet-stream"

WITHHELD_BYTES = 64 * 1024
"""The end of a whole or open-ended answer, which waits for the blob's digest to pass."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What of a blob of ``size`` bytes is sent.

    ``parts`` are sent one after the other, with ``preludes`` before each and ``epilogue`` at the
    end where there are several. ``to_the_end``: whole and open-ended answers, whose end is
    withheld until the digest passes.
    """

    size: int
    status: int
    parts: tuple[ByteRange, ...]
    to_the_end: bool
    preludes: tuple[bytes, ...] = ()
    epilogue: bytes = b""
    boundary: bytes = b""

    @property
    def length(self) -> int:
        """Bytes of the body."""
        framing = sum(map(len, self.preludes)) + len(self.epilogue)
        return framing + sum(part.length for part in self.parts)

    def fields(self) -> list[tuple[bytes, bytes]]:
        """Content-Length, Content-Type and Content-Range."""
        fields = [(b"content-length", b"%d" % self.length)]
        if self.boundary:
            fields.append((b"content-type", b"multipart/byteranges; boundary=" + self.boundary))
            return fields
        fields.append((b"content-type", MEDIA_TYPE))
        if self.status == 206:
            content_range = self.parts[0].content_range(self.size)
            fields.append((b"content-range", content_range.encode("ascii")))
        return fields


def whole(size: int) -> Delivery:
    """The answer to a request without a range."""
    return Delivery(size, 200, (ByteRange(0, size),), to_the_end=True)


def plan(specs: Sequence[RangeSpec] | None, size: int) -> Delivery:
    """The answer to ``specs`` (None: no range, or one that is to be ignored).

    Ranges that together are more than the blob are answered by the blob. Raises
    RangeUnsatisfiable.
    """
    if specs is None:
        return whole(size)
    parts = satisfiable(specs, size)
    if not parts:
        raise RangeUnsatisfiable(size)
    if len(parts) == 1:
        open_ended = len(specs) == 1 and specs[0].first is not None and specs[0].last is None
        return Delivery(size, 206, (parts[0],), to_the_end=open_ended)
    if sum(part.length for part in parts) > size:
        return whole(size)
    boundary = secrets.token_hex(16).encode("ascii")
    preludes = tuple(
        b"\r\n--%s\r\nContent-Type: %s\r\nContent-Range: %s\r\n\r\n"
        % (boundary, MEDIA_TYPE, part.content_range(size).encode("ascii"))
        for part in parts
    )
    epilogue = b"\r\n--%s--\r\n" % boundary
    return Delivery(size, 206, tuple(parts), False, preludes, epilogue, boundary)


def first_wanted(specs: Sequence[RangeSpec] | None) -> tuple[int, int | None] | None:
    """Offset and length (None: to the end) of what is sent first, where no size is needed for it.

    With it the filler's first range brings the size along.
    """
    if specs is None:
        return 0, None
    first, last = specs[0]
    if first is None:
        return None
    return first, None if last is None else last - first + 1


def if_range_holds(field: str | None, digest: Digest) -> bool:
    """Whether a Range field counts beside this If-Range field (strong comparison)."""
    return field is None or field.strip() == f'"{digest}"'
