"""A client in a thread that compares each byte with the true one as it comes, and keeps none."""

import re
import socket
import threading
import time
from typing import Self

from tests.doubles.rules import Rule
from tests.faults.reading import End
from tests.faults.setting import REPOSITORY, Setting, new_content, scripted

PATIENCE = 60.0
_BUFFER = 1024 * 1024
_MOST_HEAD = 64 * 1024


class Stream:
    """One GET of a blob, asked at once; it can be watched, held up and left while it runs."""

    def __init__(
        self,
        port: int,
        host: str,
        digest: str,
        content: bytes,
        bounds: str | None = None,
        *,
        repository: str = REPOSITORY,
        receive_buffer: int | None = None,
    ) -> None:
        """``content`` is the whole blob; ``bounds`` as in ``Range: bytes=BOUNDS``.

        ``receive_buffer``: bytes that the kernel holds for a client that does not read.
        """
        self.status = 0
        self.fields: dict[str, str] = {}
        self.received = 0
        self.wrong_at: int | None = None
        """Offset in the blob of the piece that was not as it should be."""
        self.end = End.SHORT
        self.head_after = self.seconds = 0.0
        self._content = content
        found = re.fullmatch(r"(\d+)-(\d*)", bounds or "0-")
        if found is None:
            raise ValueError(f"{bounds!r}: only ranges with a first byte")
        self._start = int(found[1])
        self._stop = min(int(found[2]) + 1, len(content)) if found[2] else len(content)
        self._going = threading.Event()
        self._going.set()
        self._left = self._stuck = False
        self._began = time.monotonic()
        self._connection = socket.socket()
        if receive_buffer is not None:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._connection.settimeout(PATIENCE)
        self._connection.connect(("127.0.0.1", port))
        lines = [
            f"GET /v2/{repository}/blobs/{digest}?ns={host} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
        ]
        if bounds is not None:
            lines.append(f"Range: bytes={bounds}")
        lines.append("Connection: close")
        self._connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    # --- what a test does to it ---

    def hold(self) -> None:
        """Stop reading."""
        self._going.clear()

    def go_on(self) -> None:
        """Read again."""
        self._going.set()

    def leave(self) -> None:
        """Close the connection where it stands."""
        self._left = True
        self._connection.shutdown(socket.SHUT_RDWR)
        self._going.set()
        self._thread.join(PATIENCE)

    def reach(self, count: int, patience: float = PATIENCE) -> Self:
        """Return when ``count`` bytes of the body have come. AssertionError when they do not."""
        deadline = time.monotonic() + patience
        while self.received < count:
            assert self._thread.is_alive(), f"ended before byte {count}: {self}"
            assert time.monotonic() < deadline, f"not at byte {count} in {patience} s: {self}"
            time.sleep(0.005)
        return self

    def finish(self, patience: float = PATIENCE) -> Self:
        """Read to whatever end there is. AssertionError when there is none in time."""
        self._going.set()
        self._thread.join(patience)
        assert not self._thread.is_alive(), f"no end after {patience} s: {self}"
        assert not self._stuck, f"nothing came for {PATIENCE} s: {self}"
        return self

    # --- what came of it ---

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    @property
    def complete(self) -> bool:
        """Whether a client must take this for all of what it asked for."""
        return self.status in (200, 206) and self.end is End.CLEAN

    def right(self) -> bool:
        """The invariant: the true bytes or an explicit error; whether all came."""
        assert self.wrong_at is None, f"wrong bytes: {self}"
        if self.complete:
            assert self.received == self._stop - self._start, f"not what was asked for: {self}"
            return True
        assert self.status >= 400 or self.end is not End.CLEAN, f"no error to be seen: {self}"
        return False

    def __repr__(self) -> str:
        wrong = "" if self.wrong_at is None else f", WRONG at {self.wrong_at}"
        return (
            f"Stream({self._start}-{self._stop}: {self.status}, {self.received} bytes, "
            f"{self.end.value}, {self.seconds:.1f} s{wrong})"
        )

    # --- its thread ---

    def _run(self) -> None:
        try:
            self._receive()
        except ConnectionError:
            self.end = End.RESET
        except TimeoutError:
            self._stuck = True
        except OSError:
            if not self._left:
                raise
        finally:
            if self._left:
                self.end = End.LEFT
            self.seconds = time.monotonic() - self._began
            self._connection.close()

    def _receive(self) -> None:
        begun = bytearray()
        while (head_end := begun.find(b"\r\n\r\n")) < 0:
            piece = self._connection.recv(_MOST_HEAD)
            if not piece:
                return
            begun += piece
        first, *lines = begun[:head_end].decode("latin-1").split("\r\n")
        self.head_after = time.monotonic() - self._began
        for line in lines:
            name, _, text = line.partition(":")
            self.fields[name.strip().lower()] = text.strip()
        self.status = int(first.split(" ")[1])
        length = int(self.fields["content-length"])
        self._take(memoryview(begun)[head_end + 4 :])
        buffer = memoryview(bytearray(_BUFFER))
        while self.received < length:
            self._going.wait()
            count = self._connection.recv_into(buffer)
            if not count:
                return
            self._take(buffer[:count])
        self.end = End.CLEAN if self.received == length else End.SHORT

    def _take(self, piece: memoryview) -> None:
        if self.status in (200, 206) and self.wrong_at is None:
            start = self._start if self.status == 206 else 0
            at = start + self.received
            if not self._content.startswith(piece, at):
                self.wrong_at = at
        self.received += len(piece)


class Cold:
    """A blob of a fresh upstream, of which nothing is cached, and clients of it."""

    def __init__(self, setting: Setting, size: int, *rules: Rule) -> None:
        self.setting = setting
        self.content = new_content(size)
        self.upstream, self.digest = scripted(setting, self.content, *rules)

    def client(
        self,
        bounds: str | None = None,
        *,
        repository: str = REPOSITORY,
        receive_buffer: int | None = None,
    ) -> Stream:
        """A client that asks at once."""
        return Stream(
            self.setting.mirror.port,
            self.upstream.host,
            self.digest,
            self.content,
            bounds,
            repository=repository,
            receive_buffer=receive_buffer,
        )

    def clients(self, count: int) -> list[Stream]:
        """Clients that ask for all of it."""
        return [self.client() for _ in range(count)]

    def pull(self) -> None:
        """A pull that gives the right bytes."""
        client = self.client().finish()
        assert client.right(), client

    def pull_from_cache(self) -> None:
        """A pull that gives the right bytes, and none of them comes from the upstream."""
        before = len(self.upstream.blob_requests())
        self.pull()
        assert self.upstream.blob_requests()[before:] == []
