"""Files and maps of a layer image: made, opened after a crash, and never believed too much."""

import errno
import itertools
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from headstart.content.digest import Digest
from headstart.store.cached_layer import CachedLayer
from headstart.store.geometry import MIB, UNIT_SIZE
from headstart.store.layer_map import LayerMap, LayerStripeMap
from headstart.store.layout import STAMP, Layout
from proxy.fill.layers.layer_files import NO_ACCOUNT, LayerFiles
from proxy.fill.layers.stored_layers import remove_layer, stored_layers, sweep, usable_stripes
from tests.fill.layers.making import CountingRoom, left_over, reboot
from tests.fill.writing import layout_in
from tests.store.stored_objects import open_descriptors, pattern

EXTENT = 4 * UNIT_SIZE
SIZE = 5 * EXTENT + UNIT_SIZE + 4096
PAYLOAD = pattern(0, SIZE)
DIGEST = Digest.of(b"the layer's blob")
META = pattern(77, 3 * 4096)


@pytest.fixture(params=[1, 3])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    return layout_in(tmp_path, request.param)


def created(layout: Layout, size: int | None = SIZE) -> LayerFiles:
    return LayerFiles.create(layout, DIGEST, size, EXTENT, NO_ACCOUNT)


def bring(files: LayerFiles, start: int, stop: int) -> None:
    """Write and publish; hash what is whole by it."""
    files.write(start, [PAYLOAD[start:stop]])
    for extent in files.publish(start, stop):
        files.set_blake3(extent, files.blake3_of(extent))


def stored(layout: Layout) -> None:
    """A complete, verified layer image on disk, closed."""
    files = created(layout)
    files.write_meta(META)
    bring(files, 0, SIZE)
    files.mark_verified()
    files.sync()
    files.close()


def reopened(layout: Layout) -> LayerFiles:
    files = LayerFiles.open(layout, DIGEST)
    assert files is not None
    return files


def state(files: LayerFiles) -> tuple[bool, bool, bool]:
    """Whether it is complete, verified, doubted."""
    return files.complete, files.verified, files.doubted


def reader_of(files: LayerFiles) -> CachedLayer:
    return CachedLayer(files.meta_path, files.paths, files.maps)


