"""What is read of a place is compared with its digest, wherever the reading began."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.convert.errors import ContentDamaged
from headstart.convert.places.checking import CheckedBlob, checked_document
from headstart.convert.places.place import Blob

CONTENT = bytes(range(256)) * 4


def blob_of(content: bytes, piece: int, *, digest: Digest | None = None, size: int = 0) -> Blob:
    @asynccontextmanager
    async def open_at(start: int) -> AsyncIterator[AsyncIterator[bytes]]:
        async def pieces() -> AsyncIterator[bytes]:
            for at in range(start, len(content), piece):
                yield content[at : at + piece]

        yield pieces()

    return Blob(digest or Digest.of(content), size or len(content), open_at)


async def read(checked: CheckedBlob, start: int, most: int | None = None) -> bytes:
    """The bytes from ``start``, until ``most`` are there."""
    found = b""
    async with checked.open_at(start) as pieces:
        async for piece in pieces:
            found += piece
            if most is not None and len(found) >= most:
                break
    return found


@given(
    content=st.binary(max_size=300),
    piece=st.integers(1, 40),
    breaks=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 200)), max_size=4),
)
def test_bytes_that_are_read_again_from_anywhere_count_once(
    content: bytes, piece: int, breaks: list[tuple[float, int]]
) -> None:
    async def work() -> None:
        checked = CheckedBlob(blob_of(content, piece), "here")
        known = 0
        for share, most in breaks:
            start = int(known * share)
            found = await read(checked, start, most)
            assert content[start:].startswith(found)
            known = max(known, start + len(found))
        assert await read(checked, known // 2) == content[known // 2 :]

    asyncio.run(work())


@given(at=st.integers(0, len(CONTENT) - 1), piece=st.integers(1, 300))
def test_of_wrong_bytes_the_last_piece_is_never_given_out(at: int, piece: int) -> None:
    wrong = bytearray(CONTENT)
    wrong[at] ^= 1
    blob = blob_of(bytes(wrong), piece, digest=Digest.of(CONTENT))

    async def work() -> None:
        found = 0
        with pytest.raises(ContentDamaged) as damage:
            async with CheckedBlob(blob, "the place").open_at(0) as pieces:
                async for part in pieces:
                    found += len(part)
        assert found < len(CONTENT)
        assert str(damage.value).startswith("the place is damaged: ")
        assert str(Digest.of(CONTENT)) in str(damage.value)
        assert str(Digest.of(bytes(wrong))) in str(damage.value)

    asyncio.run(work())


@pytest.mark.parametrize(("size", "said"), [(1010, "more than"), (1100, "1024 bytes of the 1100")])
def test_a_blob_of_another_size_is_damaged(size: int, said: str) -> None:
    blob = blob_of(CONTENT, 100, size=size)
    with pytest.raises(ContentDamaged, match=said):
        asyncio.run(read(CheckedBlob(blob, "here"), 0))


def test_a_document_with_other_bytes_names_both_digests() -> None:
    right = checked_document(b"{}", "type", Digest.of(b"{}"), 2, "here")
    assert (right.body, right.media_type, right.digest) == (b"{}", "type", Digest.of(b"{}"))
    for body in (b"[]", b"{} "):
        with pytest.raises(ContentDamaged, match=f"{Digest.of(b'{}')}.*{Digest.of(body)}"):
            checked_document(body, "type", Digest.of(b"{}"), 2, "here")
