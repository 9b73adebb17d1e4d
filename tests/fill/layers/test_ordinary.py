"""Ordinary layers become images while they arrive; what is wrong leaves nothing behind."""

import errno
import itertools
import os
import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.content.layer.caps import LayerCaps
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.errors import LayerRefused
from headstart.store.geometry import MIB, UNIT_SIZE
from headstart.store.layout import Layout
from proxy.fill.layers.source import LayerCancelled, SourceFailed, WrongBytes
from tests.content.layer.archives import Member, member, write
from tests.fill.layers.contents import assert_shows, some_members
from tests.fill.layers.making import (
    GZIP,
    PLAIN,
    ZSTD,
    Arriving,
    CountingRoom,
    Making,
    compressed,
    layer_threads,
    left_over,
)
from tests.fill.writing import layout_in
from tests.store.stored_objects import open_descriptors

TAR = write(some_members())
BLOBS = {
    GZIP: compressed(TAR, GZIP),
    ZSTD: compressed(TAR, ZSTD),
    PLAIN: TAR,
}


@pytest.fixture(params=[1, 3])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    return layout_in(tmp_path, request.param)


@pytest.fixture
def single(tmp_path: Path) -> Layout:
    return layout_in(tmp_path, 1)


def assert_nothing_left(making: Making) -> None:
    making.files.close()
    assert left_over(making.layout) == []
    assert layer_threads() == []


@pytest.mark.parametrize("media_type", [GZIP, ZSTD, PLAIN])
@pytest.mark.parametrize("members", [1, 40])
def test_the_mounted_image_shows_what_the_archive_says(
    layout: Layout, tmp_path: Path, media_type: str, members: int
) -> None:
    blob = compressed(TAR, media_type, members)
    room = CountingRoom()
    making = Making(layout, blob, TAR, media_type, room=room)
    making.run()
    assert_shows(making.files, TAR, tmp_path / "mounted")
    reader = making.reader()
    assert reader.verified and reader.complete and reader.intact()
    assert reader.available(0, 1 << 40) == reader.size == making.files.size
    assert making.source.released == len(blob)
    assert all(length <= MIB for _, _, length in room.written)
    assert sum(length for _, _, length in room.written) <= reader.size
    assert layer_threads() == []
    reader.close()
    making.files.sync()
    assert making.files.check()
    making.files.close()


@pytest.mark.parametrize(
    ("media_type", "stored"),
    [
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", GZIP),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", PLAIN),
        ("application/vnd.docker.image.rootfs.diff.tar", GZIP),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", GZIP),
        (GZIP, ZSTD),
        (ZSTD, GZIP),
        (ZSTD, PLAIN),
    ],
)
def test_the_first_bytes_say_how_a_layer_is_compressed(
    single: Layout, media_type: str, stored: str
) -> None:
    making = Making(single, BLOBS[stored], TAR, media_type)
    making.run()
    assert making.files.verified
    making.files.close()


@pytest.mark.parametrize(
    ("media_type", "stored"),
    [
        (PLAIN, GZIP),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", GZIP),
        ("application/vnd.oci.image.config.v1+json", PLAIN),
        ("", GZIP),
    ],
)
def test_what_is_no_layer_by_its_media_type_is_refused(
    single: Layout, media_type: str, stored: str
) -> None:
    making = Making(single, BLOBS[stored], TAR, media_type)
    with pytest.raises(LayerRefused):
        making.run()
    assert_nothing_left(making)


def test_zstd_frames_may_have_skippable_ones_between_them(single: Layout) -> None:
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"other"
    half = len(TAR) // 2
    parts = (skippable, zstandard.compress(TAR[:half]), skippable, zstandard.compress(TAR[half:]))
    making = Making(single, b"".join(parts) + skippable, TAR, ZSTD)
    making.run()
    assert making.files.verified
    making.files.close()


@pytest.mark.parametrize("piece", [1, 13, 4096])
def test_bytes_may_arrive_in_any_pieces(single: Layout, piece: int) -> None:
    tar = write(some_members(big=3000))
    for media_type in (GZIP, ZSTD, PLAIN):
        blob = compressed(tar, media_type, 3)
        making = Making(single, blob, tar, media_type, source=Arriving(blob, piece))
        making.run()
        assert making.files.verified
        making.files.close()


