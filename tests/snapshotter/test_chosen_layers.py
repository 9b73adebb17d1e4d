"""Which layers of a pull are mounted instead of unpacked."""

from dataclasses import replace

import pytest

from headstart.content.digest import Digest
from headstart.content.estargz.announced import TOC_DIGEST
from headstart.store.known_layer import KnownChain, KnownLayer
from mount.snapshotter.snapshot import IMAGE_REF_LABEL, MANIFEST_LABEL, Usage
from tests.snapshotter.layers_double import ScriptedLayers, chain_of, layers_of
from tests.snapshotter.pulling import APP, Run, pulled, unpacked
from tests.snapshotter.serving import SnapshotsClient


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