def flip(path: Path, position: int) -> None:
    """Change one byte behind our back."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


def test_what_is_written_is_read_where_the_device_says(layout: Layout) -> None:
    files = created(layout)
    pieces = [memoryview(PAYLOAD)[start : start + 70_001] for start in range(0, SIZE, 70_001)]
    files.write(0, pieces)
    reader = CachedLayer(None, files.paths, files.maps)
    assert reader.available(0, SIZE) == 0
    assert files.publish(100, SIZE - 100) == list(range(1, 5))
    assert files.publish(0, 4096) == [0]
    assert files.publish(SIZE - 4096, SIZE) == [5]
    assert files.publish(0, SIZE) == []
    assert reader.read(0, reader.available(0, 1 << 40)) == PAYLOAD
    buffer = memoryview(bytearray(SIZE))
    done = 0
    while done < SIZE:
        done += files.read_into(done, buffer[done:])
    assert buffer == PAYLOAD
    reader.close()
    files.close()


def test_space_is_taken_once_and_before_bytes(layout: Layout) -> None:
    room = CountingRoom()
    files = LayerFiles.create(layout, DIGEST, SIZE, EXTENT, room)
    files.write(EXTENT + 10, [b"x"])
    assert room.reserved == EXTENT
    assert files.allocated() >= EXTENT
    files.write(EXTENT + 20, [b"y"])
    assert room.reserved == EXTENT
    files.write(2 * EXTENT - 1, [b"ab"])
    assert room.reserved == 2 * EXTENT
    files.write(SIZE - 1, [b"z"])
    assert room.reserved == 2 * EXTENT + UNIT_SIZE + 4096
    files.close()


def test_space_that_was_taken_is_not_taken_again_by_the_next_process(layout: Layout) -> None:
    files = created(layout)
    files.write_meta(META)
    bring(files, EXTENT + 4096, EXTENT + 8192)
    files.close()
    room = CountingRoom()
    again = LayerFiles.open(layout, DIGEST, room)
    assert again is not None
    again.write(EXTENT, [b"x"])
    assert room.reserved == 0
    again.write(0, [b"x"])
    assert room.reserved == EXTENT
    again.close()


def test_a_disk_without_room_is_asked_again_next_time(layout: Layout) -> None:
    room = CountingRoom(limit=EXTENT)
    files = LayerFiles.create(layout, DIGEST, SIZE, EXTENT, room)
    files.write(0, [b"x"])
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            files.write(EXTENT, [b"x"])
    room.limit = 2 * EXTENT
    files.write(EXTENT, [b"x"])
    files.close()


def test_an_image_whose_size_comes_last_is_there_only_then(layout: Layout) -> None:
    files = created(layout, None)
    files.write(0, [PAYLOAD])
    assert LayerFiles.open(layout, DIGEST) is None
    with pytest.raises(ValueError, match="not known yet"):
        files.publish(0, SIZE)
    files.finish(SIZE, {0: blake3(PAYLOAD[:EXTENT]).digest()})
    files.write_meta(META)
    files.mark_verified()
    reader = reader_of(files)
    assert reader.verified and reader.intact()
    assert reader.read(0, SIZE) == PAYLOAD
    for extent in range(6):
        stripe, record = reader.map.locate(extent)
        assert stripe.blake3(record) == files.blake3_of(extent)
    assert files.allocated() < SIZE + 8 * 64 * 1024
    reader.close()
    files.close()


def test_a_new_image_does_not_touch_the_readers_of_an_old_one(layout: Layout) -> None:
    stored(layout)
    old = reopened(layout)
    reader = reader_of(old)
    files = created(layout)
    assert reader.read(0, SIZE) == PAYLOAD
    assert not files.has_meta
    assert not files.meta_path.exists()
    reader.close()
    old.close()
    files.close()


def test_a_complete_image_is_believed_again_in_the_same_boot(layout: Layout) -> None:
    stored(layout)
    files = reopened(layout)
    assert files.verified and files.complete and not files.doubted and files.has_meta
    assert files.size == SIZE
    assert files.check()
    reader = reader_of(files)
    assert reader.intact() and reader.verified
    reader.close()
    files.close()


def test_a_half_filled_image_goes_on_in_the_same_boot(layout: Layout) -> None:
    files = created(layout)
    files.write_meta(META)
    bring(files, EXTENT + 8192, 3 * EXTENT)
    files.close()
    files = reopened(layout)
    assert not files.complete
    assert files.available(EXTENT + 8192, SIZE) == 2 * EXTENT - 8192
    assert files.available(EXTENT, SIZE) == 0
    bring(files, 0, EXTENT + 8192)
    bring(files, 3 * EXTENT, SIZE)
    files.mark_verified()
    assert files.verified
    files.close()


def test_after_another_boot_everything_is_checked_before_it_is_believed(layout: Layout) -> None:
    stored(layout)
    reboot(layout, DIGEST)
    files = reopened(layout)
    assert state(files) == (False, False, True)
    assert files.available(0, SIZE) == 0
    reader = reader_of(files)
    assert (reader.verified, files.check_extent(2)) == (False, True)
    assert reader.available(2 * EXTENT, SIZE) == EXTENT
    assert state(files) == (False, False, True)
    assert files.check()
    assert state(files) == (True, True, False)
    assert (reader.verified, reader.intact()) == (True, True)
    reader.close()
    files.close()
    again = reopened(layout)
    assert again.verified
    again.close()


def test_doubt_outlives_a_process_that_has_not_checked(layout: Layout) -> None:
    stored(layout)
    reboot(layout, DIGEST)
    reopened(layout).close()
    files = reopened(layout)
    assert files.doubted and files.available(0, SIZE) == 0
    assert files.check() and files.verified
    files.close()


def test_after_another_boot_extents_that_were_not_whole_are_misses(layout: Layout) -> None:
    files = created(layout)
    files.write_meta(META)
    bring(files, EXTENT, 3 * EXTENT + 8192)
    files.close()
    reboot(layout, DIGEST)
    files = reopened(layout)
    assert files.available(EXTENT, SIZE) == 0
    assert files.check()
    assert files.available(EXTENT, SIZE) == 2 * EXTENT
    assert files.map is not None
    assert files.map.present() == 2 * EXTENT
    assert not files.complete and not files.doubted
    files.close()


@pytest.mark.parametrize("extent", range(6))
def test_f33_a_flipped_byte_is_found_by_the_changed_ctime(layout: Layout, extent: int) -> None:
    stored(layout)
    files = reopened(layout)
    stripe, offset = files.geometry.place(extent * EXTENT)
    path = files.paths[stripe]
    files.close()
    flip(path, offset + 4097)
    files = reopened(layout)
    assert not files.verified
    assert not files.check()
    reader = reader_of(files)
    for number in range(6):
        count = reader.available(number * EXTENT, EXTENT)
        expected = PAYLOAD[number * EXTENT :][:count]
        assert reader.read(number * EXTENT, count) == expected
    assert reader.available(extent * EXTENT, SIZE) == 0
    reader.close()
    files.unlink()
    files.close()
    assert left_over(layout) == []


def test_f33_a_touched_file_with_the_right_bytes_is_kept(layout: Layout) -> None:
    stored(layout)
    os.utime(layout.layer_paths(DIGEST, 1)[0])
    files = reopened(layout)
    assert files.doubted
    assert files.check() and files.verified
    files.close()
    files = reopened(layout)
    assert files.verified
    files.close()


def damaged(change: Callable[[Layout], object]) -> Callable[[Layout], object]:
    return change


@pytest.mark.parametrize(
    "damage",
    [
        damaged(lambda layout: flip(layout.layer_meta_path(DIGEST), 5000)),
        damaged(lambda layout: layout.layer_meta_path(DIGEST).unlink()),
        damaged(lambda layout: os.truncate(layout.layer_meta_path(DIGEST), 4096)),
        damaged(lambda layout: os.truncate(layout.layer_paths(DIGEST, 1)[0], 4096)),
        damaged(lambda layout: os.truncate(layout.layer_paths(DIGEST, 1)[0], 9 * SIZE)),
        damaged(lambda layout: layout.layer_paths(DIGEST, 1)[0].unlink()),
        damaged(lambda layout: map_of(layout).write_bytes(b"")),
        damaged(lambda layout: os.truncate(map_of(layout), 300)),
        damaged(lambda layout: flip(map_of(layout), 3)),
        damaged(lambda layout: flip(map_of(layout), 25)),
    ],
)
def test_f33_damage_that_no_extent_shows_drops_the_image(
    layout: Layout, damage: Callable[[Layout], object]
) -> None:
    stored(layout)
    before = open_descriptors()
    damage(layout)
    assert LayerFiles.open(layout, DIGEST) is None
    assert left_over(layout) == []
    assert open_descriptors() == before


def map_of(layout: Layout) -> Path:
    path = layout.layer_paths(DIGEST, 1)[0]
    return path.with_name(path.name + ".map")


def test_metadata_is_checked_after_another_boot(layout: Layout) -> None:
    stored(layout)
    reboot(layout, DIGEST)
    files = reopened(layout)
    assert files.check()
    files.close()
    path = layout.layer_meta_path(DIGEST)
    status = path.stat()
    flip(path, 1)
    # A disk that was written to from outside tells no change of the times.
    stripe_map = LayerStripeMap(map_of(layout), writable=True)
    stripe_map.record_meta(
        stripe_map.meta._replace(ctime_ns=path.stat().st_ctime_ns, size=status.st_size)
    )
    stripe_map.close()
    reboot(layout, DIGEST)
    assert LayerFiles.open(layout, DIGEST) is None
    assert left_over(layout) == []


def test_an_image_without_metadata_was_never_mountable(layout: Layout) -> None:
    files = created(layout)
    bring(files, 0, SIZE)
    files.close()
    assert LayerFiles.open(layout, DIGEST) is None
    assert left_over(layout) == []


def test_f36a_a_stripe_that_is_away_takes_its_images_with_it(tmp_path: Path) -> None:
    layout = layout_in(tmp_path, 3)
    stored(layout)
    (layout.stripes[1] / STAMP).rename(tmp_path / "stamp")
    assert usable_stripes(layout) == 1
    assert LayerFiles.open(layout, DIGEST) is None
    assert len(left_over(layout)) == 7, "nothing is removed: the stripe may come back"
    (tmp_path / "stamp").rename(layout.stripes[1] / STAMP)
    files = reopened(layout)
    assert files.verified
    files.close()
    (layout.stripes[2] / STAMP).unlink()
    files = created(layout)
    assert files.geometry.stripes == 2
    files.write_meta(META)
    bring(files, 0, SIZE)
    assert files.available(0, SIZE) == SIZE
    files.close()
    files = reopened(layout)
    assert files.geometry.stripes == 2
    files.close()


def test_f27_what_cannot_be_created_leaves_nothing(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_descriptors()
    monkeypatch.setattr("os.fstatvfs", lambda descriptor: os.statvfs_result((1,) * 10))
    with pytest.raises(OSError, match="No space"):
        created(layout)
    assert left_over(layout) == []
    assert open_descriptors() == before


def test_f27_metadata_that_cannot_be_written_leaves_no_half(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, payload: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    files = created(layout)
    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(OSError, match="No space"):
        files.write_meta(META)
    monkeypatch.undo()
    assert not files.has_meta
    assert not [path for path in left_over(layout) if "meta" in path.name]
    files.close()


def test_metadata_is_there_whole_or_not_at_all(layout: Layout) -> None:
    files = created(layout)
    assert not [path for path in left_over(layout) if "meta" in path.name]
    files.write_meta(META)
    assert files.meta_path.read_bytes() == META
    files.close()


def test_f27_a_tmpfs_that_is_full_says_so(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting has to run as root")
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", directory], check=True)
    try:
        layout = layout_in(directory, 1)
        files = created(layout)
        with pytest.raises(OSError, match="No space") as raised:
            bring(files, 0, SIZE)
        assert raised.value.errno == errno.ENOSPC
        files.unlink()
        files.close()
        assert left_over(layout) == []
    finally:
        subprocess.run(["umount", directory], check=True)


def test_remains_of_a_crash_are_swept_and_images_kept(layout: Layout) -> None:
    stored(layout)
    other = Digest.of(b"other")
    files = LayerFiles.create(layout, other, None, EXTENT, NO_ACCOUNT)
    files.write(0, [PAYLOAD])
    files.close()
    stranger = layout.layer_paths(other, 1)[0].with_name("README")
    stranger.write_text("left alone")
    assert list(stored_layers(layout)) == [DIGEST]
    assert sweep(layout) == [other]
    assert sweep(layout) == []
    assert stranger.exists()
    stranger.unlink()
    files = reopened(layout)
    assert files.verified
    files.close()
    remove_layer(layout, DIGEST)
    assert left_over(layout) == []
    assert list(stored_layers(layout)) == []


def test_verifying_removes_the_framing(layout: Layout) -> None:
    files = created(layout)
    files.frame_path.write_bytes(b"framing")
    files.write_meta(META)
    bring(files, 0, SIZE)
    files.mark_verified()
    assert not files.frame_path.exists()
    assert len(left_over(layout)) == 2 * len(layout.stripes) + 1
    maps = LayerMap.open(files.maps)
    assert maps.verified
    maps.close()
    files.close()


def test_a_second_thread_publishes_the_same_extent_once(layout: Layout) -> None:
    size = 64 * MIB
    files = LayerFiles.create(layout, DIGEST, size, 32 * MIB, NO_ACCOUNT)
    step = 8 * 4096 - 4096
    with ThreadPoolExecutor(4) as threads:
        starts = range(0, size, step)
        whole = list(
            threads.map(lambda start: files.publish(start, min(start + step, size)), starts)
        )
    assert sorted(itertools.chain.from_iterable(whole)) == [0, 1]
    assert files.available(0, size) == size
    files.close()
