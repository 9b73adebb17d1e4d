"""Layers with a TOC, written in the ways of those programs that write them.

``build``: stargz-snapshotter's ``Build`` (ctr-remote, nerdctl, ko): the tar without its end.
``lossless``: its ``AppendTarLossLess`` (BuildKit): the tar as it is, the TOC after its end.
``storage``: containers/storage (podman, buildah): zstd, framing in frames of its own.
"""

import base64
import gzip
import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import zstandard

from tests.content.layer.archives import Member, member, write

STYLES = ("build", "lossless", "storage")
FOOTERS = ("estargz", "stargz", "zstd-40", "zstd-64")
LANDMARK = b".prefetch.landmark"
NO_PREFETCH = b".no.prefetch.landmark"
INDEX = "stargz.index.json"
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"

_SKIPPABLE = b"\x50\x2a\x4d\x18"
_TYPES = {
    tarfile.REGTYPE: "reg",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}

Members = dict[str, object]


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """A blob and what it was made of; ``tar`` is all that inflating it gives."""

    blob: bytes
    toc: bytes
    annotations: Mapping[str, str]
    tar: bytes
    compression: str


@dataclass(frozen=True, slots=True)
class Form:
    """How to write a layer; sizes in bytes."""

    style: str = "build"
    compression: str = "gzip"
    chunk_size: int = 4 << 20
    least_member: int = 0
    """Uncompressed bytes below which a member takes further chunks (ctr-remote's
    ``--estargz-min-chunk-size``)."""
    footer: str = "estargz"


def landmark(name: bytes = NO_PREFETCH) -> Member:
    return member(name, contents=b"\x0f", mode=0)


def write_layer(tar: bytes, form: Form = Form()) -> WrittenLayer:
    """A layer with the files of ``tar``; landmarks are those that are in it."""
    if form.style == "build":
        tar = tar[: _end_of(tar)]
    writing = _Writing(form)
    entries = writing.write(tar)
    toc = json.dumps({"version": 1, "entries": entries}, indent="\t").encode()
    if form.compression == "gzip":
        return writing.finish_gzip(tar, toc)
    return writing.finish_zstd(tar, toc)


def rewritten(layer: WrittenLayer, toc: bytes) -> WrittenLayer:
    """The layer with another TOC, under that one's digests; gzip only."""
    offset = int(layer.blob[-35:-19], 16)
    inflated_toc = write([member(INDEX.encode(), contents=layer.toc, mode=0)], tarfile.USTAR_FORMAT)
    tar = layer.tar[: len(layer.tar) - len(_trimmed(inflated_toc, layer.toc))]
    writing = _Writing(Form())
    writing.blob += layer.blob[:offset]
    return writing.finish_gzip(tar, toc)


def gzip_footer(offset: int, *, legacy: bool = False) -> bytes:
    extra = b"%016xSTARGZ" % offset
    if not legacy:
        extra = b"SG" + struct.pack("<H", len(extra)) + extra
    header = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H", len(extra))
    return header + extra + b"\x01\0\0\xff\xff" + bytes(8)


def zstd_footer(numbers: Sequence[int], magic: bytes) -> bytes:
    return _skippable(struct.pack(f"<{len(numbers)}Q", *numbers) + magic)


def compressed(content: bytes, compression: str) -> bytes:
    """One member."""
    if compression == "gzip":
        return gzip.compress(content, 6, mtime=0)
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


