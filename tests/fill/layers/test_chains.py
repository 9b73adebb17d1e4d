"""What the filler knows of chain IDs: the images that the mirror told it of."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from headstart.content.config import chain_ids
from headstart.content.digest import Digest
from headstart.content.estargz.announced import TOC_DIGEST
from headstart.store.index import Index
from headstart.store.known_layer import KnownLayer
from proxy.fill.layers.chains import MOST_IMAGES, Chains

MANIFEST = Digest.of(b"manifest")


def layers_of(repository: str, *names: bytes) -> tuple[KnownLayer, ...]:
    return tuple(
        KnownLayer(
            "registry.example",
            repository,
            Digest.of(b"blob of " + name),
            len(name),
            Digest.of(name),
            "application/vnd.oci.image.layer.v1.tar+gzip",
            {"note": name.decode()},
        )
        for name in names
    )


def with_toc(layers: tuple[KnownLayer, ...]) -> tuple[KnownLayer, ...]:
    said = {TOC_DIGEST: str(Digest.of(b"toc"))}
    return tuple(replace(layer, annotations=said) for layer in layers)


def chains_of(layers: tuple[KnownLayer, ...]) -> tuple[Digest, ...]:
    return chain_ids([layer.diff_id for layer in layers])


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    made = Index(tmp_path / "index")
    yield made
    made.close()


def test_each_chain_id_of_an_image_names_its_layer_and_all_layers(index: Index) -> None:
    chains, layers = Chains(index), layers_of("team/app", b"base", b"libraries", b"code")
    chains.tell(MANIFEST, layers)
    for position, chain in enumerate(chains_of(layers)):
        found = chains.find(chain, None)
        assert found is not None
        assert found.layers == layers
        assert found.layer == layers[position]
        assert found.layer.annotations == layers[position].annotations


def test_an_unknown_chain_id_is_not_found(index: Index) -> None:
    chains, layers = Chains(index), layers_of("team/app", b"base", b"code")
    chains.tell(MANIFEST, layers)
    assert chains.find(layers[1].diff_id, None) is None, "a diff ID above the base is no chain ID"


def test_images_are_known_after_a_restart(index: Index) -> None:
    layers = layers_of("team/app", b"base", b"code")
    Chains(index).tell(MANIFEST, layers)
    found = Chains(index).find(chains_of(layers)[1], None)
    assert found is not None and found.layers == layers


def test_of_several_images_the_one_told_last_is_found(index: Index) -> None:
    chains = Chains(index)
    one, other = layers_of("team/one", b"base"), layers_of("team/other", b"base")
    base = chains_of(one)[0]
    for told in (one, other, one):
        chains.tell(MANIFEST, told)
        found = chains.find(base, None)
        assert found is not None and found.layers == told


def test_the_image_of_the_manifest_that_is_asked_for_goes_first(index: Index) -> None:
    chains = Chains(index)
    one, other = layers_of("team/one", b"base"), layers_of("team/other", b"base", b"code")
    chains.tell(MANIFEST, one)
    chains.tell(Digest.of(b"other manifest"), other)
    found = chains.find(chains_of(one)[0], MANIFEST)
    assert found is not None and found.layers == one


def test_an_ordinary_layer_may_come_from_another_image_than_the_one_asked_for(index: Index) -> None:
    chains = Chains(index)
    layers = layers_of("team/app", b"base")
    chains.tell(MANIFEST, layers)
    found = chains.find(chains_of(layers)[0], Digest.of(b"a manifest that nobody has told"))
    assert found is not None and found.layers == layers


def test_a_toc_is_believed_for_the_manifest_that_has_it_only(index: Index) -> None:
    chains = Chains(index)
    theirs, chain = (
        with_toc(layers_of("tenant/app", b"base")),
        chains_of(layers_of("a", b"base"))[0],
    )
    chains.tell(MANIFEST, theirs)
    other = Digest.of(b"a manifest that nobody has told")
    assert chains.find(chain, other, "registry.example/tenant/app:v1") is None
    # An ordinary one is verified before it is mounted, whoever has it.
    ordinary = layers_of("team/app", b"base")
    chains.tell(Digest.of(b"another"), ordinary)
    chains.tell(MANIFEST, theirs)
    for manifest, expected in ((MANIFEST, theirs), (None, theirs), (other, ordinary)):
        found = chains.find(chain, manifest)
        assert found is not None and found.layers == expected


@pytest.mark.parametrize(
    ("image_ref", "expected"),
    [
        ("registry.example/team/one:v1", "team/one"),
        (f"registry.example/team/one@{MANIFEST}", "team/one"),
        ("registry.example/team/none:v1", "team/other"),
        ("other.example/team/one:v1", "team/other"),
        ("registry.example/team/on", "team/other"),
        ("no reference at all", "team/other"),
        (None, "team/other"),
    ],
)
@pytest.mark.parametrize("manifest", [None, Digest.of(b"a manifest that nobody has told")])
def test_the_image_of_the_same_repository_goes_before_the_one_told_last(
    index: Index, manifest: Digest | None, image_ref: str | None, expected: str
) -> None:
    chains = Chains(index)
    chains.tell(Digest.of(b"one"), layers_of("team/one", b"base"))
    chains.tell(MANIFEST, layers_of("team/other", b"base"))
    chain = chains_of(layers_of("any", b"base"))[0]
    found = chains.find(chain, manifest, image_ref)
    assert found is not None and found.layer.repository == expected
    # The manifest says more than the name.
    found = chains.find(chain, MANIFEST, image_ref)
    assert found is not None and found.layer.repository == "team/other"


def test_a_base_of_many_images_keeps_the_latest_only(index: Index) -> None:
    chains = Chains(index)
    for number in range(MOST_IMAGES + 5):
        chains.tell(MANIFEST, layers_of(f"team/app{number}", b"base"))
    record = index.get("chain", str(chains_of(layers_of("any", b"base"))[0]))
    assert record is not None
    images = record["images"]
    assert isinstance(images, list) and len(images) == MOST_IMAGES
    assert str(images[0][0]).startswith(f"registry.example/team/app{MOST_IMAGES + 4}@")


def test_a_damaged_record_is_as_if_it_were_not_there(index: Index) -> None:
    layers = layers_of("team/app", b"base")
    Chains(index).tell(MANIFEST, layers)
    name = f"registry.example/team/app@{MANIFEST}"
    record = index.get("image", name)
    assert record is not None
    listed = record["layers"]
    assert isinstance(listed, list) and isinstance(listed[0], dict)
    listed[0]["size"] = -1
    index.put("image", name, record)
    assert Chains(index).find(chains_of(layers)[0], None) is None


def test_an_image_told_again_with_other_places_replaces_the_first(index: Index) -> None:
    chains, layers = Chains(index), layers_of("team/app", b"base")
    chains.tell(MANIFEST, layers)
    moved = tuple(replace(layer, size=layer.size + 1) for layer in layers)
    chains.tell(MANIFEST, moved)
    found = chains.find(chains_of(layers)[0], None)
    assert found is not None and found.layer.size == moved[0].size
