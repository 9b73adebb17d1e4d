"""OCI layouts: which image is read, what is written when, and what others have put there."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.content.manifest import OCI_MANIFEST, Descriptor
from headstart.convert.errors import ContentDamaged, PlaceUnusable
from headstart.convert.places.files import file_blob
from headstart.convert.places.naming import LayoutPlace
from headstart.convert.places.opening import open_source, open_target
from headstart.convert.places.place import Blob, Document, Target
from tests.convert.places.images import copy
from tests.parts.images import Image

NAME = "org.opencontainers.image.ref.name"


def document(text: str) -> Document:
    body = json.dumps({"schemaVersion": 2, "layers": [], "annotations": {"a": text}}).encode()
    return Document(body, OCI_MANIFEST, Digest.of(body))


def write(directory: Path, name: str | None, root: Document) -> None:
    into(LayoutPlace(directory, name), lambda target: target.commit(root))


def into(place: LayoutPlace, work: Callable[[Target], Awaitable[None]]) -> None:
    async def run() -> None:
        async with open_target(place, {}) as target:
            await work(target)

    asyncio.run(run())


def root_of(directory: Path, name: str | None = None) -> Document:
    async def run() -> Document:
        async with open_source(LayoutPlace(directory, name), {}) as source:
            return await source.root()

    return asyncio.run(run())


def listed(directory: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((directory / "index.json").read_text())["manifests"]
    return found


def test_a_copy_holds_the_same_files_and_nothing_else(tmp_path: Path, small_index: Image) -> None:
    target = tmp_path / "made" / "copy"
    source = LayoutPlace(small_index.directory, "image")
    root = asyncio.run(copy(source, LayoutPlace(target, "mine"), {}))
    assert str(root.digest) == small_index.top.digest
    blobs = sorted(path.name for path in (target / "blobs/sha256").iterdir())
    assert blobs == sorted(path.name for path in (small_index.directory / "blobs/sha256").iterdir())
    assert sorted(path.name for path in target.iterdir()) == ["blobs", "index.json", "oci-layout"]
    assert json.loads((target / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = listed(target)
    assert entry == small_index.top.descriptor(annotations={NAME: "mine"})


def test_images_are_added_and_those_of_the_same_name_replaced(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "2"), (None, "3"), ("a", "4"), (None, "5")):
        write(tmp_path, name, document(text))
    assert root_of(tmp_path, "a") == document("4")
    assert root_of(tmp_path, "b") == document("2")
    assert len(listed(tmp_path)) == 3
    with pytest.raises(PlaceUnusable, match=r"holds 3 images; say which behind a colon: a, b"):
        root_of(tmp_path)
    with pytest.raises(PlaceUnusable, match="is not there; images there: a, b"):
        root_of(tmp_path, "c")


def test_what_others_say_of_their_images_stays_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, "a", document("1"))
    index = json.loads((tmp_path / "index.json").read_text())
    index["manifests"][0]["x-other"] = {"kept": [1, 2]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    write(tmp_path, "b", document("2"))
    assert listed(tmp_path)[0] == index["manifests"][0]


def test_nothing_has_the_name_before_the_commit(tmp_path: Path, small_image: Image) -> None:
    layer = small_image.platform().layers[0]
    digest = Digest.parse(layer.digest)

    async def work(target: Target) -> None:
        assert not await target.has(digest)
        await target.put_blob(file_blob(small_image.blob(layer.digest), digest, layer.size))
        assert await target.has(digest)
        assert not (tmp_path / "index.json").exists()

    into(LayoutPlace(tmp_path, "a"), work)
    assert not (tmp_path / "index.json").exists()


def test_a_damaged_blob_leaves_nothing_behind(tmp_path: Path, small_image: Image) -> None:
    layer = small_image.platform().layers[0]
    wrong = Digest.of(b"other")

    async def work(target: Target) -> None:
        blob = file_blob(small_image.blob(layer.digest), wrong, layer.size)
        with pytest.raises(ContentDamaged, match=f"{wrong} has bytes of the digest {layer.digest}"):
            await target.put_blob(blob)
        assert not await target.has(wrong)

    into(LayoutPlace(tmp_path, "a"), work)
    assert list((tmp_path / "blobs/sha256").iterdir()) == []


def test_who_is_cancelled_leaves_nothing_behind(tmp_path: Path) -> None:
    async def run() -> None:
        begun = asyncio.Event()

        @asynccontextmanager
        async def open_at(start: int) -> AsyncIterator[AsyncIterator[bytes]]:
            async def pieces() -> AsyncIterator[bytes]:
                yield b"first"
                begun.set()
                await asyncio.Event().wait()

            yield pieces()

        async with open_target(LayoutPlace(tmp_path, None), {}) as target:
            task = asyncio.create_task(target.put_blob(Blob(Digest.of(b""), 100, open_at)))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert list((tmp_path / "blobs/sha256").iterdir()) == []


def test_many_blobs_at_once_all_arrive(tmp_path: Path, small_index: Image) -> None:
    blobs = list((small_index.directory / "blobs/sha256").iterdir())

    async def work(target: Target) -> None:
        await asyncio.gather(
            *(
                target.put_blob(
                    file_blob(path, Digest.parse(f"sha256:{path.name}"), path.stat().st_size)
                )
                for path in (*blobs, *blobs)
            )
        )

    into(LayoutPlace(tmp_path / "a", None), work)
    assert {path.name for path in (tmp_path / "a/blobs/sha256").iterdir()} == {
        path.name for path in blobs
    }


def test_a_damaged_blob_or_manifest_of_a_source_names_both_digests(
    tmp_path: Path, small_image: Image
) -> None:
    asyncio.run(
        copy(LayoutPlace(small_image.directory, "image"), LayoutPlace(tmp_path / "a", None), {})
    )
    top = small_image.top
    path = tmp_path / "a/blobs" / top.digest.replace(":", "/")
    changed = path.read_bytes().replace(b"2", b"3", 1)
    path.write_bytes(changed)
    with pytest.raises(ContentDamaged, match=f"{top.digest} .*{Digest.of(changed)}"):
        root_of(tmp_path / "a")


def test_two_writers_of_one_layout_both_get_their_name(tmp_path: Path) -> None:
    async def one(number: int) -> None:
        async with open_target(LayoutPlace(tmp_path, f"n{number}"), {}) as target:
            await target.commit(document(str(number)))

    async def work() -> None:
        await asyncio.gather(*(one(number) for number in range(12)))

    write(tmp_path, "first", document("first"))
    asyncio.run(work())
    assert len(listed(tmp_path)) == 13


def test_a_directory_with_something_else_in_it_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(PlaceUnusable, match="is neither empty nor an OCI layout"):
        write(tmp_path, "a", document("1"))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("oci-layout", None, "there is no"),
        ("oci-layout", "{}", "layout version None"),
        ("oci-layout", '{"imageLayoutVersion": "2.0.0"}', "layout version '2.0.0'"),
        ("index.json", None, "No such file"),
        ("index.json", "[]", "bad index.json"),
        ("index.json", '{"manifests": [{"digest": "sha256:../x", "size": 1}]}', "bad index.json"),
        ("index.json", '{"manifests": []}', "holds no image"),
        ("index.json", " " * (4 * 1024 * 1024 + 1), "more than 4194304 bytes"),
    ],
)
def test_what_is_no_layout_says_what_is_wrong(
    tmp_path: Path, file: str, content: str | None, said: str
) -> None:
    write(tmp_path, "a", document("1"))
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(PlaceUnusable, match=said):
        root_of(tmp_path, "a")


def test_a_pipe_in_place_of_a_blob_keeps_nobody_waiting(tmp_path: Path) -> None:
    write(tmp_path, "a", document("1"))
    path = tmp_path / "blobs" / str(document("1").digest).replace(":", "/")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PlaceUnusable, match="no regular file"):
        root_of(tmp_path, "a")


def test_a_manifest_of_an_index_is_read_by_its_descriptor(small_index: Image) -> None:
    wanted = small_index.platform("linux/arm64/v8").manifest
    descriptor = Descriptor(wanted.media_type, Digest.parse(wanted.digest), wanted.size)

    async def run() -> Document:
        async with open_source(LayoutPlace(small_index.directory, None), {}) as source:
            return await source.manifest(descriptor)

    found = asyncio.run(run())
    assert found.body == small_index.blob(wanted.digest).read_bytes()
    assert found.media_type == wanted.media_type
