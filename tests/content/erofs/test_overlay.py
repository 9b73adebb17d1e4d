"""Images as lower layers of overlayfs."""

import os
from pathlib import Path

from headstart.content.layer.entry import EntryKind
from headstart.content.layer.inode import Inode
from tests.content.erofs.mounted import mounted, overlaid
from tests.content.erofs.planting import Planting


def test_whiteouts_hide_what_lies_below(tmp_path: Path) -> None:
    below, above = Planting(), Planting()
    for name in (b"kept", b"hidden"):
        below.regular(below.root, name, name)
    gone = below.directory(below.root, b"gone")
    below.regular(gone, b"file", b"x")
    for name in (b"hidden", b"gone"):
        above.put(above.root, name, Inode(EntryKind.CHARACTER, 0, device=(0, 0)))
    above.regular(above.root, b"new", b"new")
    assert stacked(tmp_path, above, below) == {"kept": b"kept", "new": b"new"}


def test_an_opaque_directory_hides_all_names_below(tmp_path: Path) -> None:
    below, above = Planting(), Planting()
    for name in (b"opaque", b"open"):
        low = below.directory(below.root, name)
        below.regular(low, b"low", b"low " + name)
        high = above.directory(above.root, name)
        above.regular(high, b"high", b"high " + name)
        if name == b"opaque":
            high.xattrs[b"trusted.overlay.opaque"] = b"y"
    assert stacked(tmp_path, above, below) == {
        "opaque/high": b"high opaque",
        "open/high": b"high open",
        "open/low": b"low open",
    }


def test_a_file_is_copied_up_with_all_that_it_is(tmp_path: Path) -> None:
    planting = Planting(stripes=2)
    file = planting.regular(planting.root, b"file", b"before")
    file.mode, file.uid, file.gid = 0o640, 1000, 1001
    file.xattrs[b"user.note"] = b"kept"
    devices = planting.write_devices(tmp_path)
    with (
        mounted(planting.image(), devices, tmp_path / "lower") as lower,
        overlaid([lower], tmp_path / "overlay") as tree,
    ):
        with (tree / "file").open("ab") as appending:
            appending.write(b", after")
        assert (tree / "file").read_bytes() == b"before, after"
        found = os.lstat(tree / "file")
        assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o640, 1000, 1001)
        assert os.getxattr(tree / "file", "user.note") == b"kept"
        assert (lower / "file").read_bytes() == b"before"


def stacked(directory: Path, above: Planting, below: Planting) -> dict[str, bytes]:
    """Path and contents of each regular file in the overlay of two layers."""
    parts = directory / "above", directory / "below"
    for part in parts:
        part.mkdir()
    devices = [of.write_devices(part) for of, part in zip((above, below), parts, strict=True)]
    with (
        mounted(above.image(), devices[0], parts[0] / "mount") as high,
        mounted(below.image(), devices[1], parts[1] / "mount") as low,
        overlaid([high, low], directory / "overlay") as tree,
    ):
        return {
            str(path.relative_to(tree)): path.read_bytes()
            for path in sorted(tree.rglob("*"))
            if path.is_file()
        }
