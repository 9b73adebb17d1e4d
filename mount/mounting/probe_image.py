"""The layer image that modes are tried with: one file."""

from headstart.content.erofs import DeviceGeometry, build
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.inode import Inode

EXTENT = 4096
NAME = "probe"
CONTENT = b"".join(bytes([letter]) * EXTENT for letter in b"headstart")
"""Of several extents, so that with several stripes it goes from one to the next and around."""


def metadata(stripes: int = 1) -> bytes:
    """The metadata image."""
    root = Inode(EntryKind.DIRECTORY, 0o755, links=2)
    root.children[NAME.encode()] = Inode(EntryKind.REGULAR, 0o644, size=len(CONTENT))
    return build(root, DeviceGeometry(len(CONTENT), EXTENT, stripes))


def stripes(count: int) -> list[bytes]:
    """What each of ``count`` stripes holds of the data device."""
    extents = [CONTENT[start : start + EXTENT] for start in range(0, len(CONTENT), EXTENT)]
    return [b"".join(extents[stripe::count]) for stripe in range(count)]
