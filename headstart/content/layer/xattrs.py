"""Which extended attributes of an entry its file gets."""

from collections.abc import Mapping

from headstart.content.layer.caps import LayerCaps
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.names import shown

CAPABILITY = b"security.capability"
OPAQUE = b"trusted.overlay.opaque"

_ACCESS_LIST = b"system.posix_acl_access"
_DEFAULT_ACCESS_LIST = b"system.posix_acl_default"


def kept_xattrs(
    xattrs: Mapping[bytes, bytes], kind: EntryKind, caps: LayerCaps
) -> dict[bytes, bytes]:
    """Those that a file of ``kind`` is given. Raises LayerRefused for one that is over a cap.

    Dropped are what would speak to overlayfs in the archive's name (all of ``trusted.``, as
    containerd does, and ``user.overlay.``), what containerd passes over because no file system
    takes it, and what Linux would not show on a file of that kind (xattr(7)).
    """
    kept = {name: value for name, value in xattrs.items() if _is_kept(name, kind)}
    for name, value in kept.items():
        if len(name) > caps.xattr_name_bytes or b"\0" in name:
            raise LayerRefused(
                f"the extended attribute {shown(name)} has a NUL"
                f" or is longer than {caps.xattr_name_bytes} bytes"
            )
        if len(value) > caps.xattr_value_bytes:
            raise LayerRefused(
                f"the extended attribute {shown(name)} has {len(value)} bytes,"
                f" over {caps.xattr_value_bytes}"
            )
    return kept


def xattr_bytes(xattrs: Mapping[bytes, bytes]) -> int:
    """Bytes of all names and values."""
    return sum(map(len, xattrs)) + sum(map(len, xattrs.values()))


def _is_kept(name: bytes, kind: EntryKind) -> bool:
    namespace, _, rest = name.partition(b".")
    if not rest:
        return False
    if namespace == b"security":
        return True
    if namespace == b"user":
        return kind in (EntryKind.REGULAR, EntryKind.DIRECTORY) and not rest.startswith(b"overlay.")
    if name == _ACCESS_LIST:
        return kind is not EntryKind.SYMLINK
    return name == _DEFAULT_ACCESS_LIST and kind is EntryKind.DIRECTORY
