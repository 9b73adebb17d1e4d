"""The directories of a cache: stamps, order, locks, and one line of remedy for what is wrong."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.store.errors import StoreError, StoreForeign, StoreLocked, StoreUnusable
from headstart.store.layout import FORMAT_VERSION, STAMP, Layout, StoreLock
from tests.store.stored_objects import open_descriptors

NOBODY = 65534


def layout_of(directory: Path, count: int = 2) -> Layout:
    return Layout(tuple(directory / f"stripe-{number}" for number in range(count)))


def stamp_of(stripe: Path) -> dict[str, object]:
    stamp = json.loads((stripe / STAMP).read_text(encoding="utf-8"))
    assert isinstance(stamp, dict)
    return stamp


def refusal(layout: Layout, kind: type[StoreError]) -> str:
    """The one line that preparing the layout is refused with."""
    with pytest.raises(kind) as raised:
        layout.prepare()
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- stamps ---


def test_an_empty_directory_becomes_a_cache(tmp_path: Path) -> None:
    layout = layout_of(tmp_path / "new" / "deep")
    layout.prepare()
    stamps = [stamp_of(stripe) for stripe in layout.stripes]
    assert [stamp["stripe"] for stamp in stamps] == [0, 1]
    assert {stamp["format"] for stamp in stamps} == {FORMAT_VERSION}
    assert len({stamp["cache"] for stamp in stamps}) == 1
    for stripe in layout.stripes:
        assert sorted(path.name for path in stripe.iterdir()) == [STAMP, "blobs", "layers", "run"]
        assert stripe.stat().st_mode & 0o027 == 0
    assert layout.fill_socket == layout.stripes[0] / "run" / "fill.sock"
    assert layout.index.parent == layout.stripes[0]


def test_preparing_again_changes_nothing(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    layout.prepare()
    before = [stamp_of(stripe) for stripe in layout.stripes]
    layout.prepare()
    assert [stamp_of(stripe) for stripe in layout.stripes] == before


def test_two_caches_have_different_ids(tmp_path: Path) -> None:
    first, second = layout_of(tmp_path / "a"), layout_of(tmp_path / "b")
    first.prepare()
    second.prepare()
    assert stamp_of(first.stripes[0])["cache"] != stamp_of(second.stripes[0])["cache"]


def test_a_stripe_can_be_added(tmp_path: Path) -> None:
    layout_of(tmp_path, 1).prepare()
    cache = stamp_of(tmp_path / "stripe-0")["cache"]
    layout_of(tmp_path, 3).prepare()
    assert stamp_of(tmp_path / "stripe-2") == {
        "format": FORMAT_VERSION,
        "cache": cache,
        "stripe": 2,
    }


def test_f55_a_cache_of_another_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    layout.prepare()
    for version in (FORMAT_VERSION + 1, 0, "1", None):
        stamp = stamp_of(layout.stripes[1]) | {"format": version}
        (layout.stripes[1] / STAMP).write_text(json.dumps(stamp), encoding="utf-8")
        text = refusal(layout, StoreForeign)
        assert str(layout.stripes[1]) in text
        assert "headstart scrub --upgrade" in text
        assert "empty directory" in text


def test_f55_a_stripe_of_another_cache_is_refused(tmp_path: Path) -> None:
    mine, other = layout_of(tmp_path / "a"), layout_of(tmp_path / "b")
    mine.prepare()
    other.prepare()
    mixed = Layout((mine.stripes[0], other.stripes[1]))
    text = refusal(mixed, StoreForeign)
    assert "cache.stripes" in text
    assert str(other.stripes[1]) in text


def test_f55_stripes_in_another_order_are_refused(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    layout.prepare()
    text = refusal(Layout(layout.stripes[::-1]), StoreForeign)
    assert "old order" in text
    refusal(Layout(layout.stripes[1:]), StoreForeign)


def test_f55_blobs_without_a_stamp_are_not_taken_over(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    (layout.stripes[1] / "blobs" / "sha256").mkdir(parents=True)
    assert str(layout.stripes[1]) in refusal(layout, StoreForeign)
    assert not (layout.stripes[1] / STAMP).exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"5", b"null", b"{}", b'{"format": 1}', b"\xff\xfe\x00", b"[" * 100_000],
)
def test_a_damaged_stamp_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    layout = layout_of(tmp_path)
    layout.prepare()
    path = layout.stripes[0] / STAMP
    path.write_bytes(content)
    text = refusal(layout, StoreForeign)
    assert str(path) in text
    assert "empty directory" in text
    assert path.read_bytes() == content


# --- directories that cannot be used ---


def test_a_file_in_place_of_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "stripe-0").write_text("not a directory", encoding="utf-8")
    text = refusal(layout_of(tmp_path), StoreUnusable)
    assert "cache.stripes" in text
    assert str(tmp_path / "stripe-0") in text


CALL_AS_NOBODY = """
import os, sys
from pathlib import Path
from headstart.store.layout import Layout, StoreLock
from headstart.store.errors import StoreError
os.setgroups([])
os.setgid({nobody})
os.setuid({nobody})
layout = Layout((Path(sys.argv[1]),))
try:
    StoreLock().acquire(layout, 0.1)
    layout.prepare()
