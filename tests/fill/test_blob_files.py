"""Files and maps of a blob: made, filled, opened after a crash, and never believed too much."""

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.store.extent_map import STATE_HASHED, StripeMap
from headstart.store.geometry import MIB, UNIT_SIZE
from headstart.store.layout import Layout
from proxy.fill.blob_files import BlobFiles
from tests.fill.writing import layout_in, reader_of, write_whole
from tests.store.stored_objects import open_descriptors, pattern

EXTENT = 4 * UNIT_SIZE
SIZE = 5 * EXTENT + UNIT_SIZE + 321
PAYLOAD = pattern(0, SIZE)
DIGEST = Digest.of(PAYLOAD)
EXTENTS = range(6)


@pytest.fixture(params=[1, 3])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    return layout_in(tmp_path, request.param)


def created(layout: Layout, size: int = SIZE) -> BlobFiles:
    return BlobFiles.create(layout, DIGEST, size, EXTENT)


def stored(layout: Layout, *, verified: bool = True) -> None:
    """A whole blob on disk, closed."""
    files = created(layout)
    write_whole(files, PAYLOAD)
    if verified:
        files.mark_verified()
        files.sync()
    files.close()


def reopened(layout: Layout) -> BlobFiles:
    files = BlobFiles.open(layout, DIGEST)
    assert files is not None
    return files


def check_all(files: BlobFiles) -> list[int]:
    """Check what is unchecked; the extents that are here afterwards, which must read right."""
    for extent in EXTENTS:
        if files.unchecked(extent):
            files.check_extent(extent)
    reader = reader_of(files)
    here = [extent for extent in EXTENTS if files.map.whole(extent)]
    for extent in EXTENTS:
        start = extent * EXTENT
        count = reader.available(start, files.geometry.extent_length(extent))
        assert reader.read(start, count) == PAYLOAD[start : start + count]
    reader.close()
    return here


def entries(layout: Layout) -> set[Path]:
    """Every file of blobs in the cache."""
    return {
        path
        for stripe in layout.stripes
        for path in (stripe / "blobs").rglob("*")
        if path.is_file()
    }


def settle() -> None:
    """Let the clock of the file system go on: a ctime has the grain of the kernel's tick."""
    time.sleep(0.02)


def extent_place(layout: Layout, extent: int) -> tuple[Path, int]:
    """The file and the offset of an extent."""
    count = len(layout.stripes)
    return layout.blob_paths(DIGEST, count)[extent % count], extent // count * EXTENT


def overwrite(path: Path, offset: int, payload: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, payload, offset)
    os.close(descriptor)


# --- making, writing, publishing ---


def test_a_new_blob_is_empty_and_takes_no_space(layout: Layout) -> None:
    files = created(layout)
    assert files.allocated() == 0
    assert sum(path.stat().st_size for path in files.paths) == SIZE
    assert {path.stat().st_mode & 0o777 for path in (*files.paths, *files.maps)} == {0o640}
    reader = reader_of(files)
    assert (reader.size, reader.present(), reader.verified) == (SIZE, 0, False)
    reader.close()
    files.close()
    files.close()


