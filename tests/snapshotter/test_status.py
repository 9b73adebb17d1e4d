"""Every error of a snapshot has its gRPC status."""

from collections.abc import Iterator

from grpc import StatusCode

from mount.snapshotter.errors import SnapshotError
from mount.snapshotter.status import STATUS


def below(kind: type[SnapshotError]) -> Iterator[type[SnapshotError]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


def test_every_error_is_in_the_table_and_nothing_else() -> None:
    assert set(below(SnapshotError)) == set(STATUS)


def test_no_error_of_a_layer_says_that_it_is_not_there() -> None:
    gone = [kind.__name__ for kind, code in STATUS.items() if code is StatusCode.NOT_FOUND]
    assert gone == ["SnapshotMissing"]
