"""The messages of containerd's snapshots API, made at import from the table below.

Names, numbers and types of the fields: api/services/snapshots/v1/snapshots.proto and
api/types/mount.proto of containerd, which have been stable since its 1.0; fields that are not
listed are skipped by protobuf.
"""

from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    empty_pb2,
    field_mask_pb2,
    message_factory,
    timestamp_pb2,
)

SERVICE = "containerd.services.snapshots.v1.Snapshots"

_PACKAGE = SERVICE.rpartition(".")[0]
_TIMESTAMP = "google.protobuf.Timestamp"
_REQUEST = "snapshotter:string=1"
_CREATION = f"{_REQUEST} key:string=2 parent:string=3 labels:map=4"
_MOUNTED = "mounts:*containerd.types.Mount=1"
_MESSAGES = {
    "containerd.types": {
        "Mount": "type:string=1 source:string=2 target:string=3 options:*string=4",
    },
    _PACKAGE: {
        "Info": f"name:string=1 parent:string=2 kind:{_PACKAGE}.Kind=3 "
        f"created_at:{_TIMESTAMP}=4 updated_at:{_TIMESTAMP}=5 labels:map=6",
        "PrepareSnapshotRequest": _CREATION,
        "PrepareSnapshotResponse": _MOUNTED,
        "ViewSnapshotRequest": _CREATION,
        "ViewSnapshotResponse": _MOUNTED,
        "MountsRequest": f"{_REQUEST} key:string=2",
        "MountsResponse": _MOUNTED,
        "RemoveSnapshotRequest": f"{_REQUEST} key:string=2",
        "CommitSnapshotRequest": f"{_REQUEST} name:string=2 key:string=3 labels:map=4",
        "StatSnapshotRequest": f"{_REQUEST} key:string=2",
        "StatSnapshotResponse": f"info:{_PACKAGE}.Info=1",
        "UpdateSnapshotRequest": f"{_REQUEST} info:{_PACKAGE}.Info=2 "
        "update_mask:google.protobuf.FieldMask=3",
        "UpdateSnapshotResponse": f"info:{_PACKAGE}.Info=1",
        "ListSnapshotsRequest": f"{_REQUEST} filters:*string=2",
        "ListSnapshotsResponse": f"info:*{_PACKAGE}.Info=1",
        "UsageRequest": f"{_REQUEST} key:string=2",
        "UsageResponse": "size:int64=1 inodes:int64=2",
        "CleanupRequest": _REQUEST,
    },
}
"""``name:type=number``; ``*`` repeats, ``map`` is from string to string."""
_KINDS = {"UNKNOWN": 0, "VIEW": 1, "ACTIVE": 2, "COMMITTED": 3}

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {"string": _Field.TYPE_STRING, "int64": _Field.TYPE_INT64}
_WELL_KNOWN = (empty_pb2, field_mask_pb2, timestamp_pb2)


def _file(package: str) -> Any:
    """The description of one package."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3"
    )
    if package == _PACKAGE:
        file.dependency.extend(module.DESCRIPTOR.name for module in _WELL_KNOWN)
        file.dependency.append("containerd.types.proto")
        kinds = file.enum_type.add(name="Kind")
        for name, number in _KINDS.items():
            kinds.value.add(name=name, number=number)
    for name, fields in _MESSAGES[package].items():
        message = file.message_type.add(name=name)
        for text in fields.split():
            _add_field(message, f"{package}.{name}", text)
    return file


def _add_field(message: Any, full_name: str, text: str) -> None:
    name, _, described = text.partition(":")
    kind, _, number = described.partition("=")
    field = message.field.add(name=name, number=int(number))
    repeated = kind.startswith("*") or kind == "map"
    field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    kind = kind.removeprefix("*")
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    elif kind == "map":
        # A map is a repeated message of this name (Protocol Buffers, "Maps": compatibility).
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        for position, part in enumerate(("key", "value"), start=1):
            entry.field.add(
                name=part, number=position, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL
            )
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{full_name}.{entry.name}"
    else:
        is_kind = kind.endswith(".Kind")
        field.type = _Field.TYPE_ENUM if is_kind else _Field.TYPE_MESSAGE
        field.type_name = f".{kind}"


def _made() -> dict[str, Any]:
    """All message classes by their names."""
    # A pool of its own: another copy of containerd's API in this process does no harm.
    pool = descriptor_pool.DescriptorPool()
    for module in _WELL_KNOWN:
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    for package in _MESSAGES:
        pool.AddSerializedFile(_file(package).SerializeToString())
    names = {
        name: f"{package}.{name}" for package, messages in _MESSAGES.items() for name in messages
    }
    names["Empty"] = "google.protobuf.Empty"
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(full_name))
        for name, full_name in names.items()
    }


MESSAGES = _made()
"""``MESSAGES["Info"](name="x")``."""
