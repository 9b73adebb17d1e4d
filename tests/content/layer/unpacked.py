"""Layers as containerd unpacks them: what is in the directory of an overlayfs snapshot."""

import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.parts.containerd import Containerd

_BLOBS = "blobs/sha256"
_KINDS = {
    stat.S_IFDIR: "dir",
    stat.S_IFREG: "reg",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}


def unpack(containerd: Containerd, directory: Path, base: bytes, layer: bytes) -> Path:
    """Have an image of two plain layers unpacked; returns the upper one's own directory.

    Above another layer containerd makes overlayfs's whiteouts; in the lowest it removes files.
    Raises ProcessFailed with containerd's words where it refuses.
    """
    # An image of its own keeps the base from being collected after a refusal.
    _import(containerd, directory / "base", [base])
    snapshots = containerd.content.parents[2] / "io.containerd.snapshotter.v1.overlayfs/snapshots"
    before = _numbers(snapshots)
    _import(containerd, directory / "both", [base, layer])
    return snapshots / str(max(_numbers(snapshots) - before)) / "fs"


def _import(containerd: Containerd, directory: Path, contents: Sequence[bytes]) -> None:
    (directory / _BLOBS).mkdir(parents=True)
    layers = [
        _blob(directory, content, "application/vnd.oci.image.layer.v1.tar") for content in contents
    ]
    diff_ids = [str(layer["digest"]) for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "config": _json(directory, config, "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    }
    top = _json(directory, manifest, "application/vnd.oci.image.manifest.v1+json")
    name = f"localhost/unpacked:{diff_ids[-1][7:19]}"
    top["annotations"] = {"io.containerd.image.name": name}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (directory / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    archive = directory.with_suffix(".tar")
    with tarfile.open(archive, "w") as packed:
        for part in ("oci-layout", "index.json", "blobs"):
            packed.add(directory / part, part)
    containerd.ctr(["images", "import", "--snapshotter", "overlayfs", archive])


def look(root: Path) -> dict[bytes, dict[str, object]]:
    """What a tree of files says of each name, in the terms of an Inode."""
    found: dict[bytes, dict[str, object]] = {}
    for directory, names, files in os.walk(os.fsencode(root)):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            found[os.path.relpath(path, os.fsencode(root))] = _look(path)
    return found


def _look(path: bytes) -> dict[str, object]:
    status = os.lstat(path)
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    said: dict[str, object] = {
        "kind": kind,
        "mode": stat.S_IMODE(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "mtime_ns": status.st_mtime_ns,
        "links": status.st_nlink,
        "inode": status.st_ino,
        "xattrs": {
            os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        },
    }
    if kind == "symlink":
        said["target"] = os.readlink(path)
    elif kind == "reg":
        with open(path, "rb") as file:
            said["contents"] = file.read()
    elif kind in ("char", "block"):
        said["device"] = (os.major(status.st_rdev), os.minor(status.st_rdev))
    return said


def _numbers(snapshots: Path) -> set[int]:
    return {int(child.name) for child in snapshots.iterdir()} if snapshots.exists() else set()


def _json(directory: Path, value: object, media_type: str) -> dict[str, object]:
    return _blob(directory, json.dumps(value).encode(), media_type)


def _blob(directory: Path, content: bytes, media_type: str) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    (directory / _BLOBS / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}