class _Writing:
    def __init__(self, form: Form) -> None:
        self.blob = bytearray()
        self._form = form
        self._member = bytearray()

    def write(self, tar: bytes) -> list[Members]:
        """The members of all files; their TOC entries."""
        entries: list[Members] = []
        position = 0
        with _archive(tar) as archive:
            for header in archive:
                # Python skips what a header says of a file without contents.
                size = header.size if header.isreg() else 0
                self._member += tar[position : header.offset_data]
                position = header.offset_data + size
                entries += self._file(header, tar[header.offset_data : position])
        self._member += tar[position:]
        self._end_member()
        return entries

    def finish_gzip(self, tar: bytes, toc: bytes) -> WrittenLayer:
        offset = len(self.blob)
        index = [member(INDEX.encode(), contents=toc, mode=0)]
        packed = _trimmed(write(index, tarfile.USTAR_FORMAT), toc)
        self.blob += compressed(packed, "gzip")
        self.blob += gzip_footer(offset, legacy=self._form.footer == "stargz")
        annotations = {TOC_DIGEST: _sha256(toc)}
        return WrittenLayer(bytes(self.blob), toc, annotations, tar + packed, "gzip")

    def finish_zstd(self, tar: bytes, toc: bytes) -> WrittenLayer:
        packed = compressed(toc, "zstd")
        numbers = [len(self.blob) + 8, len(packed), len(toc), 1]
        prefix = "io.containers.zstd-chunked."
        annotations = {TOC_DIGEST: _sha256(toc)} if self._form.style != "storage" else {}
        self.blob += _skippable(packed)
        if self._form.footer == "zstd-64":
            prefix = "io.github.containers.zstd-chunked."
            tar_split = compressed(b"{}", "zstd")
            position = [len(self.blob) + 8, len(tar_split), 2]
            annotations[prefix + "tarsplit-position"] = ":".join(map(str, position))
            self.blob += _skippable(tar_split)
            self.blob += zstd_footer(numbers + position, b"GNUlInUx")
        else:
            self.blob += zstd_footer(numbers, b"GnUlInUx")
        annotations[prefix + "manifest-checksum"] = _sha256(packed)
        annotations[prefix + "manifest-position"] = ":".join(map(str, numbers))
        return WrittenLayer(bytes(self.blob), toc, annotations, tar, "zstd")

    def _file(self, header: tarfile.TarInfo, contents: bytes) -> list[Members]:
        entry = _entry(header, self._form.style)
        if not contents:
            return [entry]
        entries: list[Members] = []
        size = self._form.chunk_size
        fresh = self._form.least_member == 0 or entry["name"] in (LANDMARK.decode(),)
        for start in range(0, len(contents), size):
            chunk = contents[start : start + size]
            if fresh or len(self._member) >= self._form.least_member or entries:
                self._end_member()
            place: Members = {"offset": len(self.blob)}
            if self._member:
                place["innerOffset"] = len(self._member)
            if start:
                place["chunkOffset"] = start
            several = len(contents) > size
            if len(chunk) == size or (several and self._form.style == "storage"):
                place["chunkSize"] = len(chunk)
            if several or self._form.style != "storage":
                place["chunkDigest"] = _sha256(chunk)
            first = {} if entries else entry
            entries.append({"name": entry["name"], "type": "chunk", **first, **place})
            self._member += chunk
        entries[0]["digest"] = _sha256(contents)
        if self._form.style == "storage":
            self._end_member()
            entries[0]["endOffset"] = len(self.blob)
        return entries

    def _end_member(self) -> None:
        if self._member:
            self.blob += compressed(bytes(self._member), self._form.compression)
            self._member.clear()


def _entry(header: tarfile.TarInfo, style: str) -> Members:
    # Python takes the slash off a directory's name.
    name = header.name + ("/" if header.isdir() else "")
    entry: Members = {"name": _go_text(name), "type": _TYPES[header.type]}
    if header.mode:
        entry["mode"] = header.mode
    if header.isreg() and header.size:
        entry["size"] = header.size
    if header.uid:
        entry["uid"] = header.uid
    if header.gid:
        entry["gid"] = header.gid
    if header.islnk() or header.issym():
        entry["linkName"] = _go_text(header.linkname)
    if header.isdev() and header.devmajor:
        entry["devMajor"] = header.devmajor
    if header.isdev() and header.devminor:
        entry["devMinor"] = header.devminor
    moment = _time(float(header.mtime), style)
    if moment:
        entry["modtime"] = moment
    prefix = "SCHILY.xattr."
    xattrs = {
        _go_text(key.removeprefix(prefix)): base64.b64encode(
            value.encode("utf-8", "surrogateescape")
        ).decode()
        for key, value in header.pax_headers.items()
        if key.startswith(prefix)
    }
    if xattrs:
        entry["xattrs"] = xattrs
    return entry


def _time(mtime: float, style: str) -> str:
    if style == "storage":
        moment = datetime.fromtimestamp(mtime, UTC)
        return moment.isoformat().replace("+00:00", "Z")
    if 0 <= mtime < 1:
        return ""
    return datetime.fromtimestamp(int(mtime + 0.5), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _go_text(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _archive(tar: bytes) -> tarfile.TarFile:
    # What has no bytes Python does not take for an archive.
    return tarfile.open(fileobj=io.BytesIO(tar or bytes(1024)), errors="surrogateescape")


def _end_of(tar: bytes) -> int:
    """Where the last file's padding ends."""
    end = 0
    with _archive(tar) as archive:
        for header in archive:
            size = header.size if header.isreg() else 0
            end = header.offset_data + size + -size % 512
    return end


def _trimmed(index_tar: bytes, toc: bytes) -> bytes:
    """Without the rest of Python's record of 10 KiB: Go writes two zero blocks."""
    return index_tar[: 512 + len(toc) + -len(toc) % 512 + 1024]


def _skippable(payload: bytes) -> bytes:
    return _SKIPPABLE + struct.pack("<I", len(payload)) + payload


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
