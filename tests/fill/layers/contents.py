"""Files of a layer, and whether a mounted image has them."""

import random
from pathlib import Path

from headstart.content.layer.entry import EntryKind
from headstart.store.geometry import MIB
from proxy.fill.layers.layer_files import LayerFiles
from tests.content.erofs.mounted import mounted
from tests.content.layer.archives import Member, member, parse, said, shared, tree_of
from tests.content.layer.unpacked import look


def some_members(seed: int = 1, big: int = 3 * MIB) -> list[Member]:
    """Files of many sizes, every kind of entry, whiteouts, a hard link, attributes."""
    chance = random.Random(seed)
    members = [
        member(b"etc", EntryKind.DIRECTORY, mode=0o755, mtime=1_600_000_000),
        member(b"etc/empty"),
        member(b"etc/small", contents=b"small\n", mode=0o4755, owner=(1000, 100)),
        member(b"etc/link", EntryKind.SYMLINK, target=b"../usr/big"),
        member(b"etc/hard", EntryKind.HARD_LINK, target=b"etc/small", mode=0o4755),
        member(b"etc/.wh.gone"),
        member(b"dev/console", EntryKind.CHARACTER, device=(5, 1)),
        member(b"run/fifo", EntryKind.FIFO),
        member(b"usr/big", contents=chance.randbytes(big), mtime=1_700_000_001),
        member(b"usr/capable", contents=b"x" * 5000, xattrs={b"user.note": b"kept"}),
        member(b"opaque/.wh..wh..opq"),
    ]
    for number in range(60):
        size = chance.choice([1, 511, 512, 4095, 4096, 4097, 20_000])
        name = f"usr/lib/{number % 7}/{number}".encode()
        members.append(member(name, contents=chance.randbytes(size), mtime=number))
    # The second one is what counts; the first one's contents are not reachable any more.
    members.append(member(b"usr/lib/3/3", contents=b"again"))
    return members


def assert_shows(files: LayerFiles, tar: bytes, directory: Path) -> None:
    """The mounted image shows what the archive says."""
    expected = said(*tree_of(parse(tar)))
    with mounted(files.meta_path.read_bytes(), files.paths, directory) as root:
        found = look(root)
    assert shared(found) == shared(expected)
    assert [_without_inode(file) for file in sorted(found.items())] == [
        _without_inode(file) for file in sorted(expected.items())
    ]


def _without_inode(file: tuple[bytes, dict[str, object]]) -> tuple[bytes, dict[str, object]]:
    name, attributes = file
    return name, {key: value for key, value in attributes.items() if key != "inode"}
