"""The directories of snapshots: ``ROOT/snapshots/NUMBER/{fs,work}``. All calls block.

``NUMBER.removed-…`` is on its way out.
"""

import errno
import logging
import os
import secrets
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from mount.snapshotter.errors import StartFailed
from mount.snapshotter.snapshot import Kind, Usage

logger = logging.getLogger(__name__)

SNAPSHOTS = "snapshots"
BLOCK_SIZE = 512
"""Of ``st_blocks`` (stat(2))."""
_MEANINGFUL = ":,\\"
"""What has a meaning in overlayfs options; containerd does not escape it."""
_ASIDE = ".removed-"


class SnapshotDirectories:
    """One directory a snapshot, named by its number."""

    def __init__(self, root: Path) -> None:
        """``root`` is ``mount.root``. Raises StartFailed."""
        self.root = root.absolute() / SNAPSHOTS
        if any(sign in str(self.root) for sign in _MEANINGFUL):
            raise StartFailed(f"mount.root {root}: choose a path without any of {_MEANINGFUL}")
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StartFailed(f"mount.root {root}: {error.strerror}") from error

    def upper(self, number: int) -> Path:
        """Where the snapshot's own files are."""
        return self.root / str(number) / "fs"

    def work(self, number: int) -> Path:
        """What overlayfs keeps for itself; active snapshots have it."""
        return self.root / str(number) / "work"

    def make(self, number: int, kind: Kind, owner: tuple[int, int] | None) -> None:
        """Make the directories; ``owner`` (user and group) is that of the parent's root.

        Raises OSError.
        """
        # A number comes again when what it was first given to has failed.
        with suppress(FileNotFoundError):
            self.set_aside(number)
        (self.root / str(number)).mkdir(mode=0o700)
        upper = self.upper(number)
        upper.mkdir()
        # It becomes the root directory of a container, whatever our umask is.
        upper.chmod(0o755)
        if owner is not None:
            os.chown(upper, *owner)
        if kind is Kind.ACTIVE:
            self.work(number).mkdir(mode=0o711)

    def present(self) -> set[int]:
        """The numbers that have a directory. Raises OSError."""
        return {int(name) for name in os.listdir(self.root) if name.isdecimal()}

    def complete(self, number: int) -> bool:
        """Whether a snapshot's own files are there."""
        return self.upper(number).is_dir()

    def set_aside(self, number: int) -> None:
        """Take a directory away from its number; :meth:`delete` is what takes long.

        Raises OSError.
        """
        aside = f"{number}{_ASIDE}{secrets.token_hex(8)}"
        (self.root / str(number)).rename(self.root / aside)

    def aside(self) -> list[Path]:
        """What was set aside and still is there. Raises OSError."""
        return [self.root / name for name in os.listdir(self.root) if _ASIDE in name]

    def delete(self, directory: Path) -> None:
        """Delete what was set aside; what stays is logged and tried again later."""

        def complain(_: object, path: str, error: tuple[object, object, object]) -> None:
            if not isinstance(error[1], FileNotFoundError):
                logger.warning("snapshots: %s stays: %s", path, error[1])

        shutil.rmtree(directory, onerror=complain)

    def usage(self, number: int) -> Usage:
        """Count allocated blocks and inodes; hard links once. What vanishes meanwhile is left out.

        Raises OSError.
        """
        seen: set[tuple[int, int]] = set()
        size = 0
        waiting = [str(self.upper(number))]
        while waiting:
            path = waiting.pop()
            try:
                found = os.lstat(path)
                identity = found.st_dev, found.st_ino
                if identity in seen:
                    continue
                seen.add(identity)
                size += found.st_blocks * BLOCK_SIZE
                if stat.S_ISDIR(found.st_mode):
                    waiting += [f"{path}/{name}" for name in os.listdir(path)]
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
        return Usage(size, len(seen))
