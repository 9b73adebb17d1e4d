"""Members of eStargz and zstd:chunked layers come in any order; each chunk is verified."""

import errno
import gzip
import random
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest

from headstart.content.layer.caps import LayerCaps
from headstart.content.layer.errors import LayerRefused
from headstart.store.cached_layer import CachedLayer
from headstart.store.geometry import MIB
from headstart.store.layout import Layout
from proxy.fill.layers.layer_files import LayerFiles
from proxy.fill.layers.members import MemberWriter
from proxy.fill.layers.source import SourceFailed
from tests.content.layer.archives import member as entry
from tests.content.layer.archives import write
from tests.fill.layers.chunked import Compression, brought, check_of, chunked, run
from tests.fill.layers.contents import assert_shows, some_members
from tests.fill.layers.making import GZIP, Arriving, CountingRoom, compressed, left_over, reboot
from tests.fill.writing import layout_in
from tests.store.stored_objects import open_descriptors

TAR = write(some_members(big=MIB + 12_345))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return layout_in(tmp_path, 1)


def device_of(files: LayerFiles) -> bytes:
    reader = CachedLayer(files.meta_path, files.paths, files.maps)
    content = reader.read(0, reader.available(0, 1 << 40))
    assert len(content) == reader.size
    reader.close()
    return content


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("stripes", [1, 3])
@pytest.mark.parametrize("pack", [0, 50_000])
def test_members_in_any_order_make_what_the_tar_says(
    tmp_path: Path, compression: Compression, stripes: int, pack: int
) -> None:
    layout = layout_in(tmp_path, stripes)
    layer = chunked(TAR, compression=compression, stripes=stripes, pack=pack)
    room = CountingRoom()
    files = layer.create(layout, room)
    writer = layer.writer(files)
    order = list(writer.missing())
    random.Random(3).shuffle(order)
    for member in order:
        assert writer.write(member)
        assert writer.done(member)
        assert not writer.write(member)
    assert list(writer.missing()) == []
    assert files.available(0, 1 << 40) == files.size
    assert not files.verified
    run(check_of(layer, writer))
    assert (files.verified, files.frame_path.exists()) == (True, False)
    assert_shows(files, TAR, tmp_path / "mounted")
    # Each byte once, and of the padding what lies between two files that came together.
    contents = sum(chunk.size for chunk in layer.chunks)
    written = sum(length for _, _, length in room.written)
    assert contents <= written <= (files.size if pack else contents)
    writer.close()
    files.close()


def test_what_is_published_is_right_at_every_moment(layout: Layout) -> None:
    layer = chunked(TAR, pack=30_000, chunk_size=5000)
    whole = layer.create(layout)
    writer = layer.writer(whole)
    for member in writer.missing():
        writer.write(member)
    expected = device_of(whole)
    writer.close()
    whole.close()
    files = layer.create(layout)
    writer = layer.writer(files)
    reader = CachedLayer(None, files.paths, files.maps)
    order = list(writer.missing())
    random.Random(8).shuffle(order)
    for member in order:
        writer.write(member)
        for offset in range(0, files.size, 4096):
            if reader.available(offset, 4096):
                assert reader.read(offset, 4096) == expected[offset : offset + 4096]
        for number in writer.chunks.member(member).chunks:
            # What a reader has waited for is there.
            chunk = layer.chunks[number]
            covering = writer.members_covering(
                chunk.device_offset, chunk.device_offset + chunk.size
            )
            if all(map(writer.done, covering)):
                assert files.available(chunk.device_offset, chunk.size) == chunk.size
    reader.close()
    writer.close()
    files.close()


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_two_threads_bring_each_member_once(layout: Layout, compression: Compression) -> None:
    layer = chunked(TAR, compression=compression, chunk_size=3000, pack=7000)
    room = CountingRoom()
    files = layer.create(layout, room)
    writer = layer.writer(files)
    members = [*range(writer.chunks.members)] * 2
    random.Random(1).shuffle(members)
    with ThreadPoolExecutor(4) as threads:
        brought = list(threads.map(writer.write, members))
    assert sum(brought) >= len(members) / 2
    assert list(writer.missing()) == []
    run(check_of(layer, writer))
    assert files.verified
    assert files.map is not None
    for extent in range(files.geometry.extents):
        stripe, record = files.map.locate(extent)
        assert stripe.blake3(record) == files.blake3_of(extent)
    writer.close()
    files.close()


