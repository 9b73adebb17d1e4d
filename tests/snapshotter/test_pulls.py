"""Layers that are mounted instead of unpacked: choice, wait, trust, end."""

import asyncio
import itertools
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from headstart.content.digest import Digest
from headstart.content.estargz.announced import TOC_DIGEST
from headstart.store.known_layer import KnownChain, KnownLayer
from mount.snapshotter.errors import LayerUnavailable
from mount.snapshotter.records import FILE
from mount.snapshotter.snapshot import IMAGE_REF_LABEL, MANIFEST_LABEL, REF_LABEL, Usage
from tests.snapshotter.layers_double import ScriptedLayers, chain_of, layers_of
from tests.snapshotter.serving import SnapshotsClient, failing, served

Scenario = Callable[[SnapshotsClient, ScriptedLayers], Awaitable[None]]
Run = Callable[..., ScriptedLayers]

APP = layers_of("app")


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Run:
    """Run a scenario against a snapshotter with scripted layers, which know the image APP."""

    def run(
        scenario: Scenario,
        repositories: Sequence[str] = ("*",),
        *,
        unverified: LayerUnavailable | None = None,
    ) -> ScriptedLayers:
        async def scene() -> ScriptedLayers:
            layers = ScriptedLayers(tmp_path / "layers")
            layers.add(APP)
            if unverified is not None:
                for step in ("verified", "verified urgently"):
                    layers.fail(step, APP[0], unverified)
            async with served(root, layers, repositories) as client:
                async with asyncio.timeout(60):
                    await scenario(client, layers)
            return layers

        return asyncio.run(scene())

    return run


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


def test_a_known_image_is_committed_without_its_bytes(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        names = await pulled(client)
        assert [(await client.stat(name)).parent for name in names] == ["", *names[:-1]]
        assert await client.usage(names[0]) == Usage(0, 0)
        (mount,) = await client.prepare("container", names[-1])
        paths = [str(layers.path(layer)) for layer in reversed(APP)]
        assert mount.options[-1] == "lowerdir=" + ":".join(paths)
        assert [chain.position for chain in layers.begun] == [0, 1, 2]

    run(scenario)


def test_the_labels_of_cri_say_which_image_is_meant(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        manifest = "sha256:" + "a" * 64
        said = {MANIFEST_LABEL: manifest, IMAGE_REF_LABEL: "registry.example/team/app:1"}
        assert not await unpacked(client, chain_of(APP, 0), **said)
        asked = chain_of(APP, 0), Digest.parse(manifest), "registry.example/team/app:1"
        assert layers.asked == [asked]

    run(scenario)


@pytest.mark.parametrize("label", ["sha256:" + "b" * 64, "no digest", "sha256:short"])
def test_an_unknown_chain_is_unpacked(run: Run, label: str) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        assert await unpacked(client, label)

    run(scenario)


def test_without_the_label_nobody_is_asked(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        await client.prepare("extract", lease="pull")
        assert layers.asked == []

    run(scenario)


def test_a_filler_that_is_silent_costs_a_pull_one_second_and_not_one_a_layer(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        layers.silent = True
        for position in range(3):
            assert await unpacked(client, chain_of(APP, position))
        assert len(layers.asked) == 1

    run(scenario)


def test_a_filler_that_was_silent_is_asked_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mount.snapshotter.remote.KNOWN_SECONDS", 0.05)
    monkeypatch.setattr("mount.snapshotter.remote.SILENT_SECONDS", 0.0)

    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        layers.silent = True
        assert await unpacked(client, chain_of(APP, 0))
        layers.silent = False
        assert not await unpacked(client, chain_of(APP, 0))

    run(scenario)


def test_a_layer_in_the_middle_is_unpacked_on_layers_that_are_mounted(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        (base,) = await pulled(client, APP[:1])
        (extract,) = await client.prepare("extract", base)
        assert extract.options[-1] == f"lowerdir={layers.path(APP[0])}"
        own = extract.options[-2].partition("upperdir=")[2]
        await client.commit("unpacked", "extract")
        top = await client.pull_layer(chain_of(APP, 2), "unpacked")
        (container,) = await client.prepare("container", top)
        below = [str(layers.path(APP[2])), own, str(layers.path(APP[0]))]
        assert container.options[-1] == "lowerdir=" + ":".join(below)

    run(scenario)


@pytest.mark.parametrize(
    ("patterns", "mounted"),
    [
        (["registry.example/team/*"], True),
        (["other/*", "registry.example/team/app"], True),
        (["registry.example/team"], False),
        (["Registry.example/*"], False),
        ([], False),
    ],
)
def test_only_repositories_on_the_list_are_mounted(
    run: Run, patterns: list[str], mounted: bool
) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        assert await unpacked(client, chain_of(APP, 0)) is not mounted

    assert bool(run(scenario, patterns).begun) is mounted


@pytest.mark.parametrize("said", ["its own", "another", "none"])
def test_a_toc_is_believed_only_where_the_manifest_that_is_pulled_has_it(
    run: Run, said: str
) -> None:
    toc = str(Digest.of(b"toc"))
    theirs = replace(APP[0], annotations={TOC_DIGEST: toc})
    labels = {"its own": {TOC_DIGEST: toc}, "another": {TOC_DIGEST: str(Digest.of(b""))}}

    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        layers.add([theirs])
        found = await unpacked(client, chain_of(APP, 0), **labels.get(said, {}))
        assert found is (said != "its own")

    run(scenario)


@pytest.mark.parametrize("vouched", [True, False])
def test_a_toc_of_zstd_chunked_is_believed_only_where_the_manifest_is_named(
    run: Run, vouched: bool
) -> None:
    prefix = "io.github.containers.zstd-chunked.manifest-"
    said = {f"{prefix}checksum": str(Digest.of(b"toc")), f"{prefix}position": "10:20:30:1"}
    labels = {MANIFEST_LABEL: str(Digest.of(b"manifest"))} if vouched else {}

    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        layers.add([replace(APP[0], annotations=said)])
        assert await unpacked(client, chain_of(APP, 0), **labels) is not vouched

    run(scenario)


def test_an_answer_that_does_not_make_the_chain_id_is_not_believed(run: Run) -> None:
    async def scenario(client: SnapshotsClient, layers: ScriptedLayers) -> None:
        asked = chain_of(APP, 0)
        layers.add_answer(asked, KnownChain(layers_of("planted"), 0))
        assert await unpacked(client, asked)
        (base,) = await pulled(client, layers_of_known(layers, "base"))
        layers.add_answer(asked, KnownChain(APP, 0))
        # A base layer that is said to have a parent.
        assert await unpacked(client, asked, base)

    run(scenario)


def layers_of_known(layers: ScriptedLayers, name: str) -> tuple[KnownLayer, ...]:
    """One more image of one layer."""
    made = layers_of(name, 1)
    layers.add(made)
    return made


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
