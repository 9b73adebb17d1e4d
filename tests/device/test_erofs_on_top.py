"""A layer image mounted by the kernel's EROFS, its data devices being device files."""

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headstart.content.erofs import DeviceGeometry, build
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.inode import Inode
from headstart.content.layer.placement import Placement
from headstart.store.errors import FillFailed
from headstart.store.geometry import MIB
from mount.mounting import system_calls
from mount.supervisor import control
from tests.device.layer_filler import bring, hold
from tests.device.layers import StoredLayer
from tests.device.mounted import Mounted, mounted

STRIPES = 3
EXTENT = 2 * MIB
FILES = 120
LARGE = 9 * MIB + 12345


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("erofs")) as running:
        running.ensure()
        yield running


def _contents() -> dict[bytes, bytes]:
    chance = random.Random(4)
    contents = {b"%03d" % n: chance.randbytes(chance.randrange(40000)) for n in range(FILES)}
    contents[b"large"] = chance.randbytes(LARGE)
    contents[b"empty"] = b""
    return contents


def _stored(directory: Path, contents: dict[bytes, bytes]) -> StoredLayer:
    """An image with all of these files in one directory; nothing of its data device is here."""
    placement = Placement(EXTENT, STRIPES)
    root = Inode(EntryKind.DIRECTORY, 0o755, links=2)
    for name, content in contents.items():
        inode = Inode(EntryKind.REGULAR, 0o644, size=len(content))
        inode.offset = placement.place(len(content))
        root.children[name] = inode
    device = bytearray(placement.device_size)
    for name, inode in root.children.items():
        device[inode.offset : inode.offset + inode.size] = contents[name]
    size = len(device)
    meta = build(root, DeviceGeometry(size, EXTENT, STRIPES))
    return StoredLayer(
        directory, size, extent_size=EXTENT, stripes=STRIPES, content=bytes(device), meta=meta
    )


@contextmanager
def _erofs(mount: Mounted, stored: StoredLayer, target: Path) -> Iterator[Path]:
    options = ",".join(f"device={path}" for path in mount.add(stored))
    target.mkdir()
    try:
        system_calls.mount(stored.meta, target, "erofs", system_calls.MS_RDONLY, options)
    except OSError as error:
        pytest.skip(f"this kernel does not mount EROFS from files: {error}")
    try:
        yield target
    finally:
        system_calls.unmount(target, system_calls.MNT_DETACH)


def _tree(directory: Path) -> dict[bytes, str]:
    return {
        os.fsencode(path.name): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.iterdir()
    }


def test_the_tree_is_what_it_was_made_of(mount: Mounted, tmp_path: Path) -> None:
    contents = _contents()
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    stored = _stored(tmp_path / "tree", contents)
    mount.filler.on_want = bring
    with _erofs(mount, stored, tmp_path / "mounted") as target:
        # Names, sizes and modes come from the metadata: nothing was wanted for them.
        before = len(mount.filler.requests("want"))
        sizes = {os.fsencode(entry.name): entry.stat().st_size for entry in os.scandir(target)}
        assert sizes == {name: len(content) for name, content in contents.items()}
        assert len(mount.filler.requests("want")) == before
        assert _tree(target) == expected
        assert len(mount.filler.requests("want")) > before
    stored.close()


def test_f44_a_tree_is_right_while_daemons_die(mount: Mounted, tmp_path: Path) -> None:
    contents = _contents()
    stored = _stored(tmp_path / "dying", contents)
    mount.filler.on_want = bring
    program = (
        "import hashlib, pathlib, sys\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    print(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), flush=True)\n"
    )
    with (
        _erofs(mount, stored, tmp_path / "mounted") as target,
        subprocess.Popen(
            [sys.executable, "-c", program, target], stdout=subprocess.PIPE, text=True
        ) as reader,
    ):
        assert reader.stdout is not None
        lines = []
        for line in reader.stdout:
            lines.append(line)
            if len(lines) % 40 == 1:
                mount.kill_daemon()
    assert reader.returncode == 0
    assert lines == [
        f"{name.decode()} {hashlib.sha256(contents[name]).hexdigest()}\n"
        for name in sorted(contents)
    ]
    stored.close()


def test_an_error_is_eio_and_goes_away(mount: Mounted, tmp_path: Path) -> None:
    contents = {b"file": b"x" * 100000}
    stored = _stored(tmp_path / "failing", contents)
    mount.filler.on_want = lambda _, __: FillFailed("digest", "damaged")
    with _erofs(mount, stored, tmp_path / "mounted") as target:
        with pytest.raises(OSError, match="Input/output"):
            (target / "file").read_bytes()
        mount.filler.on_want = bring
        assert (target / "file").read_bytes() == contents[b"file"]
    stored.close()


def test_nothing_ends_while_a_layer_is_mounted(mount: Mounted, tmp_path: Path) -> None:
    stored = _stored(tmp_path / "used", {b"file": b"y" * 5000})
    mount.filler.on_want = hold
    with _erofs(mount, stored, tmp_path / "mounted") as target:
        with pytest.raises(control.DevicesInUse):
            control.stop(mount.root)
        mount.filler.on_want = bring
        assert (target / "file").read_bytes() == b"y" * 5000
    control.stop(mount.root)
    assert not mount.processes()
    stored.close()
