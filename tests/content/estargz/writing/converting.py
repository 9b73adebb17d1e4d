"""Tars turned into eStargz, and what they mean to Python's tarfile."""

import gzip
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from headstart.content.estargz.writing.options import DEFAULT_OPTIONS, WritingOptions
from headstart.content.estargz.writing.scan import scan_tar
from headstart.content.estargz.writing.writer import EStargzWriter, MapOrdered
from headstart.content.estargz.writing.written import WrittenLayer as Result
from headstart.content.layer.xattrs import CAPABILITY
from tests.content.estargz.writer import WrittenLayer
from tests.content.layer.archives import Member, pieces, write

OWN_FILES = {".prefetch.landmark", ".no.prefetch.landmark", "stargz.index.json"}

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Converted:
    """A layer as the read side's tests take it, and what the writer says of it."""

    layer: WrittenLayer
    result: Result


def convert(
    tar: bytes,
    order: Sequence[bytes] = (),
    options: WritingOptions = DEFAULT_OPTIONS,
    map_ordered: MapOrdered = map,
    piece_size: int = 1 << 20,
) -> Converted:
    """Raises LayerRefused, NotConvertible."""
    writer = EStargzWriter(scan_tar(pieces(tar, [piece_size])), order, options)
    blob = b"".join(writer.write(reader(tar), map_ordered))
    result = writer.result
    start = int(blob[-35:-19], 16)
    toc = gzip.decompress(blob[start:])[512:].rstrip(b"\0")
    layer = WrittenLayer(blob, toc, result.annotations, gzip.decompress(blob), "gzip")
    return Converted(layer, result)


def reader(tar: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: tar[offset : offset + length]


def backwards(function: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
    """A map that does its work last item first, as unlucky threads might."""
    waiting = list(items)
    made = [function(item) for item in reversed(waiting)]
    return reversed(made)


def bare(member: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A file's headers, contents and padding, no end behind them."""
    archive = write([member], form)
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as opened:
        (header,) = opened
    size = len(member.contents)
    return archive[: header.offset_data + size + -size % 512]


def names(tar: bytes) -> list[str]:
    """The names in a tar, in order."""
    with _archive(tar) as archive:
        return archive.getnames()


def meaning(tar: bytes) -> dict[str, dict[str, object]]:
    """What unpacking leaves, the last entry of a name winning; hard links by their first name."""
    files: dict[str, dict[str, object]] = {}
    with _archive(tar) as archive:
        for header in archive:
            path = _path(header.name)
            if path in OWN_FILES or not path:
                continue
            parts = path.split("/")
            for depth in range(1, len(parts)):
                files.setdefault("/".join(parts[:depth]), {"type": tarfile.DIRTYPE})
            old = files.get(path)
            if old is None or not (header.isdir() and old["type"] == tarfile.DIRTYPE):
                for below in [name for name in files if f"{name}/".startswith(f"{path}/")]:
                    del files[below]
                old = {"type": header.type}
            if not header.islnk():
                old["owner's names"] = (header.uname, header.gname)
            if header.islnk():
                old = files[_path(header.linkname)]
                # It is lost with the owner's change, see LayerTree.
                old.pop(f"SCHILY.xattr.{CAPABILITY.decode()}", None)
            elif header.isreg():
                content = archive.extractfile(header)
                assert content is not None
                old |= {"type": tarfile.REGTYPE, "contents": content.read()}
            else:
                old["target"] = header.linkname
                old["device"] = (header.devmajor, header.devminor) if header.isdev() else None
            old |= {
                "mode": header.mode & 0o7777,
                "owner": (header.uid, header.gid),
                "mtime": header.mtime,
            }
            old |= {key: value for key, value in header.pax_headers.items() if "xattr" in key}
            files[path] = old
    first: dict[int, str] = {}
    for path in sorted(files):
        first.setdefault(id(files[path]), path)
    return {path: file | {"same as": first[id(file)]} for path, file in files.items()}


def _path(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _archive(tar: bytes) -> tarfile.TarFile:
    # What has no bytes Python does not take for an archive.
    return tarfile.open(fileobj=io.BytesIO(tar or bytes(1024)), errors="surrogateescape")
