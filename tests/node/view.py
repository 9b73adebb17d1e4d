"""What a tree shows, as lines that can be compared."""

import hashlib
import os
import stat
from pathlib import Path


def view(root: Path) -> dict[str, str]:
    """Everything that lstat(2), readlink(2), listxattr(2) and read(2) tell of each path."""
    found: dict[str, str] = {}
    numbers: dict[int, int] = {}
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted([*files, *names]):
            path = Path(directory, name)
            found[str(path.relative_to(root))] = _line(path, numbers)
    return found


def _line(path: Path, numbers: dict[int, int]) -> str:
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    said = [
        f"{status.st_mode:o}",
        f"{status.st_uid}:{status.st_gid}",
        f"mtime={status.st_mtime_ns}",
    ]
    if kind == stat.S_IFREG:
        said += [f"size={status.st_size}", f"sha256={_sha256(path)}"]
    if kind != stat.S_IFDIR:
        # Which names share a file, whatever its inode's number is.
        said.append(f"links={status.st_nlink}")
        if status.st_nlink > 1:
            said.append(f"file={numbers.setdefault(status.st_ino, len(numbers))}")
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        said.append(f"device={os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
    if kind == stat.S_IFLNK:
        said.append(f"target={os.readlink(path)}")
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        said.append(f"{name}={os.getxattr(path, name, follow_symlinks=False).hex()}")
    return " ".join(said)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
