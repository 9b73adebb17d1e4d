"""containerd's snapshots service over gRPC: messages in, messages and status out."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio

from mount.snapshotter.errors import SnapshotError
from mount.snapshotter.messages import MESSAGES, SERVICE
from mount.snapshotter.snapshot import Caller
from mount.snapshotter.snapshotter import Snapshotter
from mount.snapshotter.status import STATUS
from mount.snapshotter.translation import info_message, mount_messages

logger = logging.getLogger(__name__)

INFOS_IN_A_MESSAGE = 100
"""Labels are up to 4 KiB each, and containerd takes messages of 16 MiB."""

_Method = Callable[[Any, Caller], Awaitable[Any]]


class SnapshotService:
    """The methods, each a message in and a message out."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server of grpc.aio is given."""
        methods = {
            "Prepare": (self._prepare, "PrepareSnapshotRequest"),
            "View": (self._view, "ViewSnapshotRequest"),
            "Mounts": (self._mounts, "MountsRequest"),
            "Commit": (self._commit, "CommitSnapshotRequest"),
            "Remove": (self._remove, "RemoveSnapshotRequest"),
            "Stat": (self._stat, "StatSnapshotRequest"),
            "Update": (self._update, "UpdateSnapshotRequest"),
            "Usage": (self._usage, "UsageRequest"),
            "Cleanup": (self._cleanup, "CleanupRequest"),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(name, method),
                request_deserializer=MESSAGES[request].FromString,
                response_serializer=_serialized,
            )
            for name, (method, request) in methods.items()
        }
        handlers["List"] = grpc.unary_stream_rpc_method_handler(
            self._list,
            request_deserializer=MESSAGES["ListSnapshotsRequest"].FromString,
            response_serializer=_serialized,
        )
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def _prepare(self, request: Any, caller: Caller) -> Any:
        mounts = await self._snapshotter.prepare(
            request.key, request.parent, dict(request.labels), caller
        )
        if mounts is None:
            raise _LayerIsHere
        return MESSAGES["PrepareSnapshotResponse"](mounts=mount_messages(mounts))

    async def _view(self, request: Any, _: Caller) -> Any:
        mounts = await self._snapshotter.view(request.key, request.parent, dict(request.labels))
        return MESSAGES["ViewSnapshotResponse"](mounts=mount_messages(mounts))

    async def _mounts(self, request: Any, _: Caller) -> Any:
        mounts = await self._snapshotter.mounts(request.key)
        return MESSAGES["MountsResponse"](mounts=mount_messages(mounts))

    async def _commit(self, request: Any, _: Caller) -> Any:
        await self._snapshotter.commit(request.name, request.key, dict(request.labels))
        return MESSAGES["Empty"]()

    async def _remove(self, request: Any, _: Caller) -> Any:
        await self._snapshotter.remove(request.key)
        return MESSAGES["Empty"]()

    async def _stat(self, request: Any, caller: Caller) -> Any:
        snapshot = await self._snapshotter.stat(request.key, caller)
        return MESSAGES["StatSnapshotResponse"](info=info_message(snapshot))

    async def _update(self, request: Any, _: Caller) -> Any:
        snapshot = await self._snapshotter.update(
            request.info.name, dict(request.info.labels), list(request.update_mask.paths)
        )
        return MESSAGES["UpdateSnapshotResponse"](info=info_message(snapshot))

    async def _usage(self, request: Any, _: Caller) -> Any:
        usage = await self._snapshotter.usage(request.key)
        return MESSAGES["UsageResponse"](size=usage.size, inodes=usage.inodes)

    async def _cleanup(self, request: Any, _: Caller) -> Any:
        await self._snapshotter.cleanup()
        return MESSAGES["Empty"]()

    async def _list(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            found = await self._snapshotter.walk(list(request.filters), _caller_of(context))
        except Exception as error:
            await _abort("List", context, error)
        for start in range(0, len(found), INFOS_IN_A_MESSAGE):
            infos = map(info_message, found[start : start + INFOS_IN_A_MESSAGE])
            yield MESSAGES["ListSnapshotsResponse"](info=infos)


class _LayerIsHere(Exception):
    """The answer to Prepare that is an error to gRPC alone."""


def _answering(
    name: str, method: _Method
) -> Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]:
    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await method(request, _caller_of(context))
        except _LayerIsHere:
            text = "the layer is here already"
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, text)
        except Exception as error:
            await _abort(name, context, error)

    return answer


async def _abort(name: str, context: grpc.aio.ServicerContext, error: Exception) -> NoReturn:
    if isinstance(error, SnapshotError):
        logger.debug("snapshots: %s: %s", name, error)
        await context.abort(STATUS[type(error)], str(error))
    logger.error("snapshots: %s failed", name, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
    raise AssertionError("unreachable")


def _caller_of(context: grpc.aio.ServicerContext) -> Caller:
    metadata: Sequence[tuple[str, str]] = context.invocation_metadata() or ()
    said = dict(metadata)
    return Caller(said.get("containerd-namespace") or None, said.get("containerd-lease") or None)


def _serialized(message: Any) -> bytes:
    return bytes(message.SerializeToString())