def test_what_is_written_is_read_back_from_its_place(layout: Layout) -> None:
    files = created(layout)
    write_whole(files, PAYLOAD)
    reader = reader_of(files)
    assert reader.available(0) == SIZE
    assert reader.read(0, SIZE) == PAYLOAD
    reader.close()
    for extent in EXTENTS:
        content = PAYLOAD[extent * EXTENT : (extent + 1) * EXTENT]
        stripe, record = files.map.locate(extent)
        assert stripe.blake3(record) == blake3(content).digest() == files.blake3_of(extent)
    assert files.map.complete()
    files.close()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_only_written_bytes_are_ever_shown(layout: Layout, data: st.DataObject) -> None:
    """Ranges start on unit borders and grow; what is shown is compared with what was written."""
    files = created(layout)
    reader = reader_of(files)
    written = bytearray(SIZE)
    heads: dict[int, int] = {}
    try:
        for _ in range(data.draw(st.integers(1, 12))):
            origin = data.draw(st.integers(0, SIZE // UNIT_SIZE)) * UNIT_SIZE
            start = heads.get(origin, origin)
            stop = min(SIZE, start + data.draw(st.integers(1, 2 * EXTENT)))
            if start >= stop:
                continue
            whole_before = {extent for extent in EXTENTS if files.map.whole(extent)}
            files.write(start, memoryview(PAYLOAD[start:stop]))
            whole = files.publish(origin, stop, start)
            written[start:stop] = b"\1" * (stop - start)
            heads[origin] = stop
            whole_after = {extent for extent in EXTENTS if files.map.whole(extent)}
            assert set(whole) == whole_after - whole_before
            for unit in range(-(-SIZE // UNIT_SIZE)):
                offset = unit * UNIT_SIZE
                end = min(SIZE, offset + UNIT_SIZE)
                count = reader.available(offset, end - offset)
                assert 0 not in written[offset : offset + count]
                if 0 not in written[offset:end] and origin <= offset and end <= stop:
                    assert count == end - offset
            shown = reader.available(0)
            assert 0 not in written[:shown]
            assert reader.read(0, shown) == PAYLOAD[:shown]
    finally:
        reader.close()
        files.close()


def test_the_watermark_moves_with_every_piece_and_jumps_over_whole_units(layout: Layout) -> None:
    files = created(layout)
    reader = reader_of(files)
    assert files.publish(UNIT_SIZE, 3 * UNIT_SIZE, UNIT_SIZE) == []
    assert reader.available(0) == 0
    assert reader.available(UNIT_SIZE) == 2 * UNIT_SIZE
    assert files.publish(0, 100, 0) == []
    assert reader.available(0) == 100
    assert files.publish(0, UNIT_SIZE, 100) == []
    assert reader.available(0) == 3 * UNIT_SIZE
    assert files.publish(3 * UNIT_SIZE, 4 * UNIT_SIZE, 3 * UNIT_SIZE) == [0]
    assert files.publish(0, EXTENT, 0) == []
    reader.close()
    files.close()


def test_an_extent_is_reserved_once_and_takes_its_space(layout: Layout) -> None:
    files = created(layout)
    files.reserve(1)
    files.reserve(1)
    assert files.reserved(1)
    assert not files.reserved(0)
    assert EXTENT <= files.allocated() < 2 * EXTENT
    files.reserve(5)
    assert files.allocated() < 3 * EXTENT
    assert sum(path.stat().st_size for path in files.paths) == SIZE
    files.close()


def test_making_a_blob_anew_does_not_touch_the_files_that_readers_have(layout: Layout) -> None:
    stored(layout)
    first = reopened(layout)
    reader = reader_of(first)
    first.close()
    again = created(layout)
    assert reader.read(0, SIZE) == PAYLOAD
    assert reader_here(again) == 0
    reader.close()
    again.close()


def reader_here(files: BlobFiles) -> int:
    reader = reader_of(files)
    try:
        return reader.present()
    finally:
        reader.close()


def test_an_empty_blob_is_complete_at_once(layout: Layout) -> None:
    files = created(layout, 0)
    assert files.map.complete()
    files.close()
    again = reopened(layout)
    assert again.geometry.size == 0
    again.close()


def test_f35_an_unlinked_blob_is_gone_for_new_readers_and_whole_for_open_ones(
    layout: Layout,
) -> None:
    stored(layout)
    files = reopened(layout)
    reader = reader_of(files)
    assert files.intact()
    files.unlink()
    assert not files.intact()
    files.close()
    assert entries(layout) == set()
    assert BlobFiles.open(layout, DIGEST) is None
    assert reader.read(0, SIZE) == PAYLOAD
    reader.close()


# --- opening what is there ---


def test_nothing_is_opened_where_nothing_is(layout: Layout) -> None:
    before = open_descriptors()
    assert BlobFiles.open(layout, DIGEST) is None
    assert open_descriptors() == before


def test_a_whole_blob_is_believed_after_a_restart(layout: Layout) -> None:
    stored(layout)
    before = open_descriptors()
    files = reopened(layout)
    assert files.map.verified
    assert files.intact()
    assert not any(map(files.unchecked, EXTENTS))
    assert check_all(files) == list(EXTENTS)
    files.close()
    assert open_descriptors() == before


def test_f30_a_partial_blob_goes_on_where_its_filler_was_killed(layout: Layout) -> None:
    """SIGKILL leaves page cache and map coherent: nothing that was shown is lost."""
    files = created(layout)
    reached = 2 * EXTENT + UNIT_SIZE + 77
    for start, stop in ((0, EXTENT), (EXTENT, 2 * EXTENT), (2 * EXTENT, reached)):
        files.write(start, memoryview(PAYLOAD[start:stop]))
        for extent in files.publish(start, stop, start):
            files.set_blake3(extent, files.blake3_of(extent))
    files.write(4 * EXTENT, memoryview(PAYLOAD[4 * EXTENT :]))  # written and never published
    files.close()
    again = reopened(layout)
    reader = reader_of(again)
    assert reader.available(0) == reached
    assert reader.read(0, reached) == PAYLOAD[:reached]
    assert reader.available(4 * EXTENT) == 0
    assert not again.map.verified
    assert again.reserved(0)
    assert not again.reserved(4)
    reader.close()
    again.close()


def test_after_another_boot_whole_extents_are_checked_and_others_are_misses(
    layout: Layout,
) -> None:
    files = created(layout)
    write_whole(files, PAYLOAD[: 3 * EXTENT + 100])
    files.close()
    for path in files.maps:
        stripe_map = StripeMap(path, writable=True)
        stripe_map.set_boot(bytes(16))
        stripe_map.close()
    again = reopened(layout)
    assert [again.unchecked(extent) for extent in EXTENTS] == [True] * 3 + [False] * 3
    assert reader_here(again) == 0
    assert check_all(again) == [0, 1, 2]
    assert not again.map.verified
    again.close()
    # What was checked once is believed by the next start of the same boot.
    third = reopened(layout)
    assert [extent for extent in EXTENTS if third.map.whole(extent)] == [0, 1, 2]
    third.close()


def test_f33_a_flipped_byte_is_found_and_only_its_extent_is_lost(layout: Layout) -> None:
    stored(layout)
    settle()
    path, offset = extent_place(layout, 4)
    overwrite(path, offset + 1000, b"\x55" if PAYLOAD[4 * EXTENT + 1000] != 0x55 else b"\xaa")
    files = reopened(layout)
    assert not files.map.verified
    touched = [extent for extent in EXTENTS if extent_place(layout, extent)[0] == path]
    assert [extent for extent in EXTENTS if files.unchecked(extent)] == touched
    assert check_all(files) == [0, 1, 2, 3, 5]
    assert not files.reserved(4)
    files.close()


def test_f33_a_changed_ctime_alone_has_everything_checked(layout: Layout) -> None:
    stored(layout)
    settle()
    for path in layout.blob_paths(DIGEST, len(layout.stripes)):
        os.chmod(path, 0o600)
    files = reopened(layout)
    assert not files.map.verified
    assert all(map(files.unchecked, EXTENTS))
    assert check_all(files) == list(EXTENTS)
    files.close()


@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize("length", [0, 1000, EXTENT, EXTENT + 1000])
def test_f33_a_truncated_file_loses_its_end_and_nothing_wrong_is_read(
    layout: Layout, length: int, verified: bool
) -> None:
    stored(layout, verified=verified)
    settle()
    path, _ = extent_place(layout, 0)
    os.truncate(path, length)
    files = reopened(layout)
    lost = {
        extent
        for extent in EXTENTS
        if extent_place(layout, extent)[0] == path
        and extent_place(layout, extent)[1] + files.geometry.extent_length(extent) > length
    }
    assert check_all(files) == sorted(set(EXTENTS) - lost)
    assert sum(path.stat().st_size for path in files.paths) == SIZE
    files.close()


@pytest.mark.parametrize("verified", [True, False])
def test_f33_an_extended_file_is_checked_and_cut_back(layout: Layout, verified: bool) -> None:
    stored(layout, verified=verified)
    settle()
    path, _ = extent_place(layout, 0)
    with path.open("ab") as file:
        file.write(b"surplus")
    files = reopened(layout)
    assert not files.map.verified
    assert check_all(files) == list(EXTENTS)
    assert sum(path.stat().st_size for path in files.paths) == SIZE
    files.close()


def test_f33_a_deleted_file_is_a_miss_of_its_extents(layout: Layout) -> None:
    stored(layout)
    path, _ = extent_place(layout, 0)
    path.unlink()
    files = reopened(layout)
    kept = [extent for extent in EXTENTS if extent_place(layout, extent)[0] != path]
    assert check_all(files) == kept
    assert not files.map.verified
    files.close()


@pytest.mark.parametrize("damage", ["lost", "empty", "garbage", "foreign", "zero extent size"])
def test_f33_a_damaged_map_is_a_miss_of_its_extents(
    layout: Layout, tmp_path: Path, damage: str
) -> None:
    stored(layout)
    path, _ = extent_place(layout, 0)
    map_of_first = path.with_name(path.name + ".map")
    match damage:
        case "lost":
            map_of_first.unlink()
        case "empty":
            map_of_first.write_bytes(b"")
        case "garbage":
            map_of_first.write_bytes(os.urandom(map_of_first.stat().st_size))
        case "foreign":
            other = BlobFiles.create(layout_in(tmp_path / "other"), DIGEST, 5 * MIB, MIB)
            map_of_first.write_bytes(other.maps[0].read_bytes())
            other.close()
        case _:
            overwrite(map_of_first, 32, bytes(8))
    before = open_descriptors()
    files = BlobFiles.open(layout, DIGEST)
    if files is None:
        assert open_descriptors() == before
        return
    if files.geometry.size == SIZE:
        assert check_all(files) == [extent for extent in EXTENTS if extent % 3]
    else:
        # The foreign map speaks first: the blob's size is then wrong, and nothing of it is here.
        assert damage == "foreign"
        assert reader_here(files) == 0
    files.close()
    assert open_descriptors() == before


def test_an_unreadable_extent_is_a_miss(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(layout)
    files = reopened(layout)
    stripe, record = files.map.locate(2)
    stripe.set_state(record, 3)

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "read_into", broken)
    assert not files.check_extent(2)
    assert not files.map.whole(2)
    assert stripe.state(record) & STATE_HASHED == 0
    files.close()


# --- stripes that come and go ---


def test_f36a_a_stripe_that_is_gone_costs_its_extents_only(tmp_path: Path) -> None:
    layout = layout_in(tmp_path, 3)
    stored(layout)
    before = open_descriptors()
    away = tmp_path / "unmounted"
    layout.stripes[1].rename(away)
    layout.stripes[1].mkdir()
    files = reopened(layout)
    assert check_all(files) == [0, 2, 3, 5]
    with pytest.raises(OSError, match="cannot be used"):
        files.reserve(1)
    files.reserve(0)
    files.close()
    assert list(layout.stripes[1].iterdir()) == []
    assert open_descriptors() == before


def test_a_blob_of_fewer_stripes_is_read_after_stripes_were_added(tmp_path: Path) -> None:
    stored(layout_in(tmp_path, 1))
    files = reopened(layout_in(tmp_path, 3))
    assert files.geometry.stripes == 1
    assert check_all(files) == list(EXTENTS)
    files.close()


def test_a_blob_of_more_stripes_than_there_are_is_absent(tmp_path: Path) -> None:
    stored(layout_in(tmp_path, 3))
    assert BlobFiles.open(Layout((tmp_path / "stripe-0", tmp_path / "stripe-1")), DIGEST) is None


# --- full disks ---


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 3 MiB: room for two extents and little more."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    path = tmp_path / "tiny"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill_up(directory: Path) -> None:
    """Leave no block free."""
    with (directory / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC


def test_f27_a_blob_that_cannot_be_made_leaves_nothing_behind(tiny_disk: Path) -> None:
    layout = layout_in(tiny_disk / "cache", 2)
    BlobFiles.create(layout, DIGEST, 0, EXTENT).unlink()  # the directories are there
    fill_up(tiny_disk)
    before = open_descriptors()
    with pytest.raises(OSError, match="No space left") as raised:
        created(layout)
    assert raised.value.errno == errno.ENOSPC
    assert entries(layout) == set()
    assert open_descriptors() == before


def test_a_size_that_no_file_can_have_leaves_nothing_behind(layout: Layout) -> None:
    before = open_descriptors()
    with pytest.raises(OSError, match=r"too large|No space"):
        BlobFiles.create(layout, DIGEST, (1 << 63) - 1, EXTENT)
    assert entries(layout) == set()
    assert open_descriptors() == before


def test_f27_no_extent_is_begun_that_has_no_room(tiny_disk: Path) -> None:
    layout = layout_in(tiny_disk / "cache")
    files = created(layout)
    files.reserve(0)
    fill_up(tiny_disk)
    with pytest.raises(OSError, match="No space left") as raised:
        files.reserve(1)
    assert raised.value.errno == errno.ENOSPC
    assert not files.reserved(1)
    # What was reserved before can be written to its end, and shown.
    files.write(0, memoryview(PAYLOAD[:EXTENT]))
    assert files.publish(0, EXTENT, 0) == [0]
    assert check_all(files) == [0]
    (tiny_disk / "ballast").unlink()
    files.reserve(1)
    files.close()


def test_f36a_a_full_stripe_is_left_out_of_a_new_blob(tiny_disk: Path, tmp_path: Path) -> None:
    layout = Layout((tmp_path / "roomy", tiny_disk / "cache"))
    layout.prepare()
    fill_up(tiny_disk)
    before = open_descriptors()
    files = BlobFiles.create(layout, DIGEST, SIZE, EXTENT, stand_in=True)
    files.reserve(0)
    with pytest.raises(OSError, match="cannot be used"):
        files.reserve(1)
    files.unlink()
    files.close()
    assert entries(layout) == set()
    assert open_descriptors() == before
