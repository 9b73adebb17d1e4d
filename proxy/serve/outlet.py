"""One connection's way out: buffered writes and the kernel's sendfile, in the order given.

uvloop refuses ``add_writer`` on its own descriptors, so the outlet has a duplicate of the socket.
What has to hold:

* A duplicate keeps the connection open: it is closed in :meth:`Outlet.connection_lost`, or, when
  a thread is just sending from it, by that thread's end. Its writer is removed before.
* The transport's buffer is empty whenever sendfile runs: :meth:`Outlet.drained` waits for that.
* A thread that may outlive the call has a duplicate of the file too: the caller may close its own.
"""

import asyncio
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.utils import is_ssl

from proxy.serve.page_cache import disk_threads, resident_bytes

TURN_BYTES = 2 * 1024 * 1024
"""What one connection may send before the others get their turn: about 0.5 ms."""

PIECE_BYTES = 256 * 1024
"""What is read at once where bytes have to pass Python (TLS): about 0.2 ms with encryption."""

_CORK_BYTES = 256 * 1024
"""From here on full segments only: measured, a third more MB/s and a quarter less CPU a GB."""

_HELD_BYTES = 16 * 1024  # a response's head or a part's; more is not worth joining
_CLIENT_ERRORS = frozenset(
    {
        errno.EPIPE,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
    }
)
_BYTES_ACKED = 120  # offset of tcpi_bytes_acked (u64) in struct tcp_info, linux/tcp.h
_TCP_INFO_BYTES = _BYTES_ACKED + 8
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds

_T = TypeVar("_T")


class ClientDisconnected(OSError):
    """The client has gone, or took nothing for too long; nothing more can be sent."""


class FileTooShort(Exception):
    """A file ended before the bytes that were promised of it; the connection was reset."""

    def __init__(self, offset: int, stop: int) -> None:
        super().__init__(f"the file ends at byte {offset}; {stop} bytes of it were promised")
        self.offset = offset
        self.stop = stop


