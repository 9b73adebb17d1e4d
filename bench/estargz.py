"""eStargz of a tar, written as a stream: each chunk is a gzip member that can be read by itself.

"Stargz Archive Format" (estargz.md of stargz-snapshotter): the tar without its end, headers in
members between the chunks, then the TOC and a footer. Nothing is marked for prefetch.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from bench.tars import GZIP_BITS, USUAL, TarLayer, Written, codec
from tests.content.estargz.writer import INDEX, NO_PREFETCH, TOC_DIGEST, gzip_footer
from tests.parts.images import OCI_LAYER

CHUNK = 4 << 20
"""As stargz-snapshotter writes."""
_THREADS = 2
_MARK = b"\x0f"


def estargz(tar: Path, file: Path, level: int = USUAL) -> TarLayer:
    """The same files as eStargz ("Stargz Archive Format", estargz.md)."""
    writing = _EStargz(level)
    with tar.open("rb") as given, Written(file) as blob:
        toc, plain = writing.write(given, blob)
    annotations = {TOC_DIGEST: f"sha256:{hashlib.sha256(toc).hexdigest()}"}
    return TarLayer(
        file,
        blob.digest,
        f"sha256:{plain}",
        blob.size,
        writing.tar_size,
        f"{OCI_LAYER}+gzip",
        annotations,
    )


@dataclass(slots=True)
class _Member:
    """A gzip member to be: its bytes, and the TOC entries that point at it."""

    content: bytes
    entries: list[dict[str, object]] = field(default_factory=list)


class _EStargz:
    def __init__(self, level: int) -> None:
        self._level = level
        self._plain = hashlib.sha256()
        self.tar_size = 0

    def write(self, tar: BinaryIO, blob: Written) -> tuple[bytes, str]:
        """Members, TOC and footer; the TOC and the hexadecimal diff ID."""
        toc: list[dict[str, object]] = []
        with ThreadPoolExecutor(_THREADS) as threads:
            for batch in _batches(self._members(tar, toc)):
                packed = threads.map(lambda member: self._pack(member.content), batch)
                for member, content in zip(batch, packed, strict=True):
                    self._note(member.content)
                    for entry in member.entries:
                        entry["offset"] = blob.size
                    blob.add(content)
        encoded = json.dumps({"version": 1, "entries": toc}, indent="\t").encode()
        index = tarfile.TarInfo(INDEX)
        index.size = len(encoded)
        end = bytes(-len(encoded) % 512 + 1024)
        content = index.tobuf(tarfile.USTAR_FORMAT) + encoded + end
        offset = blob.size
        self._note(content)
        blob.add(self._pack(content))
        blob.add(gzip_footer(offset))
        return encoded, self._plain.hexdigest()

    def _note(self, content: bytes) -> None:
        self._plain.update(content)
        self.tar_size += len(content)

    def _pack(self, content: bytes) -> bytes:
        packed: bytes = codec(self._level).compress(content, self._level, GZIP_BITS)
        return packed

    def _members(self, tar: BinaryIO, toc: list[dict[str, object]]) -> Iterator[_Member]:
        """The tar without its end, cut before and behind each chunk; fills the TOC."""
        mark = tarfile.TarInfo(NO_PREFETCH.decode())
        mark.size = 1
        toc.append(_entry(mark) | {"chunkDigest": _sha256(_MARK), "digest": _sha256(_MARK)})
        yield _Member(mark.tobuf(tarfile.GNU_FORMAT))
        yield _Member(_MARK, [toc[-1]])
        framing, position = bytearray(511), 0
        with tarfile.open(fileobj=tar, mode="r:") as archive:
            for header in archive:
                framing += _read(tar, position, header.offset_data)
                position = header.offset_data + header.size
                entry = _entry(header)
                toc.append(entry)
                if not header.size:
                    continue
                yield _Member(bytes(framing))
                framing.clear()
                whole = hashlib.sha256()
                for start in range(0, header.size, CHUNK):
                    stop = min(start + CHUNK, header.size)
                    chunk = _read(tar, header.offset_data + start, header.offset_data + stop)
                    whole.update(chunk)
                    place: dict[str, object] = {"chunkDigest": _sha256(chunk)}
                    if start:
                        toc.append({"name": entry["name"], "type": "chunk", "chunkOffset": start})
                    if header.size > CHUNK:
                        place["chunkSize"] = stop - start
                    toc[-1].update(place)
                    yield _Member(chunk, [toc[-1]])
                entry["digest"] = f"sha256:{whole.hexdigest()}"
                framing += bytes(-header.size % 512)
                position += -header.size % 512
        if framing:
            yield _Member(bytes(framing))


def _batches(members: Iterator[_Member]) -> Iterator[list[_Member]]:
    """Members of some mebibytes together, for threads to share."""
    batch: list[_Member] = []
    size = 0
    for member in members:
        batch.append(member)
        size += len(member.content)
        if size >= 4 * CHUNK:
            yield batch
            batch, size = [], 0
    yield batch


def _entry(header: tarfile.TarInfo) -> dict[str, object]:
    entry: dict[str, object] = {"name": header.name, "type": "reg", "mode": header.mode}
    if header.isdir():
        entry.update(name=f"{header.name}/", type="dir")
    elif header.size:
        entry["size"] = header.size
    if header.mtime:
        moment = datetime.fromtimestamp(int(header.mtime), UTC)
        entry["modtime"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return entry


def _read(file: BinaryIO, start: int, stop: int) -> bytes:
    return os.pread(file.fileno(), stop - start, start)


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
