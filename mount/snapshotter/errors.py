"""What can go wrong with a snapshot; ``status.py`` has the table of gRPC codes.

::

    SnapshotError
      InvalidRequest        a filter, name, parent or field that cannot be
      SnapshotMissing       no snapshot of that name
      SnapshotExists        a snapshot of that name is there
      SnapshotInUse         it has children, so it stays
      WrongKind             committed where an active one is wanted, or the other way round
      DirectoryMissing      the files of a snapshot are gone
      LayerUnavailable      a layer cannot be mounted, or not now; the reason is for the operator
      RecordsFailed         the database or its file system refuses
      Stopping              the snapshotter ends
    StartFailed             the snapshotter cannot start: one line with the remedy
"""


class SnapshotError(Exception):
    """An answer to containerd; ``str()`` is one line."""


class InvalidRequest(SnapshotError):
    """A filter, name, parent or field that cannot be."""


class SnapshotMissing(SnapshotError):
    """No snapshot of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"snapshot {name!r} does not exist")


class SnapshotExists(SnapshotError):
    """A snapshot of that name is there."""

    def __init__(self, name: str) -> None:
        super().__init__(f"snapshot {name!r} already exists")


class SnapshotInUse(SnapshotError):
    """Other snapshots lie on it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"snapshot {name!r} has children")


class WrongKind(SnapshotError):
    """Committed where an active one is wanted, or the other way round."""


class DirectoryMissing(SnapshotError):
    """The files of a snapshot are gone: an overlay without them would be another image."""


class LayerUnavailable(SnapshotError):
    """A layer cannot be mounted.

    ``refused`` says that its content is at fault, which waiting does not change; else the next
    attempt may succeed.
    """

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class RecordsFailed(SnapshotError):
    """The database or its file system refuses."""


class Stopping(SnapshotError):
    """The snapshotter ends; the next one goes on."""

    def __init__(self) -> None:
        super().__init__("the snapshotter is stopping; pull again")


class StartFailed(Exception):
    """The snapshotter cannot start; the message is one line with the remedy."""