class Outlet:
    """What a response is written to; stands in for the transport in uvicorn's request cycle.

    Small writes are held until the loop's next turn, so that a head and the file after it leave
    in the same packets. :attr:`bytes_sent` counts what files gave to the kernel (with TLS: to the
    transport) on this connection.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        flow: FlowControl,
        loop: asyncio.AbstractEventLoop,
        stall_seconds: float,
    ) -> None:
        self.bytes_sent = 0
        self.lost = False
        self._transport = transport
        self._flow = flow
        self._loop = loop
        self._encrypted = is_ssl(transport)
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._flush_scheduled = False
        self._turn = TURN_BYTES
        self._sending = False
        self._failed = False
        self._aborted = False
        self._socket: socket.socket | None = None
        self._corked = False
        self._writer_added = False
        self._writable: asyncio.Future[None] | None = None
        self._threads = 0
        self._stall_seconds = stall_seconds
        self._waits = 0
        self._stall_timer: asyncio.TimerHandle | None = None
        self._seen = (0, 0, 0)
        self._seen_at = 0.0
        if not self._encrypted:
            # Then "not paused" says that the transport's buffer is empty.
            transport.set_write_buffer_limits(0)

    # What uvicorn's request cycle calls on its transport.

    def write(self, payload: bytes) -> None:
        """Write ``payload`` behind everything before; small ones at the loop's next turn."""
        if not payload:
            return
        self._held.append(payload)
        self._held_bytes += len(payload)
        if self._held_bytes > _HELD_BYTES:
            self.flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_now)

    def close(self) -> None:
        """Close the connection when everything written has left, or the client stalls."""
        self.flush()
        if not self._transport.is_closing():
            self._transport.close()
        if not self.lost and self._transport.get_write_buffer_size():
            self._watch()

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self.lost or self._transport.is_closing()

    # What our cycle and protocol call.

    def flush(self) -> None:
        """Hand what is held to the transport."""
        if self._held:
            payload = b"".join(self._held)
            self._drop_held()
            if not self.is_closing():
                self._transport.write(payload)

    def abort(self) -> None:
        """Reset the connection: the client cannot take what it has for the whole."""
        if self.lost or self._aborted:
            return
        self._aborted = True
        # With TLS the connection can be gone before its protocol is told.
        connection = self._transport.get_extra_info("socket")
        if connection is not None:
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        self._transport.abort()

    def ensure_open(self) -> None:
        """Raises :class:`ClientDisconnected` when nothing more can be written."""
        if self.is_closing():
            raise ClientDisconnected("the client has gone")

    async def drained(self) -> None:
        """Wait until the kernel has what the transport was given (with TLS: most of it).

        Raises :class:`ClientDisconnected` when that cannot happen any more.
        """
        while self._flow.write_paused and not self.lost:
            self._waits += 1
            self._watch()
            try:
                await self._flow.drain()
            finally:
                self._waits -= 1
        if self._failed:
            raise ClientDisconnected("the client has gone")

    async def send_file(self, file: int, offset: int, count: int) -> None:
        """Send ``count`` bytes from ``offset``; returns when the kernel has them all.

        Raises :class:`ClientDisconnected`, :class:`FileTooShort`, or OSError when the file cannot
        be read; the connection is reset then, as it is on cancellation.
        """
        if count <= 0:
            return
        if self._sending:
            raise RuntimeError("Two messages of one response are being sent at once.")
        self._sending = True
        try:
            self.ensure_open()
            if self._encrypted:
                await self._copy(file, offset, offset + count)
            else:
                await self._pass(file, offset, offset + count)
        except BaseException:
            # Nobody knows how much of it has left.
            self.abort()
            raise
        finally:
            self._sending = False
            self._remove_writer()

    def connection_lost(self, error: Exception | None) -> None:
        """The transport has ended; call it before uvicorn resumes the flow."""
        self.lost = True
        self._failed = error is not None or self._aborted or self._flow.write_paused
        self._drop_held()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._remove_writer()
        self._close_socket()

    # Sending.

    async def _pass(self, file: int, position: int, stop: int) -> None:
        await self.drained()
        self.ensure_open()
        if self._socket is None:
            self._socket = self._transport.get_extra_info("socket").dup()
        out = self._socket
        head = memoryview(b"".join(self._held))
        self._drop_held()
        self._cork(out, stop - position)
        while position < stop:
            await self._take_turn()
            try:
                if head:
                    head = head[out.send(head, socket.MSG_MORE) :]
                    continue
                count = min(stop - position, self._turn)
                if cached := resident_bytes(file, position, count):
                    sent = os.sendfile(out.fileno(), file, position, cached)
                else:
                    sent = await self._in_thread(
                        _send_from_disk, out.fileno(), os.dup(file), position, count
                    )
            except BlockingIOError:
                await self._wait_writable(out)
                continue
            except OSError as error:
                if error.errno in _CLIENT_ERRORS:
                    raise ClientDisconnected(error.errno, error.strerror) from error
                raise
            position = self._advance(position, sent, stop)
            self.ensure_open()
        self._uncork(out)

    def _cork(self, out: socket.socket, count: int) -> None:
        if count >= _CORK_BYTES and out.family != socket.AF_UNIX:
            out.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            self._corked = True

    def _uncork(self, out: socket.socket) -> None:
        if self._corked:
            out.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
            self._corked = False

    async def _copy(self, file: int, position: int, stop: int) -> None:
        self.flush()
        while position < stop:
            await self.drained()
            await self._take_turn()
            count = min(stop - position, PIECE_BYTES)
            if cached := resident_bytes(file, position, count):
                piece = os.pread(file, cached, position)
            else:
                piece = await self._in_thread(_read_from_disk, os.dup(file), position, count)
                self.ensure_open()
            self._transport.write(piece)
            position = self._advance(position, len(piece), stop)
        await self.drained()

    def _advance(self, position: int, sent: int, stop: int) -> int:
        if sent == 0:
            raise FileTooShort(position, stop)
        self.bytes_sent += sent
        self._turn -= sent
        return position + sent

    async def _take_turn(self) -> None:
        if self._turn <= 0:
            await asyncio.sleep(0)
            self._turn = TURN_BYTES
            self.ensure_open()

    async def _wait_writable(self, out: socket.socket) -> None:
        self._writable = self._loop.create_future()
        if not self._writer_added:
            self._loop.add_writer(out.fileno(), self._wake)
            self._writer_added = True
        self._waits += 1
        self._watch()
        try:
            await self._writable
        finally:
            self._waits -= 1
            self._writable = None
        self._turn = TURN_BYTES
        self.ensure_open()

    def _wake(self) -> None:
        if self._writable is None:
            # The sender waits for a disk: the loop would call this over and over.
            self._remove_writer()
        elif not self._writable.done():
            self._writable.set_result(None)

    async def _in_thread(self, work: Callable[..., _T], *arguments: int) -> _T:
        self._threads += 1
        job = self._loop.run_in_executor(disk_threads(), work, *arguments)
        job.add_done_callback(self._thread_ended)
        return await asyncio.shield(job)

    def _thread_ended(self, job: asyncio.Future[_T]) -> None:
        self._threads -= 1
        if not job.cancelled():
            job.exception()  # has been raised where somebody still waited
        if self.lost:
            self._close_socket()

    def _remove_writer(self) -> None:
        if self._writer_added and self._socket is not None:
            self._writer_added = False
            self._loop.remove_writer(self._socket.fileno())

    def _close_socket(self) -> None:
        if self._socket is not None and not self._threads:
            self._socket.close()
            self._socket = None

    def _flush_now(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def _drop_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    # Stalled clients.

    def _watch(self) -> None:
        if self._stall_timer is None and not self.lost:
            self._seen, self._seen_at = self._progress(), self._loop.time()
            self._arm()

    def _arm(self) -> None:
        self._stall_timer = self._loop.call_later(self._stall_seconds / 4, self._check_progress)

    def _check_progress(self) -> None:
        self._stall_timer = None
        if self.lost or not (self._waits or self._transport.get_write_buffer_size()):
            return
        progress, now = self._progress(), self._loop.time()
        if progress != self._seen:
            self._seen, self._seen_at = progress, now
        elif now - self._seen_at >= self._stall_seconds:
            self.abort()
            return
        self._arm()

    def _progress(self) -> tuple[int, int, int]:
        # A writable socket is no measure: the kernel says so only when a third of its megabytes
        # is free, which a slow reader takes minutes for.
        connection = self._transport.get_extra_info("socket")
        taken = 0 if connection is None else _taken_by_client(connection)
        return self.bytes_sent, self._transport.get_write_buffer_size(), taken


def _taken_by_client(connection: socket.socket) -> int:
    """A number that changes when the client's side takes bytes from the kernel."""
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        if len(information) == _TCP_INFO_BYTES:
            return int.from_bytes(information[_BYTES_ACKED:], "little")
    return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), "little")


def _send_from_disk(out: int, file: int, offset: int, count: int) -> int:
    try:
        return os.sendfile(out, file, offset, count)
    finally:
        os.close(file)


def _read_from_disk(file: int, offset: int, count: int) -> bytes:
    try:
        return os.pread(file, count, offset)
    finally:
        os.close(file)
