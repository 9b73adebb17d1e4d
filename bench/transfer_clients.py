"""Clients that bring one blob in ranges to a file: the ways in which the filler could work.

Each runs in a process of its own: ``python -m bench.transfer_clients NAME URL SIZE CONNECTIONS
FILE [CA_FILE]`` prints its seconds, its CPU seconds and its peak memory as JSON.
"""

import asyncio
import json
import os
import queue
import socket
import ssl
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.measure import MIB
from tests.parts.processes import peak_memory

RANGE = 32 * MIB
_BUFFER = MIB


@dataclass(frozen=True, slots=True)
class Task:
    """What to fetch, and where to: ``file`` exists and has the blob's size."""

    url: str
    size: int
    connections: int
    file: Path
    ca_file: Path | None

    def ranges(self) -> "queue.SimpleQueue[tuple[int, int]]":
        """Half-open ranges in order, for the connections to take."""
        waiting: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        for start in range(0, self.size, RANGE):
            waiting.put((start, min(start + RANGE, self.size)))
        return waiting


Following = Callable[[], tuple[int, int] | None]
"""Gives the next half-open range; None when there is none left."""


def in_threads(task: Task, connection: Callable[[Task, Following], None]) -> None:
    """Run ``connection`` in a thread for each; it calls for the next range until there is none."""
    waiting = task.ranges()
    failures: list[BaseException] = []

    def following() -> tuple[int, int] | None:
        try:
            return waiting.get_nowait()
        except queue.Empty:
            return None

    def work() -> None:
        try:
            connection(task, following)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(task.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class _Pieces:
    """Gathers what arrives into a mebibyte and writes that at its place."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = memoryview(bytearray(_BUFFER))
        self._filled = 0
        self.offset = 0

    def begin(self, offset: int) -> None:
        self.offset, self._filled = offset, 0

    def add(self, received: bytes) -> None:
        taken = 0
        while taken < len(received):
            count = min(_BUFFER - self._filled, len(received) - taken)
            self._buffer[self._filled : self._filled + count] = received[taken : taken + count]
            self._filled += count
            taken += count
            if self._filled == _BUFFER:
                self.flush()

    def flush(self) -> None:
        os.pwrite(self._descriptor, self._buffer[: self._filled], self.offset)
        self.offset += self._filled
        self._filled = 0


def curl_handles(task: Task) -> None:
    """A pycurl easy handle a thread."""
    in_threads(task, _curl_connection)


def _curl_connection(task: Task, following: Following) -> None:
    import pycurl

    handle = pycurl.Curl()
    with task.file.open("r+b") as file:
        pieces = _Pieces(file.fileno())
        handle.setopt(pycurl.URL, task.url)
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        handle.setopt(pycurl.BUFFERSIZE, 512 * 1024)
        handle.setopt(pycurl.WRITEFUNCTION, pieces.add)
        handle.setopt(pycurl.FAILONERROR, 1)
        if task.ca_file is not None:
            handle.setopt(pycurl.CAINFO, str(task.ca_file))
        while (taken := following()) is not None:
            pieces.begin(taken[0])
            handle.setopt(pycurl.RANGE, f"{taken[0]}-{taken[1] - 1}")
            handle.perform()
            pieces.flush()
            if pieces.offset != taken[1]:
                raise ValueError(f"a range ended at {pieces.offset}, not {taken[1]}")
    handle.close()


def sockets(task: Task) -> None:
    """A blocking socket a thread, received into the buffer that is written."""
    in_threads(task, _socket_connection)


def _socket_connection(task: Task, following: Following) -> None:
    parts = urllib.parse.urlsplit(task.url)
    connection: socket.socket = socket.create_connection((parts.hostname, parts.port))
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=task.ca_file)
        connection = context.wrap_socket(connection, server_hostname=parts.hostname)
    buffer = memoryview(bytearray(_BUFFER))
    with connection, task.file.open("r+b") as file:
        while (taken := following()) is not None:
            wanted = f"Range: bytes={taken[0]}-{taken[1] - 1}"
            connection.sendall(
                f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{wanted}\r\n\r\n".encode()
            )
            rest = _past_head(connection)
            position = taken[0] + os.pwrite(file.fileno(), rest, taken[0])
            while position < taken[1]:
                filled = 0
                room = min(_BUFFER, taken[1] - position)
                while filled < room:
                    count = connection.recv_into(buffer[filled:room])
                    if not count:
                        raise ValueError(f"the body ended at {position + filled}")
                    filled += count
                position += os.pwrite(file.fileno(), buffer[:filled], position)


def _past_head(connection: socket.socket) -> bytes:
    """Read the head; what came of the body with it. ValueError when it is no 206."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(4096)
        if not piece:
            raise ValueError("no answer")
        received += piece
    if not received.startswith(b"HTTP/1.1 206 "):
        raise ValueError(received.splitlines()[0].decode("latin-1"))
    return received.partition(b"\r\n\r\n")[2]


def httpx_async(task: Task) -> None:
    """httpx in one event loop."""
    asyncio.run(_httpx(task))


async def _httpx(task: Task) -> None:
    import httpx

    verify: ssl.SSLContext | bool = True
    if task.ca_file is not None:
        verify = ssl.create_default_context(cafile=task.ca_file)
    waiting = task.ranges()
    descriptor = os.open(task.file, os.O_RDWR)

    async def connection(client: httpx.AsyncClient) -> None:
        pieces = _Pieces(descriptor)
        while not waiting.empty():
            start, stop = waiting.get_nowait()
            pieces.begin(start)
            fields = {"Range": f"bytes={start}-{stop - 1}"}
            async with client.stream("GET", task.url, headers=fields) as answer:
                answer.raise_for_status()
                async for piece in answer.aiter_raw(_BUFFER):
                    pieces.add(piece)
            pieces.flush()
            if pieces.offset != stop:
                raise ValueError(f"a range ended at {pieces.offset}, not {stop}")

    limits = httpx.Limits(max_connections=task.connections)
    async with httpx.AsyncClient(verify=verify, trust_env=False, limits=limits) as client:
        await asyncio.gather(*(connection(client) for _ in range(task.connections)))
    os.close(descriptor)


def filler_source(task: Task) -> None:
    """What the filler does."""
    from bench import transfer_filler

    transfer_filler.filler_source(task)


CLIENTS: dict[str, Callable[[Task], None]] = {
    "the filler's source": filler_source,
    "pycurl, a handle a thread": curl_handles,
    "raw sockets, threads": sockets,
    "httpx async": httpx_async,
}


def main(arguments: list[str]) -> None:
    """Fetch once and print what it took."""
    name, url, size, connections, file, *ca_file = arguments
    trusted = Path(ca_file[0]) if ca_file else None
    task = Task(url, int(size), int(connections), Path(file), trusted)
    cpu, begun = time.process_time(), time.monotonic()
    CLIENTS[name](task)
    figures = {
        "seconds": time.monotonic() - begun,
        "cpu": time.process_time() - cpu,
        "peak": peak_memory(os.getpid()),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
