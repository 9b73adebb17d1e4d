"""The gRPC status of each error: the one table."""

from grpc import StatusCode

from mount.snapshotter.errors import (
    DirectoryMissing,
    InvalidRequest,
    LayerUnavailable,
    RecordsFailed,
    SnapshotError,
    SnapshotExists,
    SnapshotInUse,
    SnapshotMissing,
    Stopping,
    WrongKind,
)

STATUS: dict[type[SnapshotError], StatusCode] = {
    InvalidRequest: StatusCode.INVALID_ARGUMENT,
    SnapshotMissing: StatusCode.NOT_FOUND,
    SnapshotExists: StatusCode.ALREADY_EXISTS,
    SnapshotInUse: StatusCode.FAILED_PRECONDITION,
    WrongKind: StatusCode.FAILED_PRECONDITION,
    DirectoryMissing: StatusCode.FAILED_PRECONDITION,
    # Never NOT_FOUND: containerd would take the layer for one that it has to prepare again.
    LayerUnavailable: StatusCode.UNAVAILABLE,
    RecordsFailed: StatusCode.UNAVAILABLE,
    Stopping: StatusCode.UNAVAILABLE,
}
