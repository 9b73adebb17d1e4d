"""Pulls as containerd does them, from a snapshotter with scripted layers."""

from collections.abc import Awaitable, Callable, Sequence

import grpc
from grpc import StatusCode

from headstart.store.known_layer import KnownLayer
from mount.snapshotter.snapshot import REF_LABEL
from tests.snapshotter.layers_double import ScriptedLayers, chain_of, layers_of
from tests.snapshotter.serving import SnapshotsClient

Scenario = Callable[[SnapshotsClient, ScriptedLayers], Awaitable[None]]
Run = Callable[..., ScriptedLayers]

APP = layers_of("app")


async def pulled(
    client: SnapshotsClient, layers: Sequence[KnownLayer] = APP, lease: str = "pull"
) -> list[str]:
    """Pull an image as containerd does; the names of its snapshots, the base first."""
    names: list[str] = []
    for position in range(len(layers)):
        parent = names[-1] if names else ""
        names.append(await client.pull_layer(chain_of(layers, position), parent, lease=lease))
        await client.stat(names[-1], lease=lease)
    return names


async def unpacked(client: SnapshotsClient, chain: object, parent: str = "", **labels: str) -> bool:
    """Whether a layer has to be unpacked; the snapshot for that is removed."""
    key = f"k8s.io/9/extract {chain}"
    try:
        await client.prepare(key, parent, {REF_LABEL: str(chain), **labels}, lease="pull")
    except grpc.aio.AioRpcError as error:
        assert error.code() is StatusCode.ALREADY_EXISTS, error
        return False
    await client.remove(key)
    return True
