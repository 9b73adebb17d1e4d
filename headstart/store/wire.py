"""Framing of ``fill.sock``: a 4-byte big-endian length and a JSON object. No payload bytes."""

import json
import struct

PROTOCOL_VERSION = 1
MAX_MESSAGE = 4 * 1024 * 1024
"""Bytes of one message; the longest legitimate ones are lists of ranges."""

PRIORITIES = ("client", "mount", "prefetch", "warm", "background")
"""Who waits, most urgent first."""

Message = dict[str, object]


class WireError(Exception):
    """A peer that does not speak the protocol; the connection is closed with this reason."""


def encode(message: Message) -> bytes:
    """One message with its length in front."""
    payload = json.dumps(message, separators=(",", ":")).encode("utf-8")
    return struct.pack(">I", len(payload)) + payload


class Decoder:
    """Bytes in, messages out; sans I/O."""

    def __init__(self) -> None:
        """Start with nothing buffered."""
        self._buffer = bytearray()

    def feed(self, received: bytes) -> list[Message]:
        """The messages that are complete now. Raises :class:`WireError`."""
        self._buffer += received
        messages: list[Message] = []
        start = 0
        while len(self._buffer) - start >= 4:
            (length,) = struct.unpack_from(">I", self._buffer, start)
            if length > MAX_MESSAGE:
                raise WireError(f"a message of {length} bytes; at most {MAX_MESSAGE} are allowed")
            if len(self._buffer) - start - 4 < length:
                break
            payload = bytes(self._buffer[start + 4 : start + 4 + length])
            start += 4 + length
            try:
                message = json.loads(payload)
            except (ValueError, RecursionError) as error:
                raise WireError(f"not JSON: {error}") from error
            if not isinstance(message, dict):
                raise WireError("a message must be a JSON object")
            messages.append(message)
        del self._buffer[:start]
        return messages
