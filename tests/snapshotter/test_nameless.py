"""Pulls of clients on containerd's socket: neither their namespace nor their lease is told."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from grpc import StatusCode

from headstart.content.digest import Digest
from mount.snapshotter import nameless
from mount.snapshotter.errors import LayerUnavailable
from mount.snapshotter.nameless import NamelessPulls
from mount.snapshotter.snapshot import REF_LABEL, namespace_of
from tests.snapshotter.layers_double import ScriptedLayers, chain_of, layers_of
from tests.snapshotter.serving import SnapshotsClient, failing, served

APP = layers_of("app", 2)
BASE, TOP = chain_of(APP, 0), chain_of(APP, 1)
FILTER = f'labels."{REF_LABEL}"=={BASE},parent==""'

Scenario = Callable[[SnapshotsClient, ScriptedLayers], Awaitable[None]]


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Callable[[Scenario], None]:
    """Run a scenario against a snapshotter whose layers know the image APP."""

    def run(scenario: Scenario) -> None:
        async def scene() -> None:
            layers = ScriptedLayers(tmp_path / "layers")
            layers.add(APP)
            async with served(root, layers) as client, asyncio.timeout(60):
                await scenario(client, layers)

        asyncio.run(scene())

    return run


Run = Callable[[Scenario], None]


async def pull(client: SnapshotsClient, namespace: str, chain: Digest, parent: str = "") -> str:
    return await client.pull_layer(chain, parent, namespace=namespace, nameless=True)


@pytest.mark.parametrize(
    ("key", "namespace"),
    [
        ("k8s.io/12/extract-1 sha256:00", "k8s.io"),
        ("a_b.c/1/x/y", "a_b.c"),
        ("container", None),
        ("k8s.io/layer/7", None),
        ("k8s.io/7", None),
        ("/7/x", None),
        ("", None),
    ],
)
def test_the_namespace_is_in_keys_that_containerd_makes(key: str, namespace: str | None) -> None:
    assert namespace_of(key) == namespace


def test_an_image_is_mounted_in_the_namespace_of_its_key(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        base = await pull(client, "mine", BASE)
        await client.stat(base, namespace=None)
        top = await pull(client, "mine", TOP, base)
        await client.stat(top, namespace=None)
        assert base.startswith("mine/layer/") and top.startswith("mine/layer/")
        assert layers.mounts == [layer.digest for layer in APP]

    run(scenario)


def test_the_pull_waits_for_its_layer_and_nobody_else_does(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        gate = layers.hold("mountable", APP[0])
        layers.hold("verified", APP[0])
        layers.hold("verified urgently", APP[0])
        name = await pull(client, "mine", BASE)
        waiting = asyncio.create_task(client.stat(name, namespace=None))
        await layers.reached("mountable", APP[0])
        assert (await client.stat(name)).name == name, "statistics"
        assert not waiting.done()
        gate.set()
        await waiting
        # A container is made of it now, without waiting for the rest.
        await client.stat(name, namespace=None)
        await client.prepare("mine/2/container", name, namespace=None)

    run(scenario)


def test_a_failure_ends_the_pull_and_the_retry_unpacks_it(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        layers.fail("mountable", APP[0], LayerUnavailable("the upstream is down"))
        name = await pull(client, "mine", BASE)
        for _ in range(2):
            async with failing(StatusCode.UNAVAILABLE, "the upstream is down"):
                await client.stat(name, namespace=None)
        await client.remove(name)
        layers.recover("mountable", APP[0])
        assert await client.prepare(
            f"mine/3/extract {BASE}", "", {REF_LABEL: str(BASE)}, namespace=None
        )

    run(scenario)


def test_who_has_a_lease_waits_until_the_diff_id_is_right(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        layers.hold("verified", APP[0])
        gate = layers.hold("verified urgently", APP[0])
        name = await pull(client, "k8s.io", BASE)
        await client.stat(name, namespace=None)
        other = asyncio.create_task(client.stat(name, lease="kubelet"))
        await layers.reached("verified urgently", APP[0])
        assert not other.done()
        gate.set()
        await other

    run(scenario)


def test_a_base_is_never_found_under_another_namespace(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        mine = await pull(client, "mine", BASE)
        theirs = await pull(client, "theirs", BASE)
        assert mine.startswith("mine/") and theirs.startswith("theirs/")
        assert await pull(client, "mine", BASE) == mine, "though it is the older one"
        assert await client.list(FILTER, namespace=None) == [], "nobody is known to look for it"
        await client.remove(mine)
        await client.cleanup()
        assert layers.unmounted == []

    run(scenario)


def test_two_namespaces_that_pull_a_layer_at_once_do_not_get_each_others(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        labels = {REF_LABEL: str(BASE)}
        for _ in range(2):
            async with failing(StatusCode.ALREADY_EXISTS):
                await client.prepare("mine/1/extract", "", labels, namespace=None)
        # Before containerd has looked for it: which of both it looks for cannot be told.
        assert await client.prepare("theirs/1/extract", "", labels, namespace=None)
        for _ in range(2):
            (found,) = await client.list(FILTER, namespace=None)
            assert found.name.startswith("mine/")
        async with failing(StatusCode.ALREADY_EXISTS):
            await client.prepare("theirs/2/extract", "", labels, namespace=None)

    run(scenario)


def test_who_never_looks_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    pulls = NamelessPulls()
    assert pulls.enter(BASE, "", "mine") and not pulls.enter(BASE, "", "theirs")
    assert pulls.enter(BASE, "parent", "theirs") and pulls.enter(TOP, "", "theirs")
    monkeypatch.setattr(nameless, "LOOKS_SECONDS", 0.0)
    assert pulls.enter(BASE, "", "mine")
    assert pulls.enter(BASE, "", "theirs")


def test_lists_of_all_snapshots_are_answered_to_everybody(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        name = await client.pull_layer(BASE, "")
        await client.prepare("mine/1/container", name, namespace=None)
        assert {info.name for info in await client.list(namespace=None)} == {
            name,
            "mine/1/container",
        }

    run(scenario)
