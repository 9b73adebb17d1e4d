"""What is in the page cache is seen, dropped and brought back."""

import os
from pathlib import Path

import pytest

from bench.page_cache import CacheWatch, cached, drop, warm
from bench.setting import kind_of
from tests.device.layer_filler import wait_until

MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file on a disk: what is in memory only cannot be dropped."""
    if kind_of(tmp_path) == "tmpfs":
        pytest.skip("temporary files are in memory here")
    made = tmp_path / "file"
    made.write_bytes(os.urandom(8 * MIB))
    return made


def now(file: Path) -> int:
    with file.open("rb") as opened:
        try:
            return cached(opened.fileno())
        except OSError as error:
            pytest.skip(f"cachestat: {error}")


def test_a_file_is_dropped_and_warmed(file: Path) -> None:
    assert now(file) == 8 * MIB
    drop([file])
    assert now(file) == 0
    warm([file])
    assert now(file) == 8 * MIB


def test_a_watch_has_the_most_that_there_was(file: Path) -> None:
    drop([file])
    assert now(file) == 0
    with CacheWatch({"file": [file], "none": []}) as watch:
        warm([file])
        wait_until(lambda: watch.peak["file"] == 8 * MIB)
        drop([file])
        assert watch.now() == {"file": 0, "none": 0}
    assert watch.peak == {"file": 8 * MIB, "none": 0}
