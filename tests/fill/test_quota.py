"""What may be evicted, in which order, how far down, and when nothing may."""

import errno
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.store.object_key import ObjectKey
from proxy.fill.quota import Quota, water_marks

HIGH, LOW = 1000, 800


def name(number: int) -> Digest:
    return Digest.of(str(number).encode())


class Cache:
    """A quota whose evictions are recorded."""

    def __init__(self, *, high: int = HIGH, low: int = LOW, grace_seconds: float = 0.0) -> None:
        self.evicted: list[ObjectKey] = []
        self.quota = Quota(high, low, self.evicted.append, grace_seconds=grace_seconds)

    def holds(self, *objects: int, each: int = 100) -> None:
        """Enter objects of ``each`` bytes, the first one used longest ago."""
        for age, number in enumerate(objects):
            self.quota.account(name(number), each, float(age), pinned=False)


@pytest.fixture
def cache() -> Cache:
    return Cache()


# --- order and extent ---


def test_the_least_recently_used_go_first_down_to_the_low_water(cache: Cache) -> None:
    cache.holds(*range(10))
    cache.quota.reserve(name(99), 50)
    assert cache.evicted == [name(0), name(1), name(2)]
    assert cache.quota.total == 750 <= LOW
    assert cache.quota.evicted_objects == 3
    assert cache.quota.evicted_bytes == 300


def test_nothing_goes_before_the_high_water_is_passed(cache: Cache) -> None:
    cache.holds(*range(9))
    cache.quota.reserve(name(99), 100)
    assert cache.evicted == []
    assert cache.quota.total == HIGH


def test_a_use_moves_an_object_to_the_end(cache: Cache) -> None:
    cache.holds(*range(10))
    cache.quota.touch(name(0), 100.0)
    cache.quota.touch(name(1234), 100.0)
    cache.quota.reserve(name(99), 1)
    assert cache.evicted == [name(1), name(2), name(3)]
    assert not cache.quota.known(name(1234))


@pytest.mark.parametrize("protection", ["busy", "pinned", "leased"])
def test_a_protected_object_stays_and_the_next_one_goes(cache: Cache, protection: str) -> None:
    cache.holds(*range(10))
    match protection:
        case "busy":
            cache.quota.busy(name(0), 1)
        case "pinned":
            assert cache.quota.pin(name(0), True)
        case _:
            cache.quota.lease("mount", [name(0)])
    assert not cache.quota.evict(name(0))
    cache.quota.reserve(name(99), 1)
    assert name(0) not in cache.evicted
    assert cache.evicted == [name(1), name(2), name(3)]
    match protection:
        case "busy":
            cache.quota.busy(name(0), -1)
        case "pinned":
            assert cache.quota.pin(name(0), False)
        case _:
            cache.quota.lease("mount", [])
    assert cache.quota.evict(name(0))
    assert cache.evicted[-1] == name(0)


def test_an_object_is_busy_until_its_last_fill_ends(cache: Cache) -> None:
    cache.holds(0)
    cache.quota.busy(name(0), 1)
    cache.quota.busy(name(0), 1)
    cache.quota.busy(name(0), -1)
    assert not cache.quota.evict(name(0))
    cache.quota.busy(name(0), -1)
    assert cache.quota.evict(name(0))


def test_a_lease_is_held_per_holder_and_replaced_as_a_whole(cache: Cache) -> None:
    cache.holds(0, 1, 2)
    cache.quota.lease("mount", [name(0), name(1)])
    cache.quota.lease("snapshotter", [name(1)])
    cache.quota.lease("mount", [name(2)])
    assert cache.quota.evict(name(0))
    assert not cache.quota.evict(name(1))
    assert not cache.quota.evict(name(2))
    assert cache.quota.leased(name(1))
    assert cache.quota.leased_by("mount") == {name(2)}


def test_the_object_that_needs_room_is_never_its_own_victim(cache: Cache) -> None:
    cache.holds(0, 1, each=450)
    cache.quota.reserve(name(0), 400)
    assert cache.evicted == [name(1)]
    assert cache.quota.make_room(name(0), 100) is False


# --- no room ---


def test_without_a_victim_the_disk_counts_as_full(cache: Cache) -> None:
    cache.holds(0, 1, each=450)
    cache.quota.pin(name(0), True)
    cache.quota.busy(name(1), 1)
    with pytest.raises(OSError, match=r"cache\.max_size") as raised:
        cache.quota.reserve(name(2), 200)
    assert raised.value.errno == errno.ENOSPC
    assert cache.quota.total == 900
    cache.quota.reserve(name(1), 100)


def test_what_the_disk_did_not_give_is_taken_back(cache: Cache) -> None:
    cache.quota.busy(name(0), 1)
    cache.quota.reserve(name(0), 300)
    cache.quota.unreserve(name(0), 300)
    assert cache.quota.total == 0
    cache.quota.unreserve(name(7), 300)
    assert cache.quota.total == 0


def test_a_disk_that_is_full_itself_makes_room_below_the_high_water(cache: Cache) -> None:
    cache.holds(0, 1, 2)
    assert cache.quota.make_room(name(9), 150)
    assert cache.evicted == [name(0), name(1)]


def test_an_object_larger_than_the_cache_is_refused(cache: Cache) -> None:
    with pytest.raises(OSError, match=r"cache\.max_size"):
        cache.quota.reserve(name(0), HIGH + 1)