def test_f51_a_wrong_chunk_digest_names_the_file_and_publishes_nothing(layout: Layout) -> None:
    layer = chunked(TAR)
    offset = layer.tree.root.children[b"usr"].children[b"capable"].offset
    bad = next(n for n, chunk in enumerate(layer.chunks) if chunk.device_offset == offset)
    layer.chunks[bad] = layer.chunks[bad]._replace(digest=bytes(32))
    files = layer.create(layout)
    writer = layer.writer(files)
    member = writer.chunks.member_of(bad)
    with pytest.raises(LayerRefused, match=r"usr/capable.* member at .* chunkDigest sha256:00"):
        writer.write(member)
    assert files.available(layer.chunks[bad].device_offset, 1) == 0
    assert not writer.done(member)
    writer.close()
    files.close()


def flipped(blob: bytes, position: int) -> bytes:
    return blob[:position] + bytes([blob[position] ^ 0x10]) + blob[position + 1 :]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_flipped_bit_anywhere_in_a_member_is_found(
    layout: Layout, compression: Compression
) -> None:
    layer = chunked(write(some_members(big=2000)), compression=compression)
    chance = random.Random(4)
    for _ in range(40):
        number = chance.randrange(len(layer.chunks))
        chunk = layer.chunks[number]
        position = chance.randrange(chunk.start, chunk.stop)
        files = layer.create(layout)
        writer = layer.writer(files, Arriving(flipped(layer.blob, position)))
        try:
            writer.write(writer.chunks.member_of(number))
        except LayerRefused:
            assert files.available(chunk.device_offset, 1) == 0
        else:
            # In the member's own header, its checksum, or the framing: the contents are right.
            here = files.available(chunk.device_offset, chunk.size)
            inflated = CachedLayer(None, files.paths, files.maps).read(chunk.device_offset, here)
            assert here == chunk.size
            assert sha256(inflated).digest() == chunk.digest
        writer.close()
        files.close()


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_member_too_short_for_its_chunks_is_refused(
    layout: Layout, compression: Compression
) -> None:
    layer = chunked(TAR, compression=compression)
    last = layer.chunks[-1]
    layer.chunks[-1] = last._replace(inner_offset=last.inner_offset + MIB)
    files = layer.create(layout)
    writer = layer.writer(files)
    with pytest.raises(LayerRefused, match="ends in or before"):
        writer.write(writer.chunks.member_of(len(layer.chunks) - 1))
    writer.close()
    files.close()


def test_a_member_larger_than_fits_at_once_is_streamed(layout: Layout) -> None:
    chance = random.Random(2)
    members = [
        entry(b"large", contents=chance.randbytes(MIB) * 20),
        entry(b"small", contents=b"x"),
    ]
    layer = chunked(write(members), chunk_size=1 << 40, extent_size=32 * MIB)
    files = layer.create(layout)
    writer = layer.writer(files)
    for member in list(writer.missing()):
        writer.write(member)
    run(check_of(layer, writer))
    assert files.verified
    writer.close()
    files.close()


