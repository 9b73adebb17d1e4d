"""Layers made for tests: tars of a given size, compressed or not, written as a stream."""

import enum
import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.parts.pattern import PIECE, Pattern

_TIME = 1_700_000_000
_NOISE = 4096
_LINE = b"%15d: a line of text as any other line of this file,\n"
_LINE_LENGTH = len(_LINE % 0)


class Content(enum.Enum):
    """What the big file of a layer holds."""

    RANDOM = "random"
    """A :class:`Pattern`: gzip does not shrink it."""
    TEXT = "text"
    """Numbered lines, which gzip shrinks about tenfold."""
    SPARSE = "sparse"
    """Zeros with 4 KiB of noise each mebibyte; the zeros are holes where the tar is plain."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer to be made: a tar of one file of ``size`` bytes and a few small entries."""

    size: int
    content: Content = Content.RANDOM
    compressed: bool = True
    """gzip, or a plain tar."""


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """A layer as a file: the digest of its bytes and of the tar in it."""

    digest: str
    diff_id: str
    size: int


def write_layer(file: Path, layer: Layer, seed: int) -> WrittenLayer:
    """Write ``layer`` to ``file``; ``seed`` makes names and bytes its own. Memory stays small."""
    with file.open("wb") as output:
        stored = _Digesting(_Sparing(output))
        if layer.compressed:
            with gzip.GzipFile("", "wb", 1, stored, mtime=0) as packed:
                plain = _Digesting(packed)
                _write_tar(plain, layer, seed)
        else:
            plain = stored
            _write_tar(plain, layer, seed)
    return WrittenLayer(stored.digest, plain.digest, file.stat().st_size)


class _Sink(Protocol):
    def write(self, payload: bytes, /) -> int: ...
    def flush(self) -> None: ...


class _Digesting:
    """Hands bytes on and knows their sha256."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self._sha256 = hashlib.sha256()

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"

    def write(self, payload: bytes) -> int:
        self._sha256.update(payload)
        return self._sink.write(payload)

    def flush(self) -> None:
        self._sink.flush()


class _Sparing:
    """Leaves holes where whole writes are zeros."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file

    def write(self, payload: bytes) -> int:
        if payload.count(0) < len(payload):
            return self._file.write(payload)
        self._file.seek(len(payload), os.SEEK_CUR)
        self._file.truncate()
        return len(payload)

    def flush(self) -> None:
        self._file.flush()


def _write_tar(sink: _Sink, layer: Layer, seed: int) -> None:
    # By hand where tarfile would want a file object for the contents.
    def add(entry: tarfile.TarInfo, pieces: Iterable[bytes] = ()) -> None:
        sink.write(entry.tobuf(tarfile.GNU_FORMAT))
        for piece in pieces:
            sink.write(piece)
        sink.write(bytes(-entry.size % tarfile.BLOCKSIZE))

    name = f"content/{seed}"
    small = f"layer {seed}\n".encode()
    add(_entry("content", tarfile.DIRTYPE, 0o755))
    add(_entry(name, tarfile.DIRTYPE, 0o755))
    add(_entry(f"{name}/big", size=layer.size), _contents(layer, seed))
    add(_entry(f"{name}/small", size=len(small)), [small])
    add(_entry(f"{name}/program", mode=0o755, owner=1000))
    add(_entry(f"{name}/symbolic", tarfile.SYMTYPE, target="big"))
    add(_entry(f"{name}/hard", tarfile.LNKTYPE, target=f"{name}/small"))
    sink.write(bytes(2 * tarfile.BLOCKSIZE))


def _contents(layer: Layer, seed: int) -> Iterator[bytes]:
    """The big file's bytes."""
    pattern = Pattern(layer.size, seed)
    if layer.content is Content.RANDOM:
        yield from pattern.pieces()
        return
    for start in range(0, layer.size, PIECE):
        size = min(PIECE, layer.size - start)
        if layer.content is Content.SPARSE:
            yield pattern.read(start, min(size, _NOISE))
            yield bytes(max(size - _NOISE, 0))
        else:
            first = start // _LINE_LENGTH
            lines = (_LINE % (first + line) for line in range(-(-size // _LINE_LENGTH)))
            yield b"".join(lines)[:size]


def _entry(
    name: str,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    *,
    size: int = 0,
    owner: int = 0,
    target: str = "",
) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.mode = mode
    entry.size = size
    entry.uid = entry.gid = owner
    entry.mtime = _TIME
    entry.linkname = target
    return entry
