"""A snapshotter on a Unix socket, and a client that speaks to it as containerd does."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from mount.snapshotter.layers import Layers
from mount.snapshotter.messages import MESSAGES, SERVICE
from mount.snapshotter.server import serve
from mount.snapshotter.snapshot import REF_LABEL, Mount, Usage
from tests.snapshotter.layers_double import ScriptedLayers

NAMESPACE = "k8s.io"


class SnapshotsClient:
    """Calls over the socket; grpc.aio.AioRpcError where an answer is an error."""

    def __init__(self, socket: Path) -> None:
        # It may be there before the server is.
        options = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 50)]
        self._channel = grpc.aio.insecure_channel(
            f"unix:{socket}", [*options, ("grpc.min_reconnect_backoff_ms", 20)]
        )

    async def __aenter__(self) -> "SnapshotsClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def connected(self, deadline: float = 20.0) -> None:
        """Wait until the server listens."""
        async with asyncio.timeout(deadline):
            await self._channel.channel_ready()

    async def prepare(
        self,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        *,
        namespace: str | None = NAMESPACE,
        lease: str | None = None,
    ) -> list[Mount]:
        request = MESSAGES["PrepareSnapshotRequest"](key=key, parent=parent, labels=labels or {})
        metadata = _metadata(namespace, lease)
        return _mounts(await self._call("Prepare", request, "PrepareSnapshotResponse", metadata))

    async def view(self, key: str, parent: str = "") -> list[Mount]:
        request = MESSAGES["ViewSnapshotRequest"](key=key, parent=parent)
        return _mounts(await self._call("View", request, "ViewSnapshotResponse"))

    async def mounts(self, key: str) -> list[Mount]:
        return _mounts(
            await self._call("Mounts", MESSAGES["MountsRequest"](key=key), "MountsResponse")
        )

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        request = MESSAGES["CommitSnapshotRequest"](name=name, key=key, labels=labels or {})
        await self._call("Commit", request, "Empty")

    async def remove(self, key: str) -> None:
        await self._call("Remove", MESSAGES["RemoveSnapshotRequest"](key=key), "Empty")

    async def stat(
        self,
        key: str,
        *,
        namespace: str | None = NAMESPACE,
        lease: str | None = None,
        deadline: float = 20.0,
    ) -> Any:
        request = MESSAGES["StatSnapshotRequest"](key=key)
        metadata = _metadata(namespace, lease)
        answer = await self._call("Stat", request, "StatSnapshotResponse", metadata, deadline)
        return answer.info

    async def update(self, name: str, labels: Mapping[str, str], *paths: str, **more: str) -> Any:
        info = MESSAGES["Info"](name=name, labels=labels, **more)
        request = MESSAGES["UpdateSnapshotRequest"](info=info)
        request.update_mask.paths.extend(paths)
        return (await self._call("Update", request, "UpdateSnapshotResponse")).info

    async def list(
        self, *filters: str, namespace: str | None = NAMESPACE, lease: str | None = None
    ) -> list[Any]:
        call = self._channel.unary_stream(
            f"/{SERVICE}/List",
            request_serializer=_serialized,
            response_deserializer=MESSAGES["ListSnapshotsResponse"].FromString,
        )
        request = MESSAGES["ListSnapshotsRequest"](filters=filters)
        found: list[Any] = []
        async for answer in call(request, metadata=_metadata(namespace, lease), timeout=20):
            found += answer.info
        return found

    async def names(self, *filters: str) -> set[str]:
        """The names of what is listed."""
        return {info.name for info in await self.list(*filters)}

    async def usage(self, key: str) -> Usage:
        answer = await self._call("Usage", MESSAGES["UsageRequest"](key=key), "UsageResponse")
        return Usage(answer.size, answer.inodes)

    async def cleanup(self) -> None:
        await self._call("Cleanup", MESSAGES["CleanupRequest"](), "Empty")

    async def pull_layer(
        self,
        chain: object,
        parent: str,
        *,
        lease: str | None = "pull",
        namespace: str = NAMESPACE,
        nameless: bool = False,
    ) -> str:
        """What containerd does with a layer up to its Stat; the name of the snapshot.

        ``nameless``: as for a client on its socket, whose lease and namespace it does not tell.
        """
        said = None if nameless else namespace
        lease = None if nameless else lease
        try:
            await self.prepare(
                f"{namespace}/1/extract {chain}",
                parent,
                {REF_LABEL: str(chain)},
                namespace=said,
                lease=lease,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise
        else:
            raise AssertionError(f"{chain} has to be unpacked")
        listed = await self.list(
            f'labels."{REF_LABEL}"=={chain},parent=="{parent}"', namespace=said, lease=lease
        )
        assert listed and listed[0].parent == parent and listed[0].kind == 3
        assert listed[0].labels[REF_LABEL] == str(chain)
        return str(listed[0].name)

    async def _call(
        self,
        method: str,
        request: Any,
        response: str,
        metadata: Sequence[tuple[str, str]] = (("containerd-namespace", NAMESPACE),),
        deadline: float = 20.0,
    ) -> Any:
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=_serialized,
            response_deserializer=MESSAGES[response].FromString,
        )
        return await call(request, metadata=metadata, timeout=deadline)


@asynccontextmanager
async def served(
    root: Path, layers: Layers, repositories: Sequence[str] = ("*",)
) -> AsyncIterator[SnapshotsClient]:
    """A client of a snapshotter that runs in this process until the block ends."""
    directory = Path(tempfile.mkdtemp(prefix="snapshots-"))
    socket = directory / "run" / "snapshotter.sock"
    serving = asyncio.create_task(serve(socket, root, layers, repositories))
    try:
        async with SnapshotsClient(socket) as client:
            connecting = asyncio.create_task(client.connected())
            await asyncio.wait({serving, connecting}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)
                serving.result()
            await connecting
            yield client
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        shutil.rmtree(directory)
    if not serving.cancelled():
        serving.result()


def run_served(
    root: Path, directory: Path, scenario: Callable[[SnapshotsClient], Awaitable[None]]
) -> None:
    """Run a scenario against a snapshotter that knows no layers."""

    async def run() -> None:
        async with served(root, ScriptedLayers(directory)) as client:
            await scenario(client)

    asyncio.run(run())


@asynccontextmanager
async def failing(code: grpc.StatusCode, *words: str) -> AsyncIterator[None]:
    """What is in the block is answered with this status, and a text that has these words."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        assert error.code() is code, f"{error.code()}: {error.details()}"
        for word in words:
            assert word in (error.details() or "")
    else:
        raise AssertionError(f"no {code}")


def _metadata(namespace: str | None, lease: str | None) -> list[tuple[str, str]]:
    said = {"containerd-namespace": namespace, "containerd-lease": lease}
    return [(name, value) for name, value in said.items() if value is not None]


def _serialized(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _mounts(answer: Any) -> list[Mount]:
    return [Mount(one.type, one.source, tuple(one.options)) for one in answer.mounts]
