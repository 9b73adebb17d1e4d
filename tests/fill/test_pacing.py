"""Writes are handed to the disk in order, dirty memory is bounded, waits are counted once."""

import os
import threading
import time
from pathlib import Path

import pytest

from headstart.store.geometry import MIB
from proxy.fill import pacing
from proxy.fill.pacing import MAX_DIRTY, PIECE_SIZE, Pacer
from proxy.fill.system_calls import finish_writing, reserve_space, start_writing
from tests.store.stored_objects import open_descriptors

Piece = tuple[int, int, int]


class Disk:
    """Stands for sync_file_range: records what is handed over and waited for."""

    def __init__(self) -> None:
        self.started: list[Piece] = []
        self.finished: list[Piece] = []
        self.supported = True
        self.seconds_a_wait = 0.0
        self.now = 1000.0
        self.error: OSError | None = None

    def start(self, descriptor: int, offset: int, length: int) -> bool:
        self.started.append((descriptor, offset, length))
        return self.supported

    def finish(self, descriptor: int, offset: int, length: int) -> bool:
        self.finished.append((descriptor, offset, length))
        self.now += self.seconds_a_wait
        if self.error is not None:
            raise self.error
        return self.supported

    def dirty(self) -> int:
        return sum(piece[2] for piece in self.started) - sum(piece[2] for piece in self.finished)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(pacing, "start_writing", made.start)
    monkeypatch.setattr(pacing, "finish_writing", made.finish)
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    return made


@pytest.fixture
def pacer(tmp_path: Path) -> Pacer:
    return Pacer(tmp_path)


def write(pacer: Pacer, start: int, stop: int, descriptor: int = 5, step: int = MIB) -> None:
    for offset in range(start, stop, step):
        pacer.wrote(descriptor, offset, min(step, stop - offset))


def test_adjacent_writes_are_handed_over_in_pieces(disk: Disk, pacer: Pacer) -> None:
    write(pacer, 0, 2 * PIECE_SIZE + MIB)
    assert disk.started == [(5, 0, PIECE_SIZE), (5, PIECE_SIZE, PIECE_SIZE)]
    assert pacer.figures.written == 2 * PIECE_SIZE + MIB


def test_ranges_that_alternate_are_kept_apart(disk: Disk, pacer: Pacer) -> None:
    for offset in range(0, PIECE_SIZE, MIB):
        pacer.wrote(5, offset, MIB)
        pacer.wrote(5, 64 * MIB + offset, MIB)
        pacer.wrote(6, offset, MIB)
    assert sorted(disk.started) == [
        (5, 0, PIECE_SIZE),
        (5, 64 * MIB, PIECE_SIZE),
        (6, 0, PIECE_SIZE),
    ]


def test_dirty_memory_is_bounded_and_the_oldest_piece_is_waited_for(
    disk: Disk, pacer: Pacer
) -> None:
    for offset in range(0, 4 * MAX_DIRTY, MIB):
        pacer.wrote(5, offset, MIB)
        assert disk.dirty() <= MAX_DIRTY
        assert pacer.dirty() == disk.dirty()
    assert disk.finished == disk.started[: len(disk.finished)]
    assert len(disk.finished) > 0


def test_waits_for_the_disk_are_counted(disk: Disk, pacer: Pacer) -> None:
    write(pacer, 0, MAX_DIRTY)
    assert pacer.figures.waited == 0.0
    disk.seconds_a_wait = 0.5
    write(pacer, MAX_DIRTY, MAX_DIRTY + 2 * PIECE_SIZE)
    assert pacer.figures.waited == pytest.approx(1.0)


def test_many_scattered_writes_do_not_pile_up(disk: Disk, pacer: Pacer) -> None:
    for number in range(10_000):
        pacer.wrote(5, number * 2 * MIB, 4096)
    assert len(pacer._open) <= 256


def test_pieces_of_a_closed_file_are_forgotten(disk: Disk, pacer: Pacer) -> None:
    write(pacer, 0, MAX_DIRTY, descriptor=5)
    write(pacer, 0, MIB, descriptor=5)
    pacer.forget({5})
    assert pacer.dirty() == 0
    write(pacer, 0, 2 * PIECE_SIZE, descriptor=6)
    assert disk.finished == []
    # A new file with the old number goes on nowhere.
    pacer.wrote(5, MIB, MIB)
    assert (5, MIB) not in pacer._open


def test_without_support_writes_are_counted_and_nothing_else(disk: Disk, pacer: Pacer) -> None:
    disk.supported = False
    write(pacer, 0, 2 * MAX_DIRTY)
    assert len(disk.started) == 1
    assert disk.finished == []
    assert pacer.figures.written == 2 * MAX_DIRTY


def test_an_error_of_the_disk_is_raised_to_the_writer(disk: Disk, pacer: Pacer) -> None:
    disk.error = OSError(5, "Input/output error")
    with pytest.raises(OSError, match="Input/output"):
        write(pacer, 0, MAX_DIRTY + PIECE_SIZE)


def test_writers_that_wait_at_once_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wall time in which the stripe was waited for, however many connections did."""
    together = threading.Barrier(2, timeout=10)

    def finish(*_: int) -> bool:
        together.wait()
        threading.Event().wait(0.2)
        return True

    monkeypatch.setattr(pacing, "start_writing", lambda *_: True)
    monkeypatch.setattr(pacing, "finish_writing", finish)
    pacer = Pacer(tmp_path)
    write(pacer, 0, MAX_DIRTY)
    threads = [
        threading.Thread(target=pacer.wrote, args=(descriptor, 0, PIECE_SIZE))
        for descriptor in (6, 7)
    ]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.2 <= pacer.figures.waited <= time.monotonic() - started


# --- the system calls themselves, on a real file ---


def test_space_is_reserved_and_the_size_kept(tmp_path: Path) -> None:
    before = open_descriptors()
    with (tmp_path / "file").open("w+b") as file:
        reserve_space(file.fileno(), MIB, MIB)
        status = os.fstat(file.fileno())
        assert status.st_size == 0
        assert status.st_blocks * 512 >= MIB
        file.write(b"x" * MIB)
        file.flush()
        assert start_writing(file.fileno(), 0, MIB)
        assert finish_writing(file.fileno(), 0, MIB)
    assert open_descriptors() == before


def test_a_file_that_was_closed_needs_no_pacing() -> None:
    assert start_writing(1_000_000, 0, MIB)
    assert finish_writing(1_000_000, 0, MIB)


def test_what_cannot_be_reserved_is_an_error(tmp_path: Path) -> None:
    with (
        (tmp_path / "file").open("w+b") as file,
        pytest.raises(OSError, match=r"too large|No space"),
    ):
        reserve_space(file.fileno(), (1 << 63) - 4096, 4096)
    with pytest.raises(OSError, match="Bad file descriptor"):
        reserve_space(1_000_000, 0, 1)
