"""The bytes of the messages, put together by hand after the protocol-buffers encoding."""

from mount.snapshotter.messages import MESSAGES
from mount.snapshotter.snapshot import Kind, Mount, Snapshot
from mount.snapshotter.translation import info_message, mount_messages


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of less than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def test_a_request_is_read() -> None:
    sent = (
        field(1, b"headstart")
        + field(2, b"key")
        + field(3, b"parent")
        + field(4, field(1, b"name") + field(2, b"value"))
    )
    for kind in ("PrepareSnapshotRequest", "ViewSnapshotRequest"):
        read = MESSAGES[kind].FromString(sent)
        assert (read.snapshotter, read.key, read.parent) == ("headstart", "key", "parent")
        assert dict(read.labels) == {"name": "value"}


def test_a_commit_has_the_name_before_the_key() -> None:
    sent = field(2, b"name") + field(3, b"key") + field(4, field(1, b"a") + field(2, b"b"))
    read = MESSAGES["CommitSnapshotRequest"].FromString(sent)
    assert (read.name, read.key, dict(read.labels)) == ("name", "key", {"a": "b"})


def test_a_field_of_a_later_containerd_is_skipped() -> None:
    read = MESSAGES["StatSnapshotRequest"].FromString(field(2, b"key") + field(15, b"new"))
    assert read.key == "key"


def test_an_update_names_its_fields() -> None:
    info = field(1, b"name") + field(6, field(1, b"a") + field(2, b"b"))
    read = MESSAGES["UpdateSnapshotRequest"].FromString(
        field(2, info) + field(3, field(1, b"labels.a"))
    )
    assert read.info.name == "name" and list(read.update_mask.paths) == ["labels.a"]


def test_a_snapshot_is_written() -> None:
    snapshot = Snapshot(5, "n", "p", Kind.COMMITTED, 3_000_000_007, 4_000_000_000, {"a": "b"})
    created = field(4, b"\x08\x03\x10\x07")
    updated = field(5, b"\x08\x04")
    labels = field(6, field(1, b"a") + field(2, b"b"))
    info = field(1, b"n") + field(2, b"p") + b"\x18\x03" + created + updated + labels
    assert info_message(snapshot).SerializeToString() == info
    listed = MESSAGES["ListSnapshotsResponse"](info=[info_message(snapshot)])
    assert listed.SerializeToString() == field(1, info)
    kinds = [info_message(Snapshot(5, "n", "", kind, 0, 0)).kind for kind in Kind]
    assert kinds == [1, 2, 3]


def test_mounts_are_written() -> None:
    answer = MESSAGES["MountsResponse"](mounts=mount_messages([Mount("t", "s", ("a", "b"))]))
    mount = field(1, b"t") + field(2, b"s") + field(4, b"a") + field(4, b"b")
    assert answer.SerializeToString() == field(1, mount)


def test_usage_is_two_integers() -> None:
    assert (
        MESSAGES["UsageResponse"](size=300, inodes=2).SerializeToString() == b"\x08\xac\x02\x10\x02"
    )
