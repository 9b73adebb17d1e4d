"""What the kernel says is mounted where."""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mount.mounting import system_calls
from mount.mounting.mount_table import (
    MountChanges,
    MountPoint,
    mounted_at,
    mounted_below,
    parse_mountinfo,
    unescape,
)

NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: not {0, 0x2F} & set(name) and name not in (b".", b"..")
)


def escaped(name: bytes) -> bytes:
    """As seq_path writes it (linux/fs/seq_file.c)."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in name)


@pytest.mark.parametrize(
    ("line", "point"),
    [
        (
            b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=c",
            MountPoint(
                Path("/mnt2"), "ext3", "/dev/root", (98, 0), ("rw", "noatime"), ("rw", "errors=c")
            ),
        ),
        (
            b"1 1 0:5 / /a\\040b\\134\\011\\012 ro - fuse.x none rw",
            MountPoint(Path("/a b\\\t\n"), "fuse.x", "none", (0, 5), ("ro",), ("rw",)),
        ),
        (
            b"1 1 0:5 / / ro unbindable - erofs /a\\040- rw",
            MountPoint(Path("/"), "erofs", "/a -", (0, 5), ("ro",), ("rw",)),
        ),
    ],
)
def test_a_line_is_read(line: bytes, point: MountPoint) -> None:
    assert parse_mountinfo(line + b"\n") == [point]


@pytest.mark.parametrize(
    "line", [b"x", b"1 2 3:4 / / rw ext4 none rw", b"1 2 3:x / / rw - a b c", b"1 2 3:4 / / rw -"]
)
def test_a_line_of_another_form_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="another form"):
        parse_mountinfo(line)


@given(NAMES)
def test_any_name_is_unescaped(name: bytes) -> None:
    assert unescape(escaped(name)) == name


@given(NAMES)
def test_any_mount_point_is_read(name: bytes) -> None:
    line = b"1 2 3:4 / /" + escaped(name) + b" rw - tmpfs " + escaped(name) + b" rw"
    (point,) = parse_mountinfo(line)
    assert os.fsencode(point.path) == b"/" + name
    assert os.fsencode(point.source) == name


def test_the_kernel_writes_what_is_read(root: Path) -> None:
    odd = root / "a b\t\\c\n\u00fc"
    odd.mkdir()
    for source in ("first one", "second\\one"):
        system_calls.mount(source, odd, "tmpfs", system_calls.MS_NODEV, "size=1m")
    first, second = mounted_at(odd)
    assert (first.source, second.source) == ("first one", "second\\one")
    assert "nodev" in first.options and "size=1024k" in first.file_system_options
    assert odd in [point.path for point in mounted_below(root)]
    system_calls.unmount(odd)
    assert mounted_at(odd) == [first]


def test_a_change_wakes_who_waits(root: Path) -> None:
    changes = MountChanges()
    try:
        assert not changes.wait(0.0)
        target = root / "target"
        target.mkdir()
        mount = threading.Timer(0.05, system_calls.mount, ("none", target, "tmpfs", 0, ""))
        mount.start()
        assert changes.wait(30.0)
        mount.join()
    finally:
        changes.close()


def test_errors_name_call_path_and_reason(root: Path) -> None:
    missing = root / "missing"
    with pytest.raises(FileNotFoundError, match=r"mount\(x, .*missing, tmpfs\): No such file"):
        system_calls.mount("x", missing, "tmpfs", 0)
    with pytest.raises(OSError, match=r"umount2\(.*root\): Invalid argument"):
        system_calls.unmount(root)
    with pytest.raises(FileNotFoundError, match=r"statfs\(.*missing\)"):
        system_calls.file_system_type(missing)
    with pytest.raises(FileNotFoundError, match=r"open_tree\(.*missing\)"):
        system_calls.move_beneath(missing, root)
    with pytest.raises(OSError, match=r"4096 bytes of options; at most 4095"):
        system_calls.mount("x", root, "tmpfs", 0, "x" * 4096)
    link = root / "link"
    link.symlink_to(root)
    with pytest.raises(OSError, match="umount2"):
        system_calls.unmount(link)