def test_a_member_that_is_several_is_read_to_its_end(layout: Layout) -> None:
    layer = chunked(TAR)
    # The last file's member, cut in several: libdeflate tells of the first one only.
    tail = gzip.decompress(layer.blob[layer.starts[-1] : layer.location.tar_stop])
    cuts = [0, layer.chunks[-1].size + 7, len(tail) - 512, len(tail)]
    layer = layer.with_last_member(b"".join(compressed(tail[a:b], GZIP) for a, b in pairwise(cuts)))
    files = layer.create(layout)
    writer = layer.writer(files)
    for member in list(writer.missing()):
        writer.write(member)
    run(check_of(layer, writer))
    assert files.verified
    writer.close()
    files.close()


def test_f53_a_member_that_is_a_bomb_is_refused(layout: Layout) -> None:
    layer = chunked(TAR)
    tail = gzip.decompress(layer.blob[layer.starts[-1] : layer.location.tar_stop])
    layer = layer.with_last_member(compressed(tail + bytes(64 * MIB), GZIP))
    caps = LayerCaps(expansion_floor=8 * MIB, expansion_ratio=1)
    files = layer.create(layout)
    writer = MemberWriter(Arriving(layer.blob), layer.toc(), files, caps=caps)
    with pytest.raises(LayerRefused, match="expands"):
        writer.write(writer.chunks.member_of(len(layer.chunks) - 1))
    assert files.frame_path.stat().st_size <= 10 * MIB
    writer.close()
    files.close()


def test_a_source_that_fails_leaves_the_member_for_later(layout: Layout) -> None:
    layer = chunked(TAR)
    files = layer.create(layout)
    source = Arriving(layer.blob, arrived=layer.chunks[5].start + 3)
    source.fail("gone")
    writer = layer.writer(files, source)
    with pytest.raises(SourceFailed):
        writer.write(3)
    writer.close()
    writer = layer.writer(files)
    assert writer.write(3)
    writer.close()
    files.close()


def test_f27_no_room_for_a_chunk_says_so(layout: Layout) -> None:
    layer = chunked(TAR)
    room = CountingRoom(limit=8 * 4096)
    files = layer.create(layout, room)
    writer = layer.writer(files)
    with pytest.raises(OSError, match="No space") as raised:
        for member in list(writer.missing()):
            writer.write(member)
    assert raised.value.errno == errno.ENOSPC
    writer.close()
    files.unlink()
    files.close()
    assert left_over(layout) == []


@pytest.mark.parametrize("rebooted", [False, True])
def test_another_process_goes_on_where_one_was_killed(layout: Layout, rebooted: bool) -> None:
    layer = chunked(TAR, pack=20_000, chunk_size=6000)
    files = layer.create(layout)
    writer = layer.writer(files)
    half = list(writer.missing())[::2]
    for member in half:
        writer.write(member)
    files.close()
    writer.close()
    if rebooted:
        reboot(layout, layer.digest)
    again = LayerFiles.open(layout, layer.digest)
    assert again is not None and again.check()
    writer = layer.writer(again)
    # After a boot extents that were not whole are misses; their framing is not.
    assert all(member in writer.frame for member in half)
    if not rebooted:
        assert all(map(writer.done, half))
    for member in list(writer.missing()):
        writer.write(member)
    run(check_of(layer, writer))
    assert again.verified
    writer.close()
    again.close()


