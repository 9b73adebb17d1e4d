"""Layers before their diff ID is known to be right, and after it was found wrong."""

import asyncio
import itertools
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from mount.snapshotter.errors import LayerUnavailable
from mount.snapshotter.records import FILE
from tests.snapshotter.layers_double import ScriptedLayers, chain_of, layers_of
from tests.snapshotter.pulling import APP, Run, pulled, unpacked
from tests.snapshotter.serving import SnapshotsClient, failing


def test_who_did_not_prepare_the_layer_waits_until_its_diff_id_is_right(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        layers.hold("verified", APP[0])
        name = await client.pull_layer(chain_of(APP, 0), "", lease="first")
        await client.stat(name, lease="first")
        gate = layers.hold("verified urgently", APP[0])
        other = asyncio.create_task(client.stat(name, lease="second"))
        await layers.reached("verified urgently", APP[0])
        await client.stat(name, lease="first")
        assert not other.done()
        gate.set()
        await other
        # From now on it is known, whoever asks and whatever the filler does.
        layers.fail("verified urgently", APP[0], LayerUnavailable("no filler"))
        await client.stat(name, lease="third")

    run(scenario)
    run(_needs_no_filler)


async def _needs_no_filler(client: SnapshotsClient, layers: ScriptedLayers) -> None:
    for step in ("verified", "verified urgently", "mountable"):
        layers.fail(step, APP[0], LayerUnavailable("no filler"))
    (name,) = await client.names()
    await client.stat(name, lease="after a restart")


def test_a_layer_that_is_verified_while_nobody_waits_is_known_to_be(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        gate = layers.hold("verified", APP[0])
        layers.fail("verified urgently", APP[0], LayerUnavailable("no filler"))
        name = await client.pull_layer(chain_of(APP, 0), "", lease="first")
        await client.stat(name, lease="first")
        await layers.reached("verified", APP[0])
        async with failing(StatusCode.UNAVAILABLE, "no filler"):
            await client.stat(name, lease="second")
        gate.set()
        # Before the note is written, it is asked for; after it, it is not.
        while True:
            try:
                await client.stat(name, lease="second")
                break
            except grpc.aio.AioRpcError as error:
                assert "no filler" in str(error.details())

    run(scenario)


@pytest.mark.parametrize("step", ["verified", "verified urgently"])
def test_a_wrong_diff_id_fails_the_other_pull_only(run: Run, step: str) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        reason = "its diff ID is wrong; remove registry.example/team/app:1 first"
        for each in ("verified", "verified urgently"):
            gate = layers.hold(each, APP[0])
            layers.fail(each, APP[0], LayerUnavailable(reason, refused=True))
            if each == step:
                gate.set()
        name = await client.pull_layer(chain_of(APP, 0), "", lease="first")
        await client.stat(name, lease="first")
        if step == "verified urgently":
            async with failing(StatusCode.UNAVAILABLE, reason):
                await client.stat(name, lease="second")
        while not await unpacked(client, chain_of(APP, 0)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    run(scenario)


WRONG = "its diff ID is wrong"


async def _quarantined(client: SnapshotsClient, layers: ScriptedLayers) -> str:
    """Pull the base of APP, run a container and find the layer wrong; the snapshot's name."""
    gate = layers.hold("verified", APP[0])
    for step in ("verified", "verified urgently"):
        layers.fail(step, APP[0], LayerUnavailable(WRONG, refused=True))
    name = await client.pull_layer(chain_of(APP, 0), "")
    await client.stat(name, lease="pull")
    await client.prepare("running", name)
    gate.set()
    while not await unpacked(client, chain_of(APP, 0)):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return name


async def _is_not_mounted(client: SnapshotsClient, layers: ScriptedLayers) -> None:
    (name,) = [name for name in await client.names() if str(chain_of(APP, 0)) in name]
    layers.mounts.clear()
    for call in (
        client.prepare("container", name),
        client.view("view", name),
        client.mounts("running"),
    ):
        async with failing(StatusCode.UNAVAILABLE, WRONG):
            await call
    assert layers.mounts == []
    async with failing(StatusCode.UNAVAILABLE):
        await client.stat(name, lease="pull")


def test_a_quarantined_layer_is_in_no_new_container_after_a_restart_without_the_filler(
    run: Run, root: Path
) -> None:
    async def found(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        await _quarantined(client, layers)
        await _is_not_mounted(client, layers)

    async def removed(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        await _is_not_mounted(client, layers)
        await client.remove("running")
        (name,) = await client.names()
        await client.remove(name)
        await client.cleanup()
        assert layers.unmounted == [APP[0].digest]
        # The image that it pretended to be can be had from then on.
        honest = replace(layers_of("honest", 1)[0], diff_id=APP[0].diff_id)
        layers.add([honest])
        (name,) = await pulled(client, [honest])
        await client.prepare("container", name)
        assert layers.mounts[-1] == honest.digest

    run(found)
    run(_is_not_mounted, unverified=LayerUnavailable("no filler"))
    # What is forgotten is how the next pull goes, not what there is of the first one.
    with closing(sqlite3.connect(root / FILE)) as database, database:
        assert database.execute("DELETE FROM refusal").rowcount == 1
    run(removed, unverified=LayerUnavailable("no filler"))


def test_a_quarantined_layer_that_is_right_after_all_is_mounted_again(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        name = await _quarantined(client, layers)
        for step in ("verified", "verified urgently"):
            layers.recover(step, APP[0])
        for number in itertools.count():
            try:
                await client.prepare(f"container {number}", name)
                break
            except grpc.aio.AioRpcError as error:
                assert WRONG in str(error.details())
        await client.stat(name, lease="another")

    run(scenario)


def test_a_layer_found_to_be_wrong_while_nobody_was_there_is_refused_after_the_start(
    run: Run,
) -> None:
    async def before(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        layers.hold("verified", APP[0])
        name = await client.pull_layer(chain_of(APP, 0), "")
        await client.stat(name, lease="pull")

    async def after(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        while not await unpacked(client, chain_of(APP, 0)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await client.prepare("running")
        async with failing(StatusCode.UNAVAILABLE, WRONG):
            await client.prepare("container", (await client.names()).difference({"running"}).pop())

    run(before)
    run(after, unverified=LayerUnavailable(WRONG, refused=True))


def test_a_failure_that_may_pass_keeps_no_layer_from_a_container(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        layers.hold("verified", APP[0])
        name = await client.pull_layer(chain_of(APP, 0), "")
        await client.stat(name, lease="pull")
        layers.fail("mountable", APP[0], LayerUnavailable("the upstream is down"))
        async with failing(StatusCode.UNAVAILABLE, "the upstream is down"):
            await client.stat(name, lease="pull")
        assert await unpacked(client, chain_of(APP, 0)), "it is remembered"
        await client.prepare("container", name)

    run(scenario)


def test_the_records_of_a_version_that_quarantined_nothing_are_taken_over(
    run: Run, root: Path
) -> None:
    async def before(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        await pulled(client, APP[:1])

    async def after(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        (name,) = await client.names()
        await client.prepare("container", name)

    run(before)
    with closing(sqlite3.connect(root / FILE)) as database:
        database.execute("ALTER TABLE snapshot DROP COLUMN refused")
    run(after)
    run(_found_in_records)


async def _found_in_records(client: SnapshotsClient, layers: ScriptedLayers) -> None:
    """The same is there after one more start."""
    assert len(await client.names()) == 2


def test_who_says_wrong_things_of_a_blob_refuses_it_for_nobody_else(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        layers.hold("verified", APP[0])
        mine = await client.pull_layer(chain_of(APP, 0), "")
        await client.stat(mine, lease="pull")
        lie = replace(APP[0], diff_id=APP[1].diff_id, repository="tenant/app")
        layers.add([lie])
        theirs = await client.pull_layer(lie.diff_id, "")
        layers.fail("mountable", lie, LayerUnavailable(WRONG, refused=True))
        async with failing(StatusCode.UNAVAILABLE, WRONG):
            await client.stat(theirs, lease="pull")
        assert await unpacked(client, lie.diff_id)
        await client.prepare("container", mine)
        assert not await unpacked(client, chain_of(APP, 0))
        async with failing(StatusCode.UNAVAILABLE, WRONG):
            await client.prepare("their container", theirs)

    run(scenario)


def test_a_filler_that_is_away_does_not_refuse_a_layer_for_the_other_pull(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        layers.hold("verified", APP[0])
        layers.fail("verified urgently", APP[0], LayerUnavailable("no filler"))
        name = await client.pull_layer(chain_of(APP, 0), "", lease="first")
        await client.stat(name, lease="first")
        async with failing(StatusCode.UNAVAILABLE, "no filler"):
            await client.stat(name, lease="second")
        layers.recover("verified urgently", APP[0])
        await client.stat(name, lease="second")
        assert not await unpacked(client, chain_of(APP, 0))

    run(scenario)