def test_an_empty_layer_has_no_device(single: Layout, tmp_path: Path) -> None:
    tar = write([])
    making = Making(single, compressed(tar, GZIP), tar)
    making.run()
    assert making.files.verified and making.files.size == 0
    assert_shows(making.files, tar, tmp_path / "mounted")
    making.files.close()


def test_a_blob_without_bytes_is_an_empty_layer_or_refused(single: Layout) -> None:
    making = Making(single, b"", b"", PLAIN)
    making.run()
    assert making.files.verified
    making.files.close()


def test_contents_of_many_files_take_hardly_more_room_than_their_tar(single: Layout) -> None:
    chance = random.Random(5)
    members = [
        member(f"lib/{number % 50}/{number}.py".encode(), contents=chance.randbytes(size))
        for number, size in enumerate(
            min(int(chance.expovariate(1 / 36_000)), 900_000) + 1 for _ in range(800)
        )
    ]
    tar = write(members)
    room = CountingRoom()
    making = Making(single, compressed(tar, PLAIN), tar, PLAIN, room=room, extent_size=32 * MIB)
    making.run()
    written = sum(length for _, _, length in room.written) + making.files.meta_path.stat().st_size
    assert written <= 1.05 * len(tar)
    assert making.files.allocated() <= 1.05 * len(tar) + 64 * 1024
    making.files.close()


# --- what is wrong with the layer ---


@pytest.mark.parametrize("media_type", [GZIP, ZSTD, PLAIN])
@pytest.mark.parametrize("known", [True, False])
def test_another_diff_id_is_refused(layout: Layout, media_type: str, known: bool) -> None:
    before = open_descriptors()
    blob = BLOBS[media_type]
    making = Making(layout, blob, TAR, media_type, diff_id=Digest.of(b"other"), known=known)
    with pytest.raises(LayerRefused, match="diff ID"):
        making.run()
    assert_nothing_left(making)
    assert open_descriptors() == before


def test_bytes_after_the_end_of_the_archive_count_for_the_diff_id(single: Layout) -> None:
    tar = TAR + bytes(10_240)
    making = Making(single, compressed(tar, GZIP), tar)
    making.run()
    assert making.files.verified
    making.files.close()
    making = Making(single, compressed(tar, GZIP), TAR)
    with pytest.raises(LayerRefused, match="diff ID"):
        making.run()
    assert_nothing_left(making)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda blob: blob[:-5],
        lambda blob: blob[: len(blob) // 2],
        lambda blob: blob + b"garbage",
        lambda blob: blob[:1000] + bytes(50) + blob[1050:],
        lambda blob: blob[:-6] + bytes([blob[-6] ^ 1]) + blob[-5:],
        lambda blob: blob[:7],
    ],
)
def test_a_damaged_gzip_stream_is_refused(single: Layout, damage: object, known: bool) -> None:
    assert callable(damage)
    blob = damage(BLOBS[GZIP])
    making = Making(single, blob, TAR, known=known)
    with pytest.raises(LayerRefused, match="gzip"):
        making.run()
    assert_nothing_left(making)


@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_a_zstd_stream_cut_short_is_refused(single: Layout, cut: int) -> None:
    making = Making(single, BLOBS[ZSTD][:-cut], TAR, ZSTD)
    with pytest.raises(LayerRefused):
        making.run()
    assert_nothing_left(making)


def test_a_damaged_zstd_stream_is_refused(single: Layout) -> None:
    blob = bytearray(BLOBS[ZSTD])
    blob[1000:1100] = bytes(100)
    making = Making(single, bytes(blob), TAR, ZSTD)
    with pytest.raises(LayerRefused):
        making.run()
    assert_nothing_left(making)


def test_a_tar_that_ends_in_the_middle_is_refused(single: Layout) -> None:
    tar = TAR[: TAR.index(b"usr/big") + 2 * MIB]
    making = Making(single, compressed(tar, GZIP), tar)
    with pytest.raises(LayerRefused, match="middle"):
        making.run()
    assert_nothing_left(making)


