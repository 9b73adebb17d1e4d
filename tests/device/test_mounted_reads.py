"""Device files through a real FUSE mount: what the kernel and its readers get."""

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headstart.store.errors import FillFailed
from headstart.store.geometry import MIB, UNIT_SIZE
from mount.supervisor import control
from mount.supervisor.fuse_connection import MAX_BACKGROUND, READ_AHEAD_KIB
from tests.device.layer_filler import bring, hold, wait_until
from tests.device.layers import StoredLayer, stored_layer
from tests.device.mounted import Mounted, Reader, fuse_connections, mounted

SIZE = 11 * UNIT_SIZE + 3 * 4096
STRIPES = 3


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("device")) as running:
        running.ensure()
        yield running


@pytest.fixture
def stored(mount: Mounted, tmp_path: Path) -> Iterator[StoredLayer]:
    mount.filler.on_want = bring
    # A name of its own: the table knows the layers of all tests of this module.
    with stored_layer(tmp_path / f"layer-{tmp_path.name}", SIZE, stripes=STRIPES) as layer:
        yield layer


def _read(path: Path, length: int, offset: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


def test_whole_files_are_right_on_every_stripe(mount: Mounted, stored: StoredLayer) -> None:
    for stripe, path in enumerate(mount.add(stored)):
        assert path.stat().st_size == stored.geometry.stripe_length(stripe)
        assert path.read_bytes() == stored.stripe_content(stripe)


def test_files_are_for_root_and_cannot_be_written(mount: Mounted, stored: StoredLayer) -> None:
    path = mount.add(stored)[0]
    assert stat.filemode(path.stat().st_mode) == "-r--------"
    with pytest.raises(OSError, match="Read-only") as refused:
        path.open("r+b")
    assert refused.value.errno == errno.EROFS
    assert not (mount.places.device_files / "0.1").exists()
    assert path.name in os.listdir(mount.places.device_files)


def test_any_range_is_right_by_read_and_by_mmap(mount: Mounted, stored: StoredLayer) -> None:
    path = mount.add(stored)[1]
    stored.bring()
    for how in ("read", "mmap"):
        with Reader(path, stored.devices[1], how) as reader:
            time.sleep(0.3)
            found = reader.finish()
        assert found["reads"] > 10


def test_mapped_pages_that_are_missing_wait_too(mount: Mounted, stored: StoredLayer) -> None:
    path = mount.add(stored)[2]
    program = "import mmap, sys; sys.stdout.buffer.write(mmap.mmap(sys.stdin.fileno(), 0, prot=1))"
    with path.open("rb") as file:
        read = subprocess.run(
            [sys.executable, "-c", program], stdin=file, capture_output=True, check=True
        )
    assert read.stdout == stored.stripe_content(2)


def test_a_read_waits_for_its_bytes_and_holds_no_other(
    mount: Mounted, stored: StoredLayer, tmp_path: Path
) -> None:
    mount.filler.on_want = hold
    path = mount.add(stored)[0]
    with stored_layer(tmp_path / f"other-{tmp_path.name}", 2 * MIB) as other:
        other.complete()
        free = mount.add(other)[0]
        with ThreadPoolExecutor(40) as threads:
            waiting = [threads.submit(_read, path, 4096, page * 16384) for page in range(40)]
            mount.filler.until_held(1)
            assert free.read_bytes() == other.content
            assert not any(read.done() for read in waiting)
            mount.filler.on_want = bring
            mount.filler.release()
            content = stored.stripe_content(0)
            for page, read in enumerate(waiting):
                assert read.result() == content[page * 16384 : page * 16384 + 4096]


def test_an_error_is_eio_and_a_retry_succeeds(mount: Mounted, stored: StoredLayer) -> None:
    path = mount.add(stored)[0]
    mount.filler.on_want = lambda _, __: FillFailed("digest", "a chunk is damaged")
    with path.open("rb", buffering=0) as file:
        with pytest.raises(OSError, match="Input/output") as failed:
            file.read(4096)
        assert failed.value.errno == errno.EIO
        mount.filler.on_want = bring
        assert file.read(4096) == stored.stripe_content(0)[:4096]
    assert f"{stored.layer.digest} (registry.test/some/image" in mount.log()
    assert mount.log().count("a chunk is damaged") == 1


def test_f54_a_read_is_never_short(mount: Mounted, stored: StoredLayer) -> None:
    """Only the first half of what is asked for can be had: an error, not zeros behind it."""
    path = mount.add(stored)[0]
    stored.bring(0, UNIT_SIZE)

    def only_the_first(layer: StoredLayer, want: dict[str, object]) -> FillFailed | bool:
        return FillFailed("missing", "the rest is gone")

    mount.filler.on_want = only_the_first
    content = stored.stripe_content(0)
    with path.open("rb", buffering=0) as file:
        found = file.read(2 * UNIT_SIZE)
        assert found == content[: len(found)]
        assert len(found) <= UNIT_SIZE
        with pytest.raises(OSError, match="Input/output"):
            os.pread(file.fileno(), 4096, UNIT_SIZE)


def test_a_waiting_reader_dies_at_once(mount: Mounted, stored: StoredLayer) -> None:
    mount.filler.on_want = hold
    path = mount.add(stored)[0]
    before = len(mount.filler.held)
    reader = subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL)
    mount.filler.until_held(before + 1)
    reader.kill()
    assert reader.wait(10) == -9
    mount.filler.release()


def test_the_kernel_is_told_the_limits(mount: Mounted) -> None:
    device = str(control.status(mount.root)["device"])
    ahead = Path(f"/sys/class/bdi/{device}/read_ahead_kb").read_text(encoding="ascii")
    assert int(ahead) == READ_AHEAD_KIB
    with fuse_connections() as connections:
        background = connections / device.partition(":")[2] / "max_background"
        assert int(background.read_text(encoding="ascii")) == MAX_BACKGROUND


def test_concurrent_readers_of_one_file_agree(mount: Mounted, stored: StoredLayer) -> None:
    path = mount.add(stored)[0]
    found: list[bytes] = []
    readers = [threading.Thread(target=lambda: found.append(path.read_bytes())) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert found == [stored.stripe_content(0)] * 8
    wait_until(lambda: mount.status("restarts") == 0)
