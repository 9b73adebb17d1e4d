"""Which mounts make a snapshot: the answers of containerd's overlayfs snapshotter.

overlayfs options: Documentation/filesystems/overlayfs.rst. From 3584 bytes on containerd changes to
the directory that all lower ones share and names them relatively, so those names are short.
"""

from collections.abc import Sequence
from pathlib import Path

from mount.snapshotter.errors import InvalidRequest
from mount.snapshotter.snapshot import Kind, Mount

MOST_LAYERS = 500
"""Lower directories that an overlay takes (OVL_MAX_STACK, fs/overlayfs/params.h)."""


def mounts_of(kind: Kind, upper: Path, work: Path, lower: Sequence[Path]) -> tuple[Mount, ...]:
    """The mounts of an active snapshot or a view; ``lower`` has the top one first.

    Raises InvalidRequest for more layers than the kernel takes.
    """
    # The kernel refuses a directory that comes twice, and images do have a layer twice. All that
    # the lower one has is hidden by the upper one.
    lower = list(dict.fromkeys(lower))
    if len(lower) > MOST_LAYERS:
        raise InvalidRequest(f"{len(lower)} layers; overlayfs takes {MOST_LAYERS}")
    if not lower:
        return (_bind(upper, writable=kind is Kind.ACTIVE),)
    if kind is not Kind.ACTIVE and len(lower) == 1:
        # overlayfs wants two directories at least.
        return (_bind(lower[0], writable=False),)
    options = ["index=off"]
    if kind is Kind.ACTIVE:
        options += [f"workdir={work}", f"upperdir={upper}"]
    options.append(f"lowerdir={':'.join(map(str, lower))}")
    return (Mount("overlay", "overlay", tuple(options)),)


def _bind(source: Path, *, writable: bool) -> Mount:
    return Mount("bind", str(source), ("rw" if writable else "ro", "rbind"))
