"""The digest of the whole follows the contiguous bytes, over extents and stripes."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.store.geometry import MIB, UNIT_SIZE
from headstart.store.layout import Layout
from proxy.fill.blob_files import BlobFiles
from proxy.fill.digesting import FollowingDigest
from tests.fill.writing import layout_in, write_whole
from tests.store.stored_objects import pattern

EXTENT = 2 * UNIT_SIZE
SIZE = 4 * EXTENT + 999
PAYLOAD = pattern(0, SIZE)
DIGEST = Digest.of(PAYLOAD)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return layout_in(tmp_path, 2)


@pytest.fixture
def files(layout: Layout) -> Iterator[BlobFiles]:
    made = BlobFiles.create(layout, DIGEST, SIZE, EXTENT)
    yield made
    made.close()


def bring(files: BlobFiles, unit: int, payload: bytes = PAYLOAD) -> None:
    start = unit * UNIT_SIZE
    piece = payload[start : start + UNIT_SIZE]
    files.write(start, memoryview(piece))
    files.publish(start, start + len(piece), start)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(-(-SIZE // UNIT_SIZE))))
def test_units_may_come_in_any_order(layout: Layout, order: list[int]) -> None:
    files = BlobFiles.create(layout, DIGEST, SIZE, EXTENT)
    try:
        digest = FollowingDigest(DIGEST, files)
        here: set[int] = set()
        for unit in order:
            assert digest.advance() is None
            contiguous = min(set(range(len(order))) - here)
            assert digest.position == min(SIZE, contiguous * UNIT_SIZE)
            bring(files, unit)
            here.add(unit)
        assert digest.advance() is True
        assert digest.position == SIZE
        assert digest.advance() is True
    finally:
        files.close()


def test_f09_one_wrong_byte_is_told_at_the_end_and_not_before(files: BlobFiles) -> None:
    wrong = bytearray(PAYLOAD)
    wrong[SIZE // 2] ^= 1
    digest = FollowingDigest(DIGEST, files)
    for unit in range(-(-SIZE // UNIT_SIZE)):
        assert digest.advance() is None
        bring(files, unit, bytes(wrong))
    assert digest.advance() is False


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_every_registered_algorithm_is_followed(layout: Layout, algorithm: str) -> None:
    right = Digest.of(PAYLOAD, algorithm)
    files = BlobFiles.create(layout, right, SIZE, EXTENT)
    write_whole(files, PAYLOAD)
    assert FollowingDigest(right, files).advance() is True
    files.close()


def test_an_empty_blob_has_the_digest_of_nothing(layout: Layout) -> None:
    for content, expected in ((b"", True), (b"x", False)):
        digest = Digest.of(content)
        files = BlobFiles.create(layout, digest, 0, EXTENT)
        assert FollowingDigest(digest, files).advance() is expected
        files.close()


def test_bytes_that_are_unchecked_are_not_hashed(files: BlobFiles) -> None:
    write_whole(files, PAYLOAD)
    stripe, record = files.map.locate(1)
    stripe.set_state(record, 3)
    digest = FollowingDigest(DIGEST, files)
    assert digest.advance() is None
    assert digest.position == EXTENT
    stripe.set_state(record, 1)
    assert digest.advance() is True


def test_a_file_that_was_cut_behind_our_back_is_an_error(files: BlobFiles) -> None:
    write_whole(files, PAYLOAD)
    os.truncate(files.paths[1], UNIT_SIZE)
    with pytest.raises(OSError, match="ends before byte"):
        FollowingDigest(DIGEST, files).advance()


def test_it_follows_a_writer_in_another_thread(layout: Layout) -> None:
    payload = pattern(0, 8 * MIB)
    right = Digest.of(payload)
    files = BlobFiles.create(layout, right, len(payload), MIB)
    writer = threading.Thread(target=write_whole, args=(files, payload))
    digest = FollowingDigest(right, files)
    writer.start()
    while (verdict := digest.advance()) is None:
        pass
    writer.join()
    assert verdict is True
    files.close()
