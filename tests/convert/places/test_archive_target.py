"""Archives that are written: their form, their names, and what is left when it goes wrong."""

import asyncio
import json
import tarfile
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.convert.errors import ContentDamaged, PlaceUnusable
from headstart.convert.places.files import file_blob
from headstart.convert.places.naming import ArchivePlace, LayoutPlace, parse_place
from headstart.convert.places.opening import open_source, open_target
from headstart.convert.places.place import Document
from tests.convert.places.images import copy, copy_below
from tests.parts.images import Image
from tests.parts.processes import run


def written(image: Image, file: Path, reference: str = ":team/app:1") -> Document:
    place = parse_place(f"docker-archive:{file}{reference}")
    return asyncio.run(copy(LayoutPlace(image.directory, None), place, {}))


def read(file: Path, name: str) -> bytes:
    with tarfile.open(file) as tar:
        member = tar.extractfile(name)
        assert member is not None
        return member.read()


def test_an_archive_is_a_layout_and_has_a_manifest_json(tmp_path: Path, small_image: Image) -> None:
    root = written(small_image, tmp_path / "a.tar")
    image = small_image.platform()
    assert json.loads(read(tmp_path / "a.tar", "oci-layout")) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads(read(tmp_path / "a.tar", "index.json"))["manifests"]
    assert entry == image.manifest.descriptor(
        annotations={
            "io.containerd.image.name": "docker.io/team/app:1",
            "org.opencontainers.image.ref.name": "1",
        }
    )
    (saved,) = json.loads(read(tmp_path / "a.tar", "manifest.json"))
    assert saved == {
        "Config": path_of(image.config.digest),
        "RepoTags": ["docker.io/team/app:1"],
        "Layers": [path_of(layer.digest) for layer in image.layers],
    }
    for digest in (str(root.digest), *(layer.digest for layer in image.layers)):
        content = read(tmp_path / "a.tar", path_of(digest))
        assert f"{Digest.of(content)}" == digest
    # GNU tar has the last word on what an archive is; it warns of a missing end too.
    listing = run(["tar", "-tf", tmp_path / "a.tar"])
    assert listing.stderr == ""
    names = listing.stdout.splitlines()
    assert names[:2] == ["blobs/", "blobs/sha256/"]
    assert len(names) == len(set(names)) == 2 + 5 + 3


def test_equal_images_make_equal_archives(tmp_path: Path, small_image: Image) -> None:
    written(small_image, tmp_path / "a.tar")
    written(small_image, tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_of_an_index_manifest_json_names_the_first_image(
    tmp_path: Path, small_index: Image
) -> None:
    written(small_index, tmp_path / "a.tar")
    (saved,) = json.loads(read(tmp_path / "a.tar", "manifest.json"))
    assert saved["Config"] == path_of(small_index.platforms[0].config.digest)


def test_without_a_reference_the_image_has_no_name(tmp_path: Path, small_image: Image) -> None:
    written(small_image, tmp_path / "a.tar", "")
    (entry,) = json.loads(read(tmp_path / "a.tar", "index.json"))["manifests"]
    assert "annotations" not in entry
    (saved,) = json.loads(read(tmp_path / "a.tar", "manifest.json"))
    assert saved["RepoTags"] == []


def test_without_a_commit_an_older_archive_stays_and_nothing_else(
    tmp_path: Path, small_image: Image
) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(b"older")
    layer = small_image.platform().layers[0]

    async def work(digest: str) -> None:
        async with open_target(ArchivePlace(file, None), {}) as target:
            path = small_image.blob(layer.digest)
            await target.put_blob(file_blob(path, Digest.parse(digest), layer.size))

    asyncio.run(work(layer.digest))
    with pytest.raises(ContentDamaged):
        asyncio.run(work(str(Digest.of(b""))))
    assert file.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [file]
    written(small_image, file)
    assert tarfile.is_tarfile(file)
    assert list(tmp_path.iterdir()) == [file]


def test_a_blob_that_is_put_twice_is_written_once(tmp_path: Path, small_image: Image) -> None:
    layer = small_image.platform().layers[0]
    digest = Digest.parse(layer.digest)
    written(small_image, tmp_path / "once.tar")

    async def work() -> None:
        async with (
            open_source(LayoutPlace(small_image.directory, None), {}) as source,
            open_target(parse_place(f"docker-archive:{tmp_path}/a.tar:team/app:1"), {}) as target,
        ):
            assert not await target.has(digest)
            await target.put_blob(file_blob(small_image.blob(layer.digest), digest, layer.size))
            assert await target.has(digest)
            root = await source.root()
            await copy_below(source, target, root)
            await target.commit(root)

    asyncio.run(work())
    listed = [run(["tar", "-tf", tmp_path / name]).stdout for name in ("a.tar", "once.tar")]
    assert sorted(listed[0].splitlines()) == sorted(listed[1].splitlines())


def test_blobs_that_come_at_once_do_not_mix(tmp_path: Path, small_index: Image) -> None:
    blobs = sorted((small_index.directory / "blobs/sha256").iterdir())

    async def work() -> None:
        place = LayoutPlace(small_index.directory, None)
        async with (
            open_source(place, {}) as source,
            open_target(ArchivePlace(tmp_path / "a.tar", None), {}) as target,
        ):
            await asyncio.gather(
                *(
                    target.put_blob(
                        file_blob(path, Digest.parse(f"sha256:{path.name}"), path.stat().st_size)
                    )
                    for path in blobs
                )
            )
            await target.commit(await source.root())

    asyncio.run(work())
    for path in blobs:
        assert read(tmp_path / "a.tar", f"blobs/sha256/{path.name}") == path.read_bytes()


def test_an_archive_with_a_blob_that_broke_off_is_never_committed(
    tmp_path: Path, small_image: Image
) -> None:
    layer = small_image.platform().layers[0]

    async def work() -> None:
        place = LayoutPlace(small_image.directory, None)
        async with (
            open_source(place, {}) as source,
            open_target(ArchivePlace(tmp_path / "a.tar", None), {}) as target,
        ):
            root = await source.root()
            wrong = file_blob(small_image.blob(layer.digest), Digest.of(b""), layer.size)
            with pytest.raises(ContentDamaged):
                await target.put_blob(wrong)
            with pytest.raises(PlaceUnusable, match="is spoiled"):
                await target.commit(root)

    asyncio.run(work())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["none/a.tar", "directory"])
def test_a_file_that_cannot_be_written_is_an_error_that_names_it(
    tmp_path: Path, small_image: Image, name: str
) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(PlaceUnusable, match=name):
        written(small_image, tmp_path / name)


def path_of(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"