def test_framing_of_another_boot_is_no_proof_of_contents(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = chunked(TAR, pack=20_000, chunk_size=6000)
    monkeypatch.setattr("proxy.fill.layers.framing.boot_id", lambda: b"another boot ago")
    files = layer.create(layout)
    writer = layer.writer(files)
    # One extent whole, of the others every second member.
    extent = layer.extent_size
    half = sorted({*writer.members_covering(0, extent), *list(writer.missing())[::2]})
    for member in half:
        writer.write(member)
    writer.close()
    files.close()
    monkeypatch.undo()
    reboot(layout, layer.digest)
    # Bytes of extents that were not whole may never have reached the disk.
    with files.paths[0].open("r+b") as file:
        file.seek(extent)
        file.write(bytes(files.size - extent))
    again = LayerFiles.open(layout, layer.digest)
    assert again is not None and again.check()
    assert again.available(0, 1 << 40) == extent
    writer = layer.writer(again)
    assert all(member in writer.frame for member in half)
    for member in list(writer.missing()):
        writer.write(member)
    run(check_of(layer, writer))
    assert again.verified
    writer.close()
    again.close()


def test_a_chunk_that_is_here_stays_as_it_is_between_two_that_are_not(layout: Layout) -> None:
    content = random.Random(6).randbytes(3 * MIB)
    layer = chunked(write([entry(b"a", contents=content)]), chunk_size=1 << 40)
    (one,) = layer.chunks
    borders = [0, MIB + 100, MIB + 300, 3 * MIB]
    layer.chunks[:] = [
        one._replace(
            device_offset=first,
            size=stop - first,
            inner_offset=first,
            digest=sha256(content[first:stop]).digest(),
        )
        for first, stop in pairwise(borders)
    ]
    files, writer = brought(layer, layout)
    writer.close()
    assert files.map is not None
    for extent in (0, 2):
        stripe, record = files.map.locate(extent)
        stripe.clear(record)
    files.frame_path.unlink()
    reader = CachedLayer(None, files.paths, files.maps)
    assert reader.available(MIB, MIB) == MIB
    writer = layer.writer(files)
    assert [writer.verified(number) for number in range(3)] == [False, True, False]
    for member in list(writer.missing()):
        writer.write(member)
    assert reader.read(0, reader.available(0, 1 << 40)) == content
    reader.close()
    writer.close()
    files.close()


def test_a_frame_file_cut_or_damaged_is_believed_up_to_there(layout: Layout) -> None:
    layer = chunked(TAR)
    files = layer.create(layout)
    writer = layer.writer(files)
    for member in writer.missing():
        writer.write(member)
    size = writer.frame.size
    writer.close()
    content = files.frame_path.read_bytes()
    for damaged in (
        content[: size // 2],
        flipped(content, size // 2),
        content + b"\0" * 40,
        content + b"\xff" * 40,
        b"",
    ):
        files.frame_path.write_bytes(damaged)
        writer = layer.writer(files)
        missing = list(writer.missing())
        assert bool(missing) == (damaged[:size] != content)
        for member in missing:
            writer.write(member)
        assert list(writer.missing()) == []
        writer.close()
    writer = layer.writer(files)
    run(check_of(layer, writer))
    assert files.verified
    writer.close()
    files.close()


def test_nothing_stays_open(layout: Layout) -> None:
    layer = chunked(TAR)
    before = open_descriptors()
    files, writer = brought(layer, layout)
    run(check_of(layer, writer))
    writer.close()
    writer.close()
    files.close()
    assert open_descriptors() == before


def test_what_is_wanted_names_the_members_to_fetch(layout: Layout) -> None:
    layer = chunked(TAR, pack=20_000, chunk_size=6000)
    files = layer.create(layout)
    writer = layer.writer(files)
    bounds = [writer.chunks.member(number)[:2] for number in range(writer.chunks.members)]
    assert bounds[0][0] == 0
    assert all(one[1] == other[0] for one, other in pairwise(bounds))
    for start, stop in ((0, len(layer.blob)), (1, 40_000), (bounds[3][0], bounds[5][1]), (7, 8)):
        within = [number for number, one in enumerate(bounds) if start <= one[0] and one[1] <= stop]
        assert list(writer.members_within(start, stop)) == within
    assert set(writer.members_covering(0, files.size)) >= {
        writer.chunks.member_of(number) for number in range(len(layer.chunks))
    }
    chunk = layer.chunks[20]
    wanted = writer.members_covering(chunk.device_offset + 1, chunk.device_offset + 2)
    assert writer.chunks.member_of(20) in wanted
    for member in wanted:
        writer.write(member)
    assert files.available(chunk.device_offset + 1, 1) == 1
    writer.close()
    files.close()
