"""Layers that are mounted instead of unpacked: the wait of their pull, and their end."""

import asyncio
from dataclasses import replace

import pytest
from grpc import StatusCode

from headstart.store.known_layer import KnownLayer
from mount.snapshotter.errors import LayerUnavailable
from mount.snapshotter.snapshot import REF_LABEL, Usage
from tests.snapshotter.layers_double import ScriptedLayers, chain_of, layers_of
from tests.snapshotter.pulling import APP, Run, pulled, unpacked
from tests.snapshotter.serving import SnapshotsClient, failing


def test_the_pull_waits_in_stat_and_nobody_else_does(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        gate = layers.hold("mountable", APP[0])
        layers.hold("verified urgently", APP[0])
        name = await client.pull_layer(chain_of(APP, 0), "")
        pull = asyncio.create_task(client.stat(name, lease="pull"))
        await layers.reached("mountable", APP[0])
        assert (await client.stat(name, deadline=10.0)).name == name
        await client.prepare("container")
        assert await client.usage(name) == Usage(0, 0)
        await client.cleanup()
        assert not pull.done()
        gate.set()
        assert (await pull).name == name
        assert layers.mounts == [APP[0].digest]

    run(scenario)


def test_a_client_that_gives_up_leaves_no_trace(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        gate = layers.hold("mountable", APP[0])
        name = await client.pull_layer(chain_of(APP, 0), "")
        async with failing(StatusCode.DEADLINE_EXCEEDED):
            await client.stat(name, lease="pull", deadline=0.2)
        gate.set()
        assert not await unpacked(client, chain_of(APP, 0))
        await client.stat(name, lease="pull")

    run(scenario)


@pytest.mark.parametrize("refused", [True, False])
@pytest.mark.parametrize("step", ["mountable", "mounted"])
def test_f51_a_layer_that_fails_ends_the_pull_and_the_retry_unpacks_it(
    run: Run, refused: bool, step: str
) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        layers.fail(step, APP[1], LayerUnavailable("chunk 3 is wrong", refused=refused))
        (base,) = await pulled(client, APP[:1])
        name = await client.pull_layer(chain_of(APP, 1), base)
        async with failing(StatusCode.UNAVAILABLE, "chunk 3 is wrong"):
            await client.stat(name, lease="pull")
        await client.remove(name)
        layers.recover(step, APP[1])
        assert await unpacked(client, chain_of(APP, 1), base)
        assert not await unpacked(client, chain_of(APP, 0))

    run(scenario)
    # Not forgotten by a restart.
    run(_is_unpacked)


async def _is_unpacked(client: SnapshotsClient, layers: ScriptedLayers) -> None:
    (base,) = [name for name in await client.names() if str(chain_of(APP, 0)) in name]
    assert await unpacked(client, chain_of(APP, 1), base)


def test_a_failure_that_may_pass_is_forgotten(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mount.snapshotter.remote.FAILED_SECONDS", 0.0)

    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        layers.fail("mountable", APP[0], LayerUnavailable("the upstream is down"))
        name = await client.pull_layer(chain_of(APP, 0), "")
        async with failing(StatusCode.UNAVAILABLE, "the upstream is down"):
            await client.stat(name, lease="pull")
        layers.recover("mountable", APP[0])
        assert not await unpacked(client, chain_of(APP, 0))
        layers.fail("mountable", APP[0], LayerUnavailable("it is hostile", refused=True))
        async with failing(StatusCode.UNAVAILABLE, "it is hostile"):
            await client.stat(name, lease="pull")
        assert await unpacked(client, chain_of(APP, 0))

    run(scenario)


def test_pulls_at_once_share_one_snapshot_and_both_have_prepared_it(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        layers.hold("verified", APP[0])
        layers.hold("verified urgently", APP[0])
        leases = [f"pull {number}" for number in range(8)]
        names = await asyncio.gather(
            *(client.pull_layer(chain_of(APP, 0), "", lease=lease) for lease in leases)
        )
        assert len(set(names)) == 1
        await asyncio.gather(*(client.stat(names[0], lease=lease) for lease in leases))

    run(scenario)


def test_each_namespace_has_its_own_snapshot_of_a_layer(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        mine = await client.pull_layer(chain_of(APP, 0), "", namespace="one")
        other = await client.pull_layer(chain_of(APP, 0), "", namespace="two")
        assert mine.startswith("one/") and other.startswith("two/")
        assert await client.pull_layer(chain_of(APP, 0), "", namespace="one") == mine
        await client.remove(mine)
        await client.cleanup()
        assert layers.unmounted == []
        await client.remove(other)
        await client.cleanup()
        assert layers.unmounted == [APP[0].digest]

    run(scenario)


def test_another_layer_for_the_same_chain_id_has_a_snapshot_of_its_own(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        first = await client.pull_layer(chain_of(APP, 0), "")
        (elsewhere,) = layers_of("elsewhere", 1, repository="other/app")
        same = KnownLayer(
            elsewhere.upstream,
            elsewhere.repository,
            elsewhere.digest,
            elsewhere.size,
            APP[0].diff_id,
            elsewhere.media_type,
        )
        layers.add([same])
        second = await client.pull_layer(chain_of(APP, 0), "", lease="other")
        assert second != first
        await client.stat(second, lease="other")
        assert layers.mounts == [same.digest]

    run(scenario)


def test_a_layer_is_unmounted_after_its_last_snapshot_and_not_in_remove(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        names = await pulled(client)
        async with failing(StatusCode.FAILED_PRECONDITION, "children"):
            await client.remove(names[0])
        for name in reversed(names):
            await client.remove(name)
        assert layers.unmounted == []
        layers.fail("unmount", APP[1], LayerUnavailable("it is busy"))
        await client.cleanup()
        assert set(layers.unmounted) == {APP[0].digest, APP[2].digest}
        layers.recover("unmount", APP[1])
        await client.cleanup()
        assert len(layers.unmounted) == 3
        await client.cleanup()
        assert len(layers.unmounted) == 3

    run(scenario)


def test_a_layer_that_is_pulled_again_before_the_cleanup_stays(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        (name,) = await pulled(client, APP[:1])
        await client.remove(name)
        await pulled(client, APP[:1])
        await client.cleanup()
        assert layers.unmounted == []

    run(scenario)


def test_a_layer_that_is_pulled_again_during_the_unmount_is_mounted_after_it(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        (name,) = await pulled(client, APP[:1])
        await client.remove(name)
        gate = layers.hold("unmount", APP[0])
        cleanup = asyncio.create_task(client.cleanup())
        await layers.reached("unmount", APP[0])
        again = await client.pull_layer(chain_of(APP, 0), "")
        pull = asyncio.create_task(client.stat(again, lease="pull"))
        asked = len(layers.mounts)
        assert (await client.stat(again)).name == again
        assert len(layers.mounts) == asked
        gate.set()
        await asyncio.gather(cleanup, pull)
        assert layers.unmounted == [APP[0].digest] and len(layers.mounts) == asked + 1

    run(scenario)


def test_every_answer_with_mounts_has_looked_at_the_layers_below(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        names = await pulled(client)
        for call in (
            client.prepare("container", names[-1]),
            client.mounts("container"),
            client.view("view", names[0]),
        ):
            layers.mounts.clear()
            await call
            assert layers.mounts
        layers.mounts.clear()
        await client.mounts("container")
        assert set(layers.mounts) == {layer.digest for layer in APP}

    run(scenario)


def test_a_layer_that_cannot_be_mounted_again_fails_the_creation_and_leaves_no_row(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        names = await pulled(client)
        await client.prepare("running", names[-1])
        layers.fail("mounted", APP[1], LayerUnavailable("EIO"))
        for call in (client.prepare("container", names[-1]), client.mounts("running")):
            async with failing(StatusCode.UNAVAILABLE, "EIO"):
                await call
        layers.recover("mounted", APP[1])
        gate = layers.hold("mounted", APP[1])
        monkeypatch.setattr("mount.snapshotter.snapshotter.REMOUNT_SECONDS", 0.1)
        async with failing(StatusCode.UNAVAILABLE, "try again"):
            await client.prepare("container", names[-1])
        assert "container" not in await client.names()
        monkeypatch.undo()
        gate.set()
        await client.prepare("container", names[-1])

    run(scenario)


def test_f46_a_restart_knows_the_layers_in_use(run: Run) -> None:
    async def first(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        names = await pulled(client)
        await client.remove(names[-1])

    async def second(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        assert set(layers.adopted) == {layer.digest for layer in APP[:2]}
        await client.cleanup()
        assert layers.unmounted == [APP[2].digest]
        assert len(await client.names()) == 2

    run(first)
    run(second)


@pytest.mark.parametrize("step", ["verified", "mounted"])
def test_nobody_goes_on_with_a_layer_whose_last_snapshot_is_gone(run: Run, step: str) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        name = await client.pull_layer(chain_of(APP, 0), "")
        layers.hold("verified", APP[0])
        if step == "verified":
            await client.stat(name, lease="pull")
        else:
            layers.hold("mounted", APP[0])
            waiting = asyncio.create_task(client.stat(name, lease="pull"))
        await layers.reached(step, APP[0])
        await client.remove(name)
        await client.cleanup()
        assert layers.unmounted == [APP[0].digest]
        assert layers.waiting == set()
        if step == "mounted":
            async with failing(StatusCode.UNAVAILABLE, "its last snapshot was removed"):
                await waiting

    run(scenario)


def test_a_pull_finds_what_it_has_prepared_itself(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        chain, place = chain_of(APP, 0), f'labels."{REF_LABEL}"=={chain_of(APP, 0)},parent==""'
        mine = await client.pull_layer(chain, "", lease="mine")
        other = replace(layers_of("other", 1)[0], diff_id=APP[0].diff_id)
        layers.add([other])
        theirs = await client.pull_layer(chain, "", lease="theirs")
        assert mine != theirs
        for lease, name in (("mine", mine), ("theirs", theirs)):
            assert (await client.list(place, lease=lease))[0].name == name

    run(scenario)