@pytest.mark.parametrize(
    "hostile",
    [
        [member(b"../../etc/passwd", contents=b"x")],
        [member(b"a", EntryKind.SYMLINK, target=b"/"), member(b"a/b", contents=b"x")],
        [member(b"a", EntryKind.HARD_LINK, target=b"b")],
        [member(b"a", contents=b"x"), member(b".wh.a")],
        [member(b"/".join([b"d"] * 600), contents=b"x")],
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_f53_a_hostile_tar_is_refused(
    single: Layout, hostile: Sequence[Member], known: bool
) -> None:
    # Between enough other bytes that every thread is at work.
    filling = [member(b"f%d" % number, contents=os.urandom(MIB)) for number in range(3)]
    tar = write([*filling[:2], *hostile, *filling[2:]])
    making = Making(single, compressed(tar, GZIP), tar, known=known)
    with pytest.raises(LayerRefused):
        making.run()
    assert_nothing_left(making)


# --- what is wrong with its bearer ---


def test_f09_a_flipped_bit_is_the_bearers_fault_not_the_layers(single: Layout) -> None:
    for position in (3, 20, 3000, len(BLOBS[GZIP]) // 2, len(BLOBS[GZIP]) - 2):
        blob = bytearray(BLOBS[GZIP])
        blob[position] ^= 4
        making = Making(single, bytes(blob), TAR, digest=Digest.of(BLOBS[GZIP]))
        with pytest.raises(WrongBytes):
            making.run()
        assert_nothing_left(making)


def test_the_right_tar_in_other_bytes_is_not_the_layer(single: Layout) -> None:
    making = Making(single, compressed(TAR, GZIP, 2), TAR, digest=Digest.of(BLOBS[GZIP]))
    with pytest.raises(WrongBytes):
        making.run()
    assert_nothing_left(making)


@pytest.mark.parametrize("media_type", [GZIP, ZSTD, PLAIN])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_source_that_fails_in_the_middle_ends_it(
    layout: Layout, media_type: str, share: float
) -> None:
    blob = BLOBS[media_type]
    source = Arriving(blob, arrived=int(len(blob) * share))
    making = Making(layout, blob, TAR, media_type, source=source)
    making.start()
    assert source.waiting.wait(30)
    source.fail("the upstream is gone")
    error = making.join()
    assert isinstance(error, SourceFailed) and not isinstance(error, WrongBytes)
    assert str(error) == "the upstream is gone"
    assert_nothing_left(making)


def test_a_source_that_ends_early_ends_it(single: Layout) -> None:
    class Short(Arriving):
        def read_into(self, offset: int, target: memoryview) -> int:
            return 0 if offset >= 100_000 else super().read_into(offset, target[:50_000])

    making = Making(single, BLOBS[GZIP], TAR, source=Short(BLOBS[GZIP]))
    with pytest.raises(SourceFailed, match="byte 100000"):
        making.run()
    assert_nothing_left(making)


@pytest.mark.parametrize("arrived", [0, 10, MIB])
def test_cancelling_ends_it_while_bytes_are_waited_for(layout: Layout, arrived: int) -> None:
    source = Arriving(BLOBS[GZIP], arrived=arrived)
    making = Making(layout, BLOBS[GZIP], TAR, source=source)
    making.start()
    assert source.waiting.wait(30)
    making.cancelled.set()
    assert isinstance(making.join(), LayerCancelled)
    assert_nothing_left(making)


def test_a_refusal_waits_for_the_digest_only_where_that_is_not_known(single: Layout) -> None:
    tar = write([member(b"a", EntryKind.HARD_LINK, target=b"b"), *some_members()])
    blob = compressed(tar, GZIP)
    source = Arriving(blob, arrived=MIB)
    making = Making(single, blob, tar, source=source, known=False)
    making.start()
    # Its other bytes never come.
    assert isinstance(making.join(), LayerRefused)
    assert_nothing_left(making)
    source = Arriving(blob, arrived=MIB)
    making = Making(single, blob, tar, source=source)
    making.start()
    assert source.waiting.wait(30)
    source.arrive(len(blob))
    assert isinstance(making.join(), LayerRefused)
    assert_nothing_left(making)


# --- what is wrong with this node ---


@pytest.mark.parametrize("limit", [0, 100_000, 2 * MIB])
def test_f27_no_room_leaves_nothing_behind(layout: Layout, limit: int) -> None:
    making = Making(layout, BLOBS[GZIP], TAR, room=CountingRoom(limit))
    with pytest.raises(OSError, match="No space") as raised:
        making.run()
    assert raised.value.errno == errno.ENOSPC
    assert_nothing_left(making)


def test_f28_a_disk_that_fails_in_the_middle_ends_it(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()
    write_really = os.pwritev

    def pwritev(*arguments: object) -> int:
        if next(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return write_really(*arguments)  # type: ignore[arg-type]

    making = Making(layout, BLOBS[GZIP], TAR)
    monkeypatch.setattr("os.pwritev", pwritev)
    with pytest.raises(OSError, match="Input/output"):
        making.run()
    assert_nothing_left(making)


def test_short_writes_are_continued(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwritev(descriptor: int, pieces: Sequence[bytes], offset: int) -> int:
        content = b"".join(pieces)
        return os.pwrite(descriptor, content[: len(content) // 3 + 1], offset)

    making = Making(layout, BLOBS[GZIP], TAR)
    monkeypatch.setattr("os.pwritev", pwritev)
    making.run()
    monkeypatch.undo()
    assert_shows(making.files, TAR, tmp_path / "mounted")
    making.files.close()


@pytest.mark.parametrize("media_type", [GZIP, ZSTD])
def test_f53_a_bomb_stays_in_bounds(single: Layout, media_type: str) -> None:
    header = write([member(b"zeros", contents=b"x")])[:512]
    size = 256 * MIB
    bomb = bytearray(header)
    bomb[124:136] = b"%011o\0" % size
    bomb[148:156] = b" " * 8
    bomb[148:156] = b"%06o\0 " % sum(bomb)
    tar = bytes(bomb) + bytes(size + 1024)
    blob = compressed(tar, media_type)
    assert len(blob) < size / 500
    making = Making(single, blob, tar, media_type, extent_size=32 * MIB)
    del tar
    tracemalloc.start()
    try:
        making.run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert making.files.verified
    assert peak < 64 * MIB
    making.files.close()
    caps = LayerCaps(expansion_floor=16 * MIB)
    making = Making(single, blob, b"", media_type, caps=caps, extent_size=32 * MIB)
    with pytest.raises(LayerRefused, match="expands"):
        making.run()
    assert_nothing_left(making)


def test_f53_headers_full_of_extensions_stay_in_bounds(single: Layout) -> None:
    records = {"comment": "c" * 1_000_000}
    tar = write([member(b"f%d" % number, contents=b"x", records=records) for number in range(120)])
    blob = compressed(tar, GZIP)
    making = Making(single, blob, tar)
    del tar
    tracemalloc.start()
    try:
        making.run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * MIB
    making.files.close()


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.integers(0, 300_000), max_size=12),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([UNIT_SIZE, 4 * UNIT_SIZE]),
    st.integers(0, 1000),
)
def test_every_file_lies_where_the_device_says(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    stripes: int,
    extent_size: int,
    seed: int,
) -> None:
    chance = random.Random(seed)
    members = [
        member(b"f%d" % number, contents=chance.randbytes(size * chance.choice([1, 1, 8])))
        for number, size in enumerate(sizes)
    ]
    tar = write(members)
    layout = layout_in(tmp_path_factory.mktemp("cache"), stripes)
    making = Making(layout, compressed(tar, PLAIN), tar, PLAIN, extent_size=extent_size)
    making.run()
    reader = making.reader()
    content = reader.read(0, reader.size)
    position = 0
    for contents in (one.contents for one in members if one.contents):
        found = content.index(contents, position) if contents else position
        assert found % 4096 == 0
        assert content[position:found].count(0) == found - position
        position = found + len(contents)
    assert content[position:].count(0) == len(content) - position < 4096
    for extent in range(reader.geometry.extents):
        stripe, record = reader.map.locate(extent)
        assert stripe.blake3(record) == making.files.blake3_of(extent)
    reader.close()
    making.files.close()
