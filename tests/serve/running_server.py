"""A real uvicorn server in a thread, a plain application that sends files, and raw clients."""

import asyncio
import hashlib
import os
import random
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import uvicorn

from proxy.serve.limits import Limits
from proxy.serve.sendfile import ResponseAborted, SendfileProtocol
from tests.doubles.certificates import ServerCertificate

MIB = 1024 * 1024
PATIENCE = 10.0

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


def sparse_file(path: Path, size: int, seed: int = 1) -> Path:
    """A file of ``size`` bytes: 64 KiB of noise in each MiB, holes between."""
    noise = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size - MIB + 1, MIB):
            file.seek(offset + noise.randrange(MIB // 2))
            file.write(noise.randbytes(64 * 1024))
        file.truncate(size)
    return path


def digest_of(path: Path, start: int = 0, stop: int | None = None) -> str:
    """sha256 of a range of a file, as hex."""
    seen = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        left = (path.stat().st_size if stop is None else stop) - start
        while left and (piece := file.read(min(left, MIB))):
            seen.update(piece)
            left -= len(piece)
    return seen.hexdigest()


class FileApplication:
    """Answers from one file; what to do stands in the path, its numbers in the query."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDONLY)
        self.size = path.stat().st_size
        self.running = 0
        self.forget()

    def forget(self) -> None:
        """Begin the record of what was done anew."""
        assert self.running == 0
        self.raised: list[BaseException] = []
        self.most_running = 0
        self.served: list[str] = []
        self.released = threading.Event()

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """The ASGI application."""
        query = dict(urllib.parse.parse_qsl(scope["query_string"].decode()))
        numbers = {name: int(value) for name, value in query.items()}
        answer = getattr(self, f"answer_{scope['path'].strip('/')}")
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await answer(send, receive, **numbers)
            self.served.append(f"{scope['path']}?{scope['query_string'].decode()}")
        except BaseException as error:
            self.raised.append(error)
            raise
        finally:
            self.running -= 1

    async def start(self, send: Send, length: int | None, status: int = 200) -> None:
        fields = [] if length is None else [(b"content-length", b"%d" % length)]
        await send({"type": "http.response.start", "status": status, "headers": fields})

    async def part(self, send: Send, offset: int, count: int, more_body: bool = False) -> None:
        await send(
            {
                "type": "http.response.zerocopysend",
                "file": self.file,
                "offset": offset,
                "count": count,
                "more_body": more_body,
            }
        )

    async def answer_file(
        self, send: Send, _: Receive, offset: int = 0, count: int | None = None
    ) -> None:
        count = self.size - offset if count is None else count
        await self.start(send, count, 206)
        await self.part(send, offset, count)

    async def answer_steps(self, send: Send, _: Receive, step: int) -> None:
        await self.start(send, self.size)
        for offset in range(0, self.size, step):
            count = min(step, self.size - offset)
            await self.part(send, offset, count, offset + count < self.size)

    async def answer_mixed(self, send: Send, _: Receive, text: int, chunked: int = 0) -> None:
        """``text`` bytes, 1 MiB of file, ``text`` bytes, 300 bytes of file."""
        total = 2 * text + MIB + 300
        await self.start(send, None if chunked else total)
        for letter, offset, count in ((b"a", 5, MIB), (b"b", 7 * MIB, 300)):
            body = {"type": "http.response.body", "body": letter * text, "more_body": True}
            await send(body)
            await self.part(send, offset, count, more_body=True)
        await send({"type": "http.response.body", "body": b""})

    async def answer_position(self, send: Send, _: Receive) -> None:
        """An own descriptor without offset and count, twice."""
        with self.path.open("rb") as file:
            os.lseek(file.fileno(), self.size - 3000, os.SEEK_SET)
            await self.start(send, 3000)
            message = {"type": "http.response.zerocopysend", "file": file}
            await send({**message, "count": 1000, "more_body": True})
            await send(message)

    async def answer_path(self, send: Send, _: Receive) -> None:
        await self.start(send, self.size)
        await send({"type": "http.response.pathsend", "path": str(self.path)})

    async def answer_beyond(self, send: Send, _: Receive) -> None:
        """Promises 1000 bytes more than the file has."""
        await self.start(send, 2000)
        await self.part(send, self.size - 1000, 2000)

    async def answer_surplus(self, send: Send, _: Receive) -> None:
        await self.start(send, 100)
        await self.part(send, 0, 101)

    async def answer_deficit(self, send: Send, _: Receive) -> None:
        await self.start(send, 100)
        await self.part(send, 0, 99)

    async def answer_abort(self, send: Send, _: Receive) -> None:
        await self.start(send, 2 * MIB)
        await self.part(send, 0, MIB, more_body=True)
        raise ResponseAborted("the digest is another")

    async def answer_body(self, send: Send, receive: Receive) -> None:
        """The request's body, back."""
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        await self.start(send, len(body))
        await send({"type": "http.response.body", "body": body})

    async def answer_text(self, send: Send, _: Receive, count: int) -> None:
        """An ordinary body of ``count`` bytes in pieces of 1 MiB."""
        await self.start(send, count)
        for offset in range(0, count, MIB):
            size = min(MIB, count - offset)
            more_body = offset + size < count
            message = {"type": "http.response.body", "body": bytes(size), "more_body": more_body}
            await send(message)

    async def answer_later(self, send: Send, _: Receive) -> None:
        """Headers at once; the body when ``released`` is set."""
        await self.start(send, 1000)
        await asyncio.to_thread(self.released.wait, PATIENCE)
        await self.part(send, 0, 1000)

    async def answer_disconnect(self, _: Send, receive: Receive) -> None:
        """Nothing, until the client has gone."""
        while (await receive())["type"] != "http.disconnect":
            pass


class RunningServer:
    """A uvicorn server in a thread of this process."""

    def __init__(
        self,
        application: Any,
        limits: Limits | None = None,
        certificate: ServerCertificate | None = None,
        **settings: Any,
    ) -> None:
        self.protocol = type("Protocol", (SendfileProtocol,), {"limits": limits or Limits()})
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        if certificate is not None:
            settings["ssl_certfile"] = str(certificate.certificate)
            settings["ssl_keyfile"] = str(certificate.key)
        config = uvicorn.Config(
            application,
            http=self.protocol,
            loop="uvloop",
            ws="none",
            log_config=None,
            **{"lifespan": "off", **settings},
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self._listener]}, name="server"
        )

    def __enter__(self) -> Self:
        self.thread.start()
        wait_until(lambda: self.server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGTERM's way: no new connections, responses under way may end."""
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    def cpu_seconds(self) -> float:
        """What the event loop's thread has used of the processor."""
        assert self.thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self.thread.ident))

    @property
    def open_connections(self) -> int:
        """Connections that the server has."""
        return len(self.server.server_state.connections)

    def client(self, receive_buffer: int | None = None, ca_file: Path | None = None) -> "Client":
        """A new connection; ``receive_buffer`` bytes of kernel buffer make a reader slow."""
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(PATIENCE)
        connection.connect(self.address)
        if ca_file is not None:
            context = ssl.create_default_context(cafile=str(ca_file))
            connection = context.wrap_socket(connection, server_hostname="127.0.0.1")
        return Client(connection)


