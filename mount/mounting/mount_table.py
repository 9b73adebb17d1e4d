"""What is mounted where, as /proc/self/mountinfo says it (proc_pid_mountinfo(5))."""

import os
import re
import select
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")

_ESCAPED = re.compile(rb"\\([0-7]{3})")
_FIXED_FIELDS = 6
"""Mount ID, parent ID, MAJOR:MINOR, root, mount point, options; then optional ones, then ``-``."""


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One mount: ``kind`` is the file system's name, ``source`` what was mounted.

    ``options`` are the mount's own, ``file_system_options`` those that all its mounts share.
    """

    path: Path
    kind: str
    source: str
    device: tuple[int, int]
    options: tuple[str, ...]
    file_system_options: tuple[str, ...]


def parse_mountinfo(content: bytes) -> list[MountPoint]:
    """All mounts, later ones on top of earlier ones at the same path. Raises ValueError."""
    # Not splitlines, which takes a carriage return for an end too: paths may have one.
    return [_parse_line(line) for line in content.split(b"\n") if line]


def _parse_line(line: bytes) -> MountPoint:
    fields = line.split(b" ")
    try:
        separator = fields.index(b"-", _FIXED_FIELDS)
        kind, source, of_file_system = fields[separator + 1 : separator + 4]
        major, _, minor = fields[2].partition(b":")
        return MountPoint(
            Path(os.fsdecode(unescape(fields[4]))),
            os.fsdecode(unescape(kind)),
            os.fsdecode(unescape(source)),
            (int(major), int(minor)),
            tuple(os.fsdecode(fields[5]).split(",")),
            tuple(os.fsdecode(unescape(of_file_system)).split(",")),
        )
    except ValueError:
        raise ValueError(f"{MOUNTINFO}: a line of another form: {line[:200]!r}") from None


def unescape(field: bytes) -> bytes:
    """Blank, tab, newline and backslash are written as three octal digits behind a backslash."""
    return _ESCAPED.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), field)


def mount_points() -> list[MountPoint]:
    """What is mounted now. Raises OSError."""
    return parse_mountinfo(MOUNTINFO.read_bytes())


def mounted_at(path: Path) -> list[MountPoint]:
    """The mounts at ``path``, the top one last."""
    return [point for point in mount_points() if point.path == path]


def mounted_below(directory: Path) -> Iterator[MountPoint]:
    """The mounts whose mount point is directly in ``directory``."""
    return (point for point in mount_points() if point.path.parent == directory)


class MountChanges:
    """Tells when anything has been mounted or unmounted; blocks, so use it in a thread."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._file = open(MOUNTINFO, "rb", buffering=0)  # noqa: SIM115
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)

    def wait(self, seconds: float) -> bool:
        """Wait for a change at most ``seconds``; whether there was one."""
        return bool(self._poll.poll(seconds * 1000))

    def close(self) -> None:
        """Stop to watch."""
        self._file.close()