# --- the grace after a start ---


def test_nothing_is_evicted_before_the_holders_of_leases_have_spoken() -> None:
    cache = Cache(grace_seconds=60.0)
    cache.quota.expect(["mount", "snapshotter"])
    cache.holds(*range(10))
    with pytest.raises(OSError, match=r"cache\.max_size"):
        cache.quota.reserve(name(99), 1)
    assert not cache.quota.make_room(name(99), 1)
    cache.quota.lease("mount", [name(0)])
    cache.quota.reconciled("mount")
    assert not cache.quota.make_room(name(99), 1)
    cache.quota.reconciled("stranger")
    assert not cache.quota.make_room(name(99), 1)
    cache.quota.reconciled("snapshotter")
    cache.quota.reserve(name(99), 1)
    assert cache.evicted == [name(1), name(2), name(3)]


def test_without_leases_eviction_may_start_at_once() -> None:
    cache = Cache(grace_seconds=60.0)
    cache.quota.expect([])
    cache.holds(0)
    assert cache.quota.make_room(name(1), 1)


def test_the_grace_ends_by_itself() -> None:
    cache = Cache(grace_seconds=0.0)
    cache.quota.expect(["a holder that never comes back"])
    cache.holds(0)
    assert cache.quota.make_room(name(1), 1)


# --- the account ---


def test_a_later_figure_replaces_an_earlier_one(cache: Cache) -> None:
    cache.quota.account(name(0), 300, 5.0, pinned=False)
    cache.quota.account(name(0), 200, 1.0, pinned=True)
    ((digest, entry),) = cache.quota.snapshot()
    assert (digest, entry.allocated, entry.used_at, entry.pinned) == (name(0), 200, 5.0, True)
    assert (cache.quota.total, cache.quota.count) == (200, 1)
    cache.quota.forget(name(0))
    cache.quota.forget(name(0))
    assert (cache.quota.total, cache.quota.count) == (0, 0)


def test_what_is_not_here_can_be_neither_pinned_nor_evicted(cache: Cache) -> None:
    assert not cache.quota.pin(name(0), True)
    assert not cache.quota.evict(name(0))
    cache.quota.busy(name(0), -1)
    assert cache.quota.count == 0


@dataclass(frozen=True)
class Stored:
    """One object of a random cache."""

    number: int
    allocated: int
    used_at: int
    pinned: bool
    busy: bool
    leased: bool

    @property
    def protected(self) -> bool:
        return self.pinned or self.busy or self.leased


@given(
    st.lists(
        st.builds(
            Stored,
            st.integers(0, 50),
            st.integers(0, 300),
            st.integers(0, 5),
            st.booleans(),
            st.booleans(),
            st.booleans(),
        ),
        unique_by=lambda stored: stored.number,
        max_size=15,
    ),
    st.integers(0, 600),
)
def test_every_eviction_is_allowed_in_order_and_needed(objects: list[Stored], length: int) -> None:
    cache = Cache()
    for stored in objects:
        digest = name(stored.number)
        cache.quota.account(digest, stored.allocated, stored.used_at, pinned=stored.pinned)
        cache.quota.busy(digest, int(stored.busy))
    cache.quota.lease("mount", [name(stored.number) for stored in objects if stored.leased])
    before = cache.quota.total
    try:
        cache.quota.reserve(name(99), length)
        reserved = length
    except OSError:
        reserved = 0
    by_name: dict[ObjectKey, Stored] = {name(stored.number): stored for stored in objects}
    gone = [by_name[digest] for digest in cache.evicted]
    free = [stored for stored in objects if not stored.protected]
    assert not any(stored.protected for stored in gone)
    order = sorted(free, key=lambda stored: (stored.used_at, name(stored.number)))
    assert gone == order[: len(gone)]
    freed = sum(stored.allocated for stored in gone)
    assert cache.quota.total == before - freed + reserved
    assert bool(gone) <= (before + length > HIGH)
    if gone:
        # Without the last one the low water would not have been reached.
        assert before + length - (freed - gone[-1].allocated) > LOW
    if reserved:
        assert cache.quota.total <= HIGH
    if before + length > HIGH and reserved:
        assert before + length - freed <= LOW or len(gone) == len(free)


def test_threads_keep_the_account_right(cache: Cache) -> None:
    quota = Quota(1 << 40, 1 << 39, cache.evicted.append, grace_seconds=0.0)

    def work(number: int) -> None:
        for _ in range(300):
            quota.busy(name(number), 1)
            quota.reserve(name(number), 3)
            quota.busy(name(number), -1)

    threads = [threading.Thread(target=work, args=(number % 2,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert quota.total == 4 * 300 * 3
    assert all(entry.busy == 0 for _, entry in quota.snapshot())


# --- water marks ---


def test_water_marks_of_a_size(tmp_path: Path) -> None:
    assert water_marks([tmp_path], 10_000, None, 0.9) == (10_000, 9_000)


def test_a_share_counts_every_disk_once(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    disk = status.f_blocks * status.f_frsize
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    high, low = water_marks([tmp_path / "a", tmp_path / "b"], None, 0.5, 0.8)
    assert high == int(disk * 0.5)
    assert low == int(high * 0.8)