class Response:
    """A response's status and header fields (names in lower case); its body may follow."""

    def __init__(self, status: int, fields: dict[str, str]) -> None:
        self.status = status
        self.fields = fields
        self.body = b""


class Client:
    """HTTP/1.1 over one socket, with nothing hidden."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._input = connection.makefile("rb")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self._input.close()
        self.socket.close()

    def send(self, payload: bytes) -> None:
        """Send raw bytes."""
        self.socket.sendall(payload)

    def ask(self, target: str, method: str = "GET", *fields: str) -> None:
        """Send a request's head."""
        lines = [f"{method} {target} HTTP/1.1", "Host: mirror", *fields, "", ""]
        self.send("\r\n".join(lines).encode())

    def head(self) -> Response:
        """Read a response's head; EOFError when the connection has ended."""
        status_line = self._input.readline()
        if not status_line:
            raise EOFError
        fields = {}
        while line := self._input.readline().strip():
            name, _, value = line.decode().partition(":")
            fields[name.lower()] = value.strip()
        return Response(int(status_line.split()[1]), fields)

    def response(self, body: bool = True) -> Response:
        """Read a whole response."""
        response = self.head()
        if not body:
            return response
        if response.fields.get("transfer-encoding") == "chunked":
            while size := int(self._input.readline(), 16):
                response.body += self.exactly(size)
                assert self._input.readline() == b"\r\n"
            assert self._input.readline() == b"\r\n"
        else:
            response.body = self.exactly(int(response.fields["content-length"]))
        return response

    def exactly(self, count: int) -> bytes:
        """``count`` bytes; fewer raise EOFError."""
        body = self._input.read(count)
        if len(body) != count:
            raise EOFError(f"{len(body)} bytes of {count}")
        return body

    def receive(self) -> bytes:
        """What has come, at most 1 MiB; empty at the end of the connection."""
        return self._input.read1(MIB)

    def digest(self) -> str:
        """Read a whole response and return the sha256 of its body, which is not kept."""
        left = int(self.head().fields["content-length"])
        seen = hashlib.sha256()
        while left:
            piece = self._input.read1(min(left, MIB))
            if not piece:
                raise EOFError(f"{left} bytes are missing")
            seen.update(piece)
            left -= len(piece)
        return seen.hexdigest()

    def get(self, target: str) -> Response:
        """Ask, and read the whole response."""
        self.ask(target)
        return self.response()

    def ended(self) -> bool:
        """Whether the server closes or resets the connection before sending anything more."""
        try:
            return self._input.read(1) == b""
        except ConnectionError:
            return True


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Poll; AssertionError when it does not become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def open_descriptors() -> int:
    """Descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def resident_memory() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@contextmanager
def descriptors_return() -> Iterator[None]:
    """As many descriptors after as before, give or take nothing."""
    before = open_descriptors()
    yield
    wait_until(lambda: open_descriptors() <= before)
