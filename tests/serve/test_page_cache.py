"""What is in memory, and what a disk has to be waited for."""

import os
from pathlib import Path

import pytest

from proxy.serve.page_cache import PROBE_BYTES, resident_bytes

SIZE = 8 * PROBE_BYTES


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(b"x" * SIZE)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        pass
    except OSError:
        pytest.skip("the file system of the temporary directory does not know RWF_NOWAIT")
    finally:
        os.close(descriptor)
    return path


def test_what_was_just_written_is_resident(file: Path) -> None:
    with file.open("rb") as reader:
        assert resident_bytes(reader.fileno(), 0, SIZE) == SIZE
        assert resident_bytes(reader.fileno(), 5, 1) == 1
        assert resident_bytes(reader.fileno(), SIZE - 3, 1000) == 1000


def test_what_was_dropped_is_not_resident_and_what_was_read_is(file: Path) -> None:
    with file.open("rb") as reader:
        descriptor = reader.fileno()
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert resident_bytes(descriptor, 4 * PROBE_BYTES, PROBE_BYTES) == 0
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(descriptor, 2 * PROBE_BYTES, 0)
        assert resident_bytes(descriptor, 0, SIZE) == 2 * PROBE_BYTES


def test_files_in_memory_are_resident() -> None:
    descriptor = os.memfd_create("blob")
    try:
        os.ftruncate(descriptor, SIZE)
        assert resident_bytes(descriptor, 0, SIZE) == SIZE
    finally:
        os.close(descriptor)


def test_what_cannot_be_read_raises(tmp_path: Path) -> None:
    with (tmp_path / "blob").open("wb") as writer, pytest.raises(OSError, match="Bad file"):
        resident_bytes(writer.fileno(), 0, 1)
