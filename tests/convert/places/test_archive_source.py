"""Archives as sources: both forms, gzip, names, and bytes that somebody hostile has made."""

import asyncio
import gzip
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.content.manifest import Manifest, read_manifest
from headstart.convert.errors import ContentDamaged, PlaceUnusable
from headstart.convert.places.checking import CheckedBlob
from headstart.convert.places.members import MOST_EXTENSION, MOST_LINKS, MOST_MEMBERS
from headstart.convert.places.naming import Place, parse_place
from headstart.convert.places.opening import open_source
from headstart.convert.places.place import Document
from tests.convert.places.archives import LAYER, saved, sha256, write

Read = tuple[Document, dict[Digest, bytes]]


def read(place: Place) -> Read:
    """The root of a place and all blobs that it names."""

    async def work() -> Read:
        async with open_source(place, {}) as source:
            root = await source.root()
            manifest = read_manifest(root.body, root.media_type)
            assert isinstance(manifest, Manifest)
            assert manifest.config is not None
            blobs = {}
            for descriptor in (manifest.config, *manifest.layers):
                async with CheckedBlob(source.blob(descriptor), place).open_at(0) as pieces:
                    blobs[descriptor.digest] = b"".join([piece async for piece in pieces])
            return root, blobs

    return asyncio.run(work())


def read_file(file: Path, reference: str = "") -> Read:
    return read(parse_place(f"docker-archive:{file}{reference}"))


def replaced(
    entries: list[tuple[str, bytes]], name: str, content: bytes
) -> list[tuple[str, bytes]]:
    return [(entry, content if entry == name else kept) for entry, kept in entries]


# --- the old form ---


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_layers_without_descriptors_are_given_them(tmp_path: Path, form: int) -> None:
    other = b"another"
    root, blobs = read_file(write(tmp_path / "a.tar", saved([LAYER, other]), form))
    document = json.loads(root.body)
    assert document["mediaType"] == root.media_type == "application/vnd.oci.image.manifest.v1+json"
    assert document["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert document["layers"] == [
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": f"sha256:{sha256(layer)}",
            "size": len(layer),
        }
        for layer in (LAYER, other)
    ]
    assert root.digest == Digest.of(root.body)
    assert blobs[Digest.of(LAYER)] == LAYER
    assert blobs[Digest.of(other)] == other


@pytest.mark.parametrize("ending", ["gzip", "zstd"])
def test_a_layer_that_is_compressed_says_so(tmp_path: Path, ending: str) -> None:
    layer = {"gzip": gzip.compress(LAYER), "zstd": b"\x28\xb5\x2f\xfd" + LAYER}[ending]
    entries = saved([layer], diff_ids=[f"sha256:{sha256(LAYER)}"])
    root, blobs = read_file(write(tmp_path / "a.tar", entries))
    (described,) = json.loads(root.body)["layers"]
    assert described["mediaType"] == f"application/vnd.oci.image.layer.v1.tar+{ending}"
    assert blobs[Digest.of(layer)] == layer


def test_a_gzipped_archive_is_read_as_a_plain_one_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = write(tmp_path / "a.tar", saved())
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert read(parse_place(str(packed))) == read(parse_place(str(plain)))
    assert list(temporary.iterdir()) == []


def test_a_layer_may_be_a_link_to_that_of_another_image(tmp_path: Path) -> None:
    entries = replaced(saved([LAYER, LAYER]), "1/layer.tar", b"->../0/layer.tar")
    root, blobs = read_file(write(tmp_path / "a.tar", entries))
    assert len(json.loads(root.body)["layers"]) == 2
    assert blobs[Digest.of(LAYER)] == LAYER


# --- names ---


def two_images(file: Path) -> Path:
    first, second = saved([b"one"], names=["app:1", "app:latest"]), saved([b"two"], names=["b:2"])
    renamed = [
        (name.replace("0/", "second/"), content.replace(b"0/layer", b"second/layer"))
        for name, content in second
    ]
    images = json.loads(first[-1][1]) + json.loads(renamed[-1][1])
    return write(file, [*first[:-1], *renamed[:-1], ("manifest.json", json.dumps(images).encode())])


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        (":app:1", b"one"),
        (":docker.io/library/app:1", b"one"),
        (":app", b"one"),
        (":b:2", b"two"),
    ],
)
def test_an_image_is_found_by_any_spelling_of_its_name(
    tmp_path: Path, name: str, layer: bytes
) -> None:
    assert layer in read_file(two_images(tmp_path / "a.tar"), name)[1].values()


