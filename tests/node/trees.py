"""Layers of all kinds of files, as a real root file system has them."""

import io
import struct
import tarfile
from collections.abc import Mapping

from tests.layers.images import MTIME, tree

_CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0).decode("latin-1")
"""cap_net_bind_service+ep (linux/capability.h, vfs_cap_data of version 2)."""


class Archive:
    """A tar in the making."""

    def __init__(self) -> None:
        self._output = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._output, mode="w", format=tarfile.PAX_FORMAT)
        self._directories: set[str] = set()

    def add(
        self,
        name: str,
        content: bytes = b"",
        *,
        kind: bytes = tarfile.REGTYPE,
        mode: int = 0o644,
        owner: tuple[int, int] = (0, 0),
        target: str = "",
        device: tuple[int, int] = (0, 0),
        mtime: float = MTIME,
        xattrs: Mapping[str, str] | None = None,
    ) -> None:
        """Add an entry, and entries of the directories above it."""
        parts = name.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            directory = "/".join(parts[:depth])
            if directory not in self._directories:
                self.add(directory, kind=tarfile.DIRTYPE, mode=0o755)
        if kind == tarfile.DIRTYPE:
            self._directories.add(name)
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.mtime, entry.linkname = kind, mode, mtime, target
        entry.uid, entry.gid = owner
        entry.devmajor, entry.devminor = device
        entry.size = len(content)
        entry.pax_headers = {f"SCHILY.xattr.{key}": text for key, text in (xattrs or {}).items()}
        if mtime != int(mtime):
            entry.pax_headers["mtime"] = repr(mtime)
        self._tar.addfile(entry, io.BytesIO(content))

    def finish(self) -> bytes:
        """The archive."""
        self._tar.close()
        return self._output.getvalue()


def upon_debian(program: bytes) -> bytes:
    """A layer of everything that can be in one, to be above a Debian."""
    archive = Archive()
    archive.add("usr/bin/show", program, mode=0o755)
    archive.add("etc/issue", b"a Debian that was changed\n", mode=0o600, owner=(0, 42))
    # Removed: a file, a directory with all that is in it; hidden: what a directory had.
    archive.add("etc/.wh.issue.net")
    archive.add("usr/share/.wh.doc")
    archive.add("usr/share/zoneinfo/.wh..wh..opq")
    archive.add("usr/share/zoneinfo/Nowhere", b"TZif2")
    archive.add("etc/default/.wh..wh..opq")
    archive.add("etc/default/show", b"SHOW=1\n")
    # A directory where there was a file, a link where there was a directory, and a file again.
    archive.add("etc/debian_version", kind=tarfile.DIRTYPE, mode=0o750)
    archive.add("etc/debian_version/12", b"bookworm\n")
    archive.add("etc/skel", kind=tarfile.SYMTYPE, mode=0o777, target="/etc/default")
    archive.add("srv", b"no directory any more\n")
    archive.add("opt/su", b"\x7fELF su" * 900, mode=0o6755, owner=(0, 4))
    archive.add("opt/ping", b"\x7fELF ping" * 900, xattrs={"security.capability": _CAPABILITY})
    archive.add("opt/note", b"", xattrs={"user.note": "kept", "user." + "n" * 200: "v" * 900})
    archive.add("opt/twin", kind=tarfile.LNKTYPE, target="opt/su", mode=0o6755, owner=(0, 4))
    archive.add("opt/third", kind=tarfile.LNKTYPE, target="opt/twin", mode=0o6755, owner=(0, 4))
    archive.add("opt/zero", kind=tarfile.CHRTYPE, mode=0o666, device=(1, 5))
    archive.add("opt/loop", kind=tarfile.BLKTYPE, mode=0o660, owner=(0, 6), device=(7, 300))
    archive.add("opt/pipe", kind=tarfile.FIFOTYPE, mode=0o622, owner=(65534, 65534))
    archive.add("opt/" + "n" * 250 + "/" + "ä" * 120, b"long names\n", mtime=MTIME + 0.25)
    archive.add("opt/link", kind=tarfile.SYMTYPE, mode=0o777, target="t" * 1000)
    archive.add("opt/sticky", kind=tarfile.DIRTYPE, mode=0o3777, owner=(1000, 1000))
    archive.add("opt/before the epoch", b"old", mtime=-86400)
    archive.add("opt/far", b"owned from afar", owner=(2_000_000_000, 2_000_000_001))
    return archive.finish()


def base_layer(program: bytes, seed: int = 1, files: int = 60) -> bytes:
    """A root file system with ``bin/show``."""
    archive = Archive()
    archive.add("bin/show", program, mode=0o755)
    archive.add("etc/motd", b"good morning\n")
    archive.add("etc/shadow", b"root:*:1:0:99999:7:::\n", mode=0o640, owner=(0, 42))
    archive.add("etc/empty")
    archive.add("tmp", kind=tarfile.DIRTYPE, mode=0o1777)
    archive.add("proc", kind=tarfile.DIRTYPE, mode=0o555)
    archive.add("sys", kind=tarfile.DIRTYPE, mode=0o555)
    archive.add("dev", kind=tarfile.DIRTYPE, mode=0o755)
    archive.add("dev/null", kind=tarfile.CHRTYPE, mode=0o666, device=(1, 3))
    archive.add("dev/loop77", kind=tarfile.BLKTYPE, mode=0o660, owner=(0, 6), device=(7, 77))
    archive.add("run/pipe", kind=tarfile.FIFOTYPE, mode=0o600)
    archive.add("usr/bin/su", b"\x7fELF su" * 900, mode=0o4755)
    archive.add("usr/bin/wall", b"\x7fELF wall" * 900, mode=0o2755, owner=(0, 5))
    archive.add("usr/bin/ping", b"\x7fELF ping" * 900, xattrs={"security.capability": _CAPABILITY})
    archive.add("usr/bin/editor", kind=tarfile.SYMTYPE, mode=0o777, target="../lib/editor/main")
    archive.add("usr/lib/editor/main", b"#!/bin/show\n", mode=0o755, xattrs={"user.note": "kept"})
    archive.add(
        "usr/lib/editor/twin", kind=tarfile.LNKTYPE, mode=0o755, target="usr/lib/editor/main"
    )
    archive.add("usr/share/" + "n" * 120 + "/" + "m" * 200, b"long names\n", mtime=MTIME + 0.25)
    archive.add("home/user/.profile", b"umask 022\n", owner=(1000, 1000))
    for name, content in tree(seed, files).items():
        archive.add(name, content)
    return archive.finish()


def changing_layer(seed: int = 2, files: int = 60) -> bytes:
    """A layer that changes, removes and hides what the base has."""
    archive = Archive()
    archive.add("etc/motd", b"good evening\n", mode=0o600)
    archive.add("etc/.wh.shadow")
    archive.add("usr/lib/editor/.wh..wh..opq")
    archive.add("usr/lib/editor/other", b"#!/bin/show\n", mode=0o755)
    archive.add("usr/bin/.wh.wall")
    archive.add("usr/bin/su", b"\x7fELF another su" * 900, mode=0o4755)
    archive.add("opt/python/bin/python", b"\x7fELF python" * 5000, mode=0o755)
    archive.add(
        "opt/python/bin/python3", kind=tarfile.LNKTYPE, target="opt/python/bin/python", mode=0o755
    )
    for name, content in tree(seed, files).items():
        archive.add(name.replace("usr/lib", "opt/python/lib"), content)
    return archive.finish()