except StoreError as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""


def as_nobody(stripe: Path) -> str:
    """What a user without rights is told who starts on a stripe."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    script = CALL_AS_NOBODY.format(nobody=NOBODY)
    call = [sys.executable, "-c", script, str(stripe)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that every user may enter; those of pytest are closed to others."""
    with tempfile.TemporaryDirectory(prefix="headstart-test-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def test_a_directory_of_another_user_is_named_with_key_and_remedy(reachable: Path) -> None:
    stripe = reachable / "stripe"
    stripe.mkdir(mode=0o755)
    text = as_nobody(stripe)
    assert text.startswith("StoreUnusable: cache.stripes: ")
    assert str(stripe) in text
    assert "choose another directory" in text or "may write" in text


def test_a_directory_that_may_not_be_made_is_named_with_key_and_remedy(reachable: Path) -> None:
    text = as_nobody(reachable / "missing" / "stripe")
    assert text.startswith("StoreUnusable: cache.stripes: cannot create ")
    assert "choose a directory" in text


def test_a_lock_of_another_user_is_named_with_key_and_remedy(reachable: Path) -> None:
    """A cache that root has run once, then handed over without its lock."""
    stripe = reachable / "stripe"
    Layout((stripe,)).prepare()
    StoreLock().acquire(Layout((stripe,)), 0.1)
    for path in (stripe, *stripe.rglob("*")):
        if path.name != "lock":
            os.chown(path, NOBODY, NOBODY)
    text = as_nobody(stripe)
    assert text.startswith("StoreUnusable: cache.stripes: ")
    assert "lock" in text


# --- the lock ---

HOLD = """
import sys, time
from pathlib import Path
from headstart.store.layout import Layout, StoreLock
lock = StoreLock()
lock.acquire(Layout(tuple(map(Path, sys.argv[1:]))))
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def holder(*stripes: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    call = [sys.executable, "-c", HOLD, *map(str, stripes)]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_f55_a_second_daemon_is_refused_and_told_who_holds_the_cache(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    before = open_descriptors()
    with holder(layout.stripes[1]) as process:
        with pytest.raises(StoreLocked) as raised:
            StoreLock().acquire(layout, 0.2)
        assert f"process {process.pid};" in str(raised.value)
        assert str(layout.stripes[1]) in str(raised.value)
        assert "its own directory" in str(raised.value)
        assert open_descriptors() == before + 1  # the pipe to the holder


def test_a_lock_is_waited_for_and_ends_with_its_process(tmp_path: Path) -> None:
    """SIGKILL frees it: nothing has to be removed by hand before the next start."""
    layout = layout_of(tmp_path)
    lock = StoreLock()
    with holder(*layout.stripes) as process:
        process.send_signal(signal.SIGKILL)
        lock.acquire(layout, 10)
    holder_in_file = (layout.stripes[0] / "run" / "lock").read_text(encoding="ascii")
    assert holder_in_file == f"{os.getpid()}\n"
    lock.release()


def test_a_released_lock_is_free_at_once(tmp_path: Path) -> None:
    layout, first, second = layout_of(tmp_path), StoreLock(), StoreLock()
    before = open_descriptors()
    first.acquire(layout)
    with pytest.raises(StoreLocked):
        second.acquire(layout, 0)
    first.release()
    second.acquire(layout, 0)
    second.release()
    assert open_descriptors() == before


def test_a_refusal_waits_no_longer_than_asked(tmp_path: Path) -> None:
    layout, first = layout_of(tmp_path), StoreLock()
    first.acquire(layout)
    started = time.monotonic()
    with pytest.raises(StoreLocked):
        StoreLock().acquire(layout, 0.3)
    assert time.monotonic() - started >= 0.3
    first.release()


# --- paths ---


def test_blobs_lie_below_their_algorithm_and_first_two_digits(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, 3)
    digest = Digest.of(b"blob")
    assert layout.blob_paths(digest, 2) == [
        stripe / "blobs" / "sha256" / digest.hex[:2] / digest.hex for stripe in layout.stripes[:2]
    ]