def test_without_a_name_there_has_to_be_one_image(tmp_path: Path) -> None:
    with pytest.raises(PlaceUnusable, match=r"holds 2 images; say which .* app:1, app:latest, b:2"):
        read_file(two_images(tmp_path / "a.tar"))
    with pytest.raises(PlaceUnusable, match="is not in the archive; images there: app:1"):
        read_file(two_images(tmp_path / "a.tar"), ":other")
    nameless = write(tmp_path / "b.tar", saved(names=None))
    assert LAYER in read_file(nameless)[1].values()


def new_form(file: Path, *annotations: dict[str, str]) -> list[Digest]:
    """An archive with an image for each of ``annotations``; gives their digests."""
    bodies = [
        json.dumps({"schemaVersion": 2, "layers": [], "annotations": {"n": str(number)}}).encode()
        for number in range(len(annotations))
    ]
    listed = [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": f"sha256:{sha256(body)}",
            "size": len(body),
            "annotations": given,
        }
        for body, given in zip(bodies, annotations, strict=True)
    ]
    write(
        file,
        [
            ("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
            ("index.json", json.dumps({"schemaVersion": 2, "manifests": listed}).encode()),
            *((f"blobs/sha256/{sha256(body)}", body) for body in bodies),
        ],
    )
    return [Digest.of(body) for body in bodies]


def root_of(file: Path, reference: str) -> Digest:
    async def work() -> Digest:
        async with open_source(parse_place(f"docker-archive:{file}:{reference}"), {}) as source:
            return (await source.root()).digest

    return asyncio.run(work())


def test_in_the_new_form_the_full_name_counts_and_a_tag_where_there_is_no_more(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.tar"
    full, tag = "io.containerd.image.name", "org.opencontainers.image.ref.name"
    first, second, third = new_form(
        file,
        {full: "docker.io/library/app:1", tag: "1"},
        {full: "docker.io/library/other:1", tag: "1"},
        {tag: "2"},
    )
    assert root_of(file, "app:1") == first
    assert root_of(file, "other:1") == second
    assert root_of(file, "whatever:2") == third
    with pytest.raises(PlaceUnusable, match=r"is not there; images there: 2, docker\.io"):
        root_of(file, "third:1")


def test_one_image_with_two_names_needs_none(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tar", saved(names=["app:1", "app:2"]))
    assert LAYER in read_file(file)[1].values()


# --- what is damaged or hostile ---


def test_a_layer_with_other_bytes_than_its_diff_id_names_both_digests(tmp_path: Path) -> None:
    wrong = f"sha256:{'0' * 64}"
    file = write(tmp_path / "a.tar", saved(diff_ids=[wrong]))
    with pytest.raises(ContentDamaged, match=f"{wrong} and is sha256:{sha256(LAYER)}"):
        read_file(file)


def test_a_configuration_with_other_bytes_than_its_name_says_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(ContentDamaged, match=f"should be sha256:{'0' * 64}"):
        read_file(write(tmp_path / "a.tar", saved(config_name=f"{'0' * 64}.json")))


@pytest.mark.parametrize(
    "name",
    ["/manifest.json", "../manifest.json", "x/../../manifest.json", "manifest.json/x"],
)
def test_a_name_that_leads_elsewhere_is_not_the_one_that_is_looked_for(
    tmp_path: Path, name: str
) -> None:
    entries = [(name if old == "manifest.json" else old, content) for old, content in saved()]
    with pytest.raises(PlaceUnusable, match=r"holds neither manifest\.json"):
        read_file(write(tmp_path / "a.tar", entries))


@pytest.mark.parametrize(
    "link", ["/etc/passwd", "../../../../etc/passwd", "../nowhere", "layer.tar", ""]
)
def test_a_link_leads_to_nothing_but_names_of_the_archive(tmp_path: Path, link: str) -> None:
    entries = replaced(saved(), "0/layer.tar", b"->" + link.encode())
    with pytest.raises(PlaceUnusable, match=r"'0/layer.tar' (is not there|is behind more than)"):
        read_file(write(tmp_path / "a.tar", entries))


def test_links_behind_links_end(tmp_path: Path) -> None:
    links = [(f"l{at}", f"->l{at + 1}".encode()) for at in range(MOST_LINKS + 2)]
    entries = [*links, *replaced(saved(), "0/layer.tar", b"->../l0")]
    with pytest.raises(PlaceUnusable, match=f"more than {MOST_LINKS} links"):
        read_file(write(tmp_path / "a.tar", entries))


@pytest.mark.parametrize("spelling", ["{}", "./{}", "x/../{}"])
@pytest.mark.parametrize("name", ["manifest.json", "0/layer.tar"])
def test_a_file_that_is_there_twice_is_refused(tmp_path: Path, name: str, spelling: str) -> None:
    with pytest.raises(PlaceUnusable, match=f"{name}' is there twice"):
        read_file(write(tmp_path / "a.tar", [*saved(), (spelling.format(name), b"[]")]))


@pytest.mark.parametrize("size", [1 << 40, (1 << 62), -1])
def test_a_size_beyond_the_archive_is_refused_without_memory_for_it(
    tmp_path: Path, size: int
) -> None:
    entry = tarfile.TarInfo("manifest.json")
    entry.size = abs(size)
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        header[124:136] = b"\xff" * 12
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    file = tmp_path / "a.tar"
    file.write_bytes(bytes(header) + bytes(4096))
    tracemalloc.start()
    try:
        with pytest.raises(PlaceUnusable, match="it ends within the"):
            read_file(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_extension_headers_and_entries_have_caps(tmp_path: Path) -> None:
    long = write(tmp_path / "a.tar", [("x" * (MOST_EXTENSION + 1), b""), *saved()])
    with pytest.raises(PlaceUnusable, match="an extension header has"):
        read_file(long)
    header = tarfile.TarInfo("x").tobuf()
    many = tmp_path / "b.tar"
    many.write_bytes(header * (MOST_MEMBERS + 1))
    with pytest.raises(PlaceUnusable, match=f"more than {MOST_MEMBERS} entries"):
        read_file(many)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (b"{}", "is no list"),
        (b"[", "is no list"),
        (b"[" * 100_000, "is no list"),
        (b"[1]", "an image that is no object"),
        (b'[{"Layers": []}]', "without Config"),
        (b'[{"Config": "c"}]', "Layers"),
        (b'[{"Config": "c", "Layers": [1]}]', "Layers"),
        (b'[{"Config": "c", "Layers": []}]', "'c' is not there"),
        (b'[{"Config": "\\ud800\\u0000", "Layers": []}]', "is not there"),
        (b"[]", "holds no image"),
    ],
)
def test_a_manifest_json_that_is_none_is_refused(
    tmp_path: Path, manifest: bytes, said: str
) -> None:
    with pytest.raises(PlaceUnusable, match=said):
        read_file(write(tmp_path / "a.tar", replaced(saved(), "manifest.json", manifest)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "neither a tar archive nor"),
        (b"x" * 100, "neither a tar archive nor"),
        (b"x" * 10_000, "no good tar archive"),
        (gzip.compress(b"x" * 10_000), "no good tar archive"),
        (gzip.compress(bytes(100_000))[:60], "cannot be inflated"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0" + b"garbage" * 9, "cannot be inflated"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "no good tar archive"),
    ],
)
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(content)
    with pytest.raises(PlaceUnusable, match=said):
        read_file(file)


def test_what_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlaceUnusable, match="No such file"):
        read_file(tmp_path / "none.tar")
    with pytest.raises(PlaceUnusable, match="no regular file"):
        read_file(tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 12_000), patch=st.binary(min_size=1, max_size=24))
