"""Trees of any shape, for Hypothesis."""

import random

from hypothesis import strategies as st

from headstart.content.layer.entry import EntryKind
from headstart.content.layer.inode import Inode
from tests.content.erofs.planting import ACL, BLOCK, EXTENT, KIB, Planting

_NAME_BYTES = st.sampled_from([byte for byte in range(1, 256) if byte != ord("/")])
_SHORT_NAMES = st.lists(_NAME_BYTES, min_size=1, max_size=8).map(bytes)
_LONG_NAMES = st.builds(
    lambda byte, length: bytes([byte]) * length, _NAME_BYTES, st.integers(9, 255)
)
NAMES = st.one_of(_SHORT_NAMES, _LONG_NAMES).filter(lambda name: name not in (b".", b".."))
"""All that Linux takes for a name."""

_XATTRS = st.one_of(
    st.just({}),
    st.dictionaries(
        st.builds(
            lambda prefix, name: prefix + name.replace(b"\xff", b"x")[:200],
            st.sampled_from([b"user.", b"trusted.", b"security.x"]),
            NAMES,
        ),
        st.one_of(st.binary(max_size=20), st.integers(0, 9000).map(lambda size: b"v" * size)),
        max_size=3,
    ),
)
_KINDS = st.sampled_from(
    ["directory", "directory", "regular", "regular", "symlink", "link", "special", "crowd"]
)
_SIZES = st.one_of(
    st.integers(0, 3 * BLOCK),
    st.sampled_from([EXTENT - 1, EXTENT, EXTENT + 1, 2 * EXTENT + BLOCK, 5 * EXTENT + 1]),
)
_SPECIAL = st.sampled_from([EntryKind.CHARACTER, EntryKind.BLOCK, EntryKind.FIFO])


@st.composite
def plantings(draw: st.DrawFn) -> Planting:
    """A tree over one to four stripes, with contents that cross extents."""
    extent_size = EXTENT * draw(st.integers(1, 3))
    planting = Planting(extent_size=extent_size, stripes=draw(st.integers(1, 4)))
    directories = [planting.root]
    others: list[Inode] = []
    for _ in range(draw(st.integers(0, 40))):
        parent = draw(st.sampled_from(directories))
        name, kind = draw(NAMES), draw(_KINDS)
        if name in parent.children:
            continue
        if kind == "directory":
            inode = planting.directory(parent, name)
            directories.append(inode)
        elif kind == "crowd":
            # Names enough for several blocks, in a directory of their own.
            inode = planting.directory(parent, name)
            directories.append(inode)
            length = draw(st.integers(4, 255))
            for number in range(draw(st.integers(0, 150))):
                planting.regular(inode, b"%04d" % number + b"n" * (length - 4), b"")
        elif kind == "regular":
            content = random.Random(len(others)).randbytes(draw(_SIZES))
            alignment = draw(st.sampled_from([BLOCK, 64 * KIB]))
            inode = planting.regular(parent, name, content, alignment=alignment)
            others.append(inode)
        elif kind == "link" and others:
            planting.put(parent, name, draw(st.sampled_from(others)))
            continue
        else:
            inode = planting.put(parent, name, _without_contents(draw, kind))
            others.append(inode)
        _describe(draw, inode)
    _describe(draw, planting.root)
    return planting


def _without_contents(draw: st.DrawFn, kind: str) -> Inode:
    if kind == "symlink":
        target = draw(st.one_of(NAMES, st.integers(1, 4095).map(lambda length: b"t" * length)))
        return Inode(EntryKind.SYMLINK, 0o777, target=target)
    chosen = draw(_SPECIAL)
    if chosen is EntryKind.FIFO:
        return Inode(chosen, 0o600)
    device = draw(st.tuples(st.integers(0, 4095), st.integers(0, (1 << 20) - 1)))
    return Inode(chosen, 0o600, device=device)


def _describe(draw: st.DrawFn, inode: Inode) -> None:
    """Give an inode any owner, mode, time and xattrs."""
    inode.mode = draw(st.integers(0, 0o7777))
    inode.uid = draw(st.sampled_from([0, 1000, 65536, (1 << 32) - 2]))
    inode.gid = draw(st.sampled_from([0, 1000, 65536, (1 << 32) - 2]))
    inode.mtime_ns = draw(st.integers(-(10**19), 10**20))
    if inode.kind in (EntryKind.REGULAR, EntryKind.DIRECTORY):
        # Linux shows user xattrs of no other kind, and shows ACLs of no symlink.
        inode.xattrs.update(draw(_XATTRS))
        if draw(st.booleans()):
            inode.xattrs[b"system.posix_acl_access"] = ACL
