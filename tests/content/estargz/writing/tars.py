"""Tars of every kind, broken rules included."""

import tarfile
from typing import NamedTuple

from hypothesis import strategies as st

from headstart.content.layer.entry import EntryKind
from tests.content.estargz.writing.converting import bare
from tests.content.layer.archives import Member, member, parse
from tests.content.layer.test_tar import extended, record

SPELLINGS = ["%s", "./%s", "/%s", "%s"]
PARTS = ["a", "b", "c.so", "\u00fc", "l" * 120]
SIZES = [0, 1, 100, 511, 512, 513, 1500, 3000]
XATTRS = [
    {},
    {},
    {b"user.a": b"\xff\0b"},
    {b"user.b": b""},
    {b"security.capability": b"\1\0\0\2" + bytes(16)},
]
TIMES = ["0", "0.4", "5.5", "1700000000.999999999", "7", "1600000000"]
KINDS = ["file", "file", "file", "file", "dir", "dir", "link", "link", "symlink", "node", "white"]


class Tar(NamedTuple):
    """An archive, and names that are wanted first: mostly of it, in any spelling."""

    content: bytes
    order: list[bytes]

    def __repr__(self) -> str:
        """What is in it: all bytes would be too much to print."""
        return f"{parse(self.content)} in {len(self.content)} bytes, first {self.order}"


@st.composite
def tars(draw: st.DrawFn, *, twice: bool = True) -> Tar:
    """``twice``: of few names, which are given again and again."""
    entries: list[bytes] = []
    names: list[bytes] = []
    files: list[bytes] = []
    for number in range(draw(st.integers(0, 12))):
        parts = draw(st.lists(st.sampled_from(PARTS), min_size=1, max_size=3 if twice else 4))
        path = "/".join(parts if twice else [*parts[:-1], f"{parts[-1]}{number}"])
        form = draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
        if draw(st.integers(0, 9)) == 0:
            entries.append(extended(b"g", record(b"comment", b"x" * number)))
        made = _member(draw, path, files)
        name = made.header.name.encode().strip(b"./")
        entries.append(bare(made, form))
        names.append(name)
        if (made.header.isreg() or made.header.islnk()) and b".wh." not in name:
            files.append(name)
    end = draw(st.sampled_from([b"", bytes(512), bytes(1024), bytes(10240) + b"rest"]))
    wanted = st.sampled_from([*names, *names, b"", b"nothing", b"a/nothing", b"../out", b"a"])
    order = [
        draw(st.sampled_from([b"", b"/", b"./", b"//./"])) + name
        for name in draw(st.lists(wanted, max_size=5))
    ]
    return Tar(b"".join(entries) + end, order)


def _member(draw: st.DrawFn, path: str, files: list[bytes]) -> Member:
    kind = draw(st.sampled_from(KINDS))
    name = (draw(st.sampled_from(SPELLINGS)) % path).encode()
    owner = draw(st.sampled_from([(0, 0), (1000, 7), (3_000_000, 5)]))
    time = draw(st.sampled_from(TIMES))
    xattrs = draw(st.sampled_from(XATTRS))
    mode = draw(st.sampled_from([0, 0o644, 0o4755, 0o7777]))
    size = draw(st.sampled_from(SIZES))
    entry_kind, contents, target, device = EntryKind.REGULAR, b"", b"", (0, 0)
    if kind == "dir":
        entry_kind = EntryKind.DIRECTORY
        name += draw(st.sampled_from([b"", b"/"]))
    elif kind == "link" and files:
        entry_kind = EntryKind.HARD_LINK
        target = draw(st.sampled_from(files))
    elif kind == "symlink":
        entry_kind, target = EntryKind.SYMLINK, b"t" * (size + 1)
    elif kind == "node":
        entry_kind = draw(st.sampled_from([EntryKind.CHARACTER, EntryKind.FIFO, EntryKind.BLOCK]))
        device = (1, 3 + size)
    elif kind == "white":
        parent, _, last = name.rpartition(b"/")
        mark = draw(st.sampled_from([b".wh..wh..opq", b".wh.%d" % size, b".wh." + last[:200]]))
        name = parent + b"/" + mark if parent else mark
    else:
        # Half of it shrinks.
        contents = bytes((at * at * 7919 >> 3) % 251 if at % 2 else 0 for at in range(size))
    made = member(
        name,
        entry_kind,
        contents,
        mode=mode,
        owner=owner,
        mtime=int(float(time)),
        target=target,
        device=device,
        xattrs=xattrs,
        records={"mtime": time},
    )
    made.header.uname = draw(st.sampled_from(["", "root", "\u00e4", "n" * 40]))
    made.header.gname = draw(st.sampled_from(["", "wheel"]))
    return made
