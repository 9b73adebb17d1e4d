"""What a daemon and its supervisor say to each other: JSON objects on a SOCK_SEQPACKET pair.

=============  =====================================  ========================================
from           message                                means
=============  =====================================  ========================================
supervisor     ``{"init": HEX}``                      the saved FUSE_INIT request
daemon         ``{"type": "ready", "answer": HEX}``   libfuse's answer; all else is prepared
supervisor     ``{"type": "go"}``                     the daemon is the one reader now
daemon         ``{"type": "serving"}``                requests are read
=============  =====================================  ========================================

The end of the supervisor is no message: the daemon goes on serving. It imports little.
"""

import json
import socket

MAX_MESSAGE = 65536
"""Bytes of one message."""

FUSE_DESCRIPTOR = 3
"""Number under which a daemon finds ``/dev/fuse`` when it starts."""

CHANNEL_DESCRIPTOR = 4
"""Number under which it finds its end of the pair."""


def send(channel: socket.socket, message: dict[str, object]) -> None:
    """Send one message. Raises OSError."""
    channel.send(json.dumps(message).encode())


def parse(received: bytes) -> dict[str, object]:
    """A message that has been received. Raises ValueError, EOFError when the other end has gone."""
    if not received:
        raise EOFError
    message = json.loads(received)
    if not isinstance(message, dict):
        raise ValueError("a message must be a JSON object")
    return message