def test_changed_bytes_are_an_error_of_one_line_or_what_is_read_has_its_digest(
    tmp_path: Path, position: int, patch: bytes
) -> None:
    whole = bytearray(write(tmp_path / "a.tar", saved()).read_bytes())
    whole[position : position + len(patch)] = patch
    (tmp_path / "b.tar").write_bytes(whole)
    try:
        found = read_file(tmp_path / "b.tar")
    except PlaceUnusable as error:
        assert "\n" not in str(error)
    else:
        assert all(Digest.of(content) == digest for digest, content in found[1].items())


def test_a_pax_size_stands_for_the_one_in_the_header(tmp_path: Path) -> None:
    """As Go writes a layer of more than 8 GiB, without one."""
    record = b"13 size=%d\n" % len(LAYER)
    assert len(record) == 13
    entry = tarfile.TarInfo("0/layer.tar")
    extension = tarfile.TarInfo("pax")
    extension.type, extension.size = tarfile.XHDTYPE, len(record)
    padded = record + bytes(-len(record) % 512)
    layer = LAYER + bytes(-len(LAYER) % 512)
    rest = write(tmp_path / "rest.tar", saved()[1:]).read_bytes()
    file = tmp_path / "a.tar"
    file.write_bytes(extension.tobuf() + padded + entry.tobuf() + layer + rest)
    assert read_file(file)[1][Digest.of(LAYER)] == LAYER
