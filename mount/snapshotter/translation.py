"""Between the messages and this package's own types."""

from collections.abc import Iterable
from typing import Any

from mount.snapshotter.messages import MESSAGES
from mount.snapshotter.snapshot import Kind, Mount, Snapshot

_KINDS = {Kind.VIEW: 1, Kind.ACTIVE: 2, Kind.COMMITTED: 3}
_SECOND = 1_000_000_000


def info_message(snapshot: Snapshot) -> Any:
    """The message ``Info``."""
    message = MESSAGES["Info"](
        name=snapshot.name,
        parent=snapshot.parent,
        kind=_KINDS[snapshot.kind],
        labels=dict(snapshot.labels),
    )
    for stamp, time_ns in (
        (message.created_at, snapshot.created),
        (message.updated_at, snapshot.updated),
    ):
        stamp.seconds, stamp.nanos = divmod(time_ns, _SECOND)
    return message


def mount_messages(mounts: Iterable[Mount]) -> list[Any]:
    """Messages ``Mount``."""
    return [
        MESSAGES["Mount"](type=mount.type, source=mount.source, options=mount.options)
        for mount in mounts
    ]
