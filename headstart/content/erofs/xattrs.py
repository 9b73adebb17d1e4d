"""The extended attributes of an inode, as they lie beside it."""

from collections.abc import Mapping

from headstart.content.erofs.errors import Inexpressible
from headstart.content.erofs.format import (
    LARGEST_XATTR_COUNT,
    LONGEST_NAME,
    LONGEST_XATTR_VALUE,
    XATTR_ENTRY,
    XATTR_HEADER_SIZE,
    XATTR_UNIT,
)

_WHOLE_NAMES = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
_PREFIXES = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))


def inline_xattrs(xattrs: Mapping[bytes, bytes]) -> bytes:
    """The xattrs as they follow their inode; empty when there are none to show.

    A name of no namespace that EROFS has (``com.apple.quarantine``) is left out: other file systems
    of Linux answer ENOTSUP to it, and then containerd unpacks the layer without it too. Raises
    :class:`Inexpressible` for what the kernel would refuse, or the format has no room for.
    """
    entries = []
    for name in sorted(xattrs):
        prefix, rest = _split(name)
        if prefix is None:
            continue
        value = xattrs[name]
        if len(name) > LONGEST_NAME or b"\0" in name:
            raise Inexpressible(f"an xattr's name of {len(name)} bytes is too long, or has a zero")
        if len(value) > LONGEST_XATTR_VALUE:
            raise Inexpressible(f"an xattr of {len(value)} bytes is too long")
        entry = XATTR_ENTRY.pack(len(rest), prefix, len(value)) + rest + value
        entries.append(entry + bytes(-len(entry) % XATTR_UNIT))
    if not entries:
        return b""
    body = bytes(XATTR_HEADER_SIZE) + b"".join(entries)
    if xattr_count(body) > LARGEST_XATTR_COUNT:
        raise Inexpressible(f"{len(body)} bytes of xattrs are too many")
    return body


def xattr_count(body: bytes) -> int:
    """What the inode says of the length of its xattrs: the header counts as one unit."""
    return (len(body) - XATTR_HEADER_SIZE) // XATTR_UNIT + 1 if body else 0


def _split(name: bytes) -> tuple[int | None, bytes]:
    """The number of a name's prefix, None for no known one, and what follows the prefix."""
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name], b""
    for prefix, number in _PREFIXES:
        if name.startswith(prefix):
            if name == prefix:
                raise Inexpressible(f"an xattr has no name after {prefix.decode()}")
            return number, name[len(prefix) :]
    return None, b""
