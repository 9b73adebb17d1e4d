"""Directories as ordinary layers: tars in the order of names, and gzip of them."""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from isal import isal_zlib

from tests.parts.images import OCI_LAYER

USUAL, FAST = 6, 1
"""Levels: as builders compress; for what hardly shrinks (isal's, about five times as fast)."""
GZIP_BITS = 31
"""zlib's window bits for a gzip header."""
_FASTEST_OF_ZLIB = 4
_PIECE = 1 << 20
_TIME = 1_700_000_000


@dataclass(frozen=True, slots=True)
class TarLayer:
    """A layer as a file; ``size`` of the blob, ``tar_size`` of what is in it, in bytes."""

    file: Path
    digest: str
    diff_id: str
    size: int
    tar_size: int
    media_type: str
    annotations: Mapping[str, str] = field(default_factory=dict)

    def descriptor(self) -> dict[str, object]:
        """As it is written in a manifest."""
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
            "annotations": dict(self.annotations),
        }


def write_tar(directory: Path, below: str, file: Path) -> None:
    """A tar of a directory's directories and regular files as ``below/…``, in order of names."""
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as archive:
        parents = below.split("/") if below else []
        for depth in range(1, len(parents) + 1):
            archive.addfile(_directory("/".join(parents[:depth])))
        for path in _walk(directory):
            name = str(Path(below) / path.relative_to(directory))
            if path.is_dir():
                archive.addfile(_directory(name))
                continue
            entry = archive.gettarinfo(path, name)
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            # What is checked against it (.pyc files) knows whole seconds.
            entry.mtime = int(entry.mtime)
            # pip and make leave no hard links, but a copy of ours may have some.
            entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(entry, content)


def gzipped(tar: Path, file: Path, level: int = USUAL) -> TarLayer:
    """An ordinary layer: one gzip member."""
    packing = codec(level).compressobj(level, zlib.DEFLATED, GZIP_BITS)
    with tar.open("rb") as given, Written(file) as blob, ThreadPoolExecutor(1) as thread:
        plain = hashlib.sha256()
        while piece := given.read(_PIECE):
            hashing = thread.submit(plain.update, piece)
            blob.add(packing.compress(piece))
            hashing.result()
        blob.add(packing.flush())
    return TarLayer(
        file,
        blob.digest,
        f"sha256:{plain.hexdigest()}",
        blob.size,
        tar.stat().st_size,
        f"{OCI_LAYER}+gzip",
    )


def codec(level: int) -> ModuleType:
    """``zlib``, or what has its functions."""
    return zlib if level >= _FASTEST_OF_ZLIB else isal_zlib


class Written:
    """A file in the making that knows its digest."""

    def __init__(self, file: Path) -> None:
        self._output = file.open("wb")
        self._sha256 = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"

    def add(self, content: bytes) -> None:
        self._sha256.update(content)
        self._output.write(content)
        self.size += len(content)

    def __enter__(self) -> "Written":
        return self

    def __exit__(self, *_: object) -> None:
        self._output.close()


def _directory(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, _TIME
    return entry


def _walk(directory: Path) -> Iterator[Path]:
    """Everything below, directories before what is in them, in order of names."""
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield path
            yield from _walk(path)
        elif entry.is_file(follow_symlinks=False):
            yield path
