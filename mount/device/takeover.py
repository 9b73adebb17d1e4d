"""How a new daemon goes on with a FUSE connection that another one has begun.

libfuse answers every request with an error until it has seen FUSE_INIT, and the kernel sends that
once, when the connection is new. So each daemon is shown the saved request through a socket pair
whose other end it takes for ``/dev/fuse``; once it has answered, that end is replaced by the real
one (dup2). pyfuse3 waits for its descriptor through ``trio.lowlevel.wait_readable``, which is
looked up at each call: that is where both moments can be seen. Messages: linux/fuse.h.
"""

import os
import socket
from collections.abc import Awaitable, Callable

import trio

_ANSWER_BYTES = 4096
"""Room for the answer to FUSE_INIT; it has 80 bytes."""


class Takeover:
    """Replaces the descriptor under pyfuse3, once it has answered FUSE_INIT."""

    def __init__(
        self,
        fuse_descriptor: int,
        init_request: bytes,
        agree: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """``agree`` is told the answer and returns when requests may be read from the kernel.

        ``fuse_descriptor`` must be blocking: pyfuse3 ends at EAGAIN.
        """
        self._fuse = fuse_descriptor
        self._agree = agree
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.send(init_request)
        self._theirs = theirs.detach()
        self._shown = False
        self._original = trio.lowlevel.wait_readable

    @property
    def mount_point(self) -> str:
        """What pyfuse3 is to be given as its mount point."""
        return f"/dev/fd/{self._theirs}"

    def begin(self) -> None:
        """Look on while pyfuse3 begins; ends by itself with the descriptor in its place."""
        trio.lowlevel.wait_readable = self._wait_readable  # type: ignore[assignment]

    async def _wait_readable(self, descriptor: int) -> None:
        if descriptor != self._theirs:
            await self._original(descriptor)
        elif not self._shown:
            self._shown = True  # the request is there already
        else:
            answer = self._ours.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT)
            await self._agree(answer)
            os.dup2(self._fuse, self._theirs, inheritable=False)
            self._ours.close()
            trio.lowlevel.wait_readable = self._original
            await self._original(descriptor)
