"""The index: JSON in and out, nothing unpickled, and its loss survived (fault 34)."""

import json
import os
import pickle
import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from diskcache import Cache, JSONDisk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.store.index import INDEX_VERSION, Index


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def index(directory: Path) -> Iterator[Index]:
    opened = Index(directory)
    yield opened
    opened.close()


def database(directory: Path) -> Path:
    return directory / "cache.db"


def set_asides(directory: Path) -> list[Path]:
    return [path for path in directory.parent.iterdir() if path.name.startswith("index.")]


def change(directory: Path, statement: str, *values: object) -> None:
    """Change the database behind the index's back."""
    with sqlite3.connect(database(directory)) as connection:
        connection.execute(statement, values)
    connection.close()


PAGE = 4096

JSON_OBJECT = st.dictionaries(
    st.text(max_size=10),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.text(max_size=10),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=5,
    ),
    max_size=5,
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.text("abc", min_size=1, max_size=3), name=st.text(max_size=20), record=JSON_OBJECT)
def test_records_come_back_as_they_went_in(
    index: Index, kind: str, name: str, record: dict[str, object]
) -> None:
    index.put(kind, name, record)
    assert index.get(kind, name) == record
    assert (name, record) in list(index.items(kind))
    index.delete(kind, name)
    index.delete(kind, name)
    assert index.get(kind, name) is None


def test_records_outlive_a_restart_and_only_the_first_start_is_fresh(directory: Path) -> None:
    first = Index(directory)
    assert first.fresh
    first.put("tag", "a", {"digest": "x"})
    first.close()
    second = Index(directory)
    assert not second.fresh
    assert second.get("tag", "a") == {"digest": "x"}
    second.close()


def test_two_processes_share_one_index(index: Index, directory: Path) -> None:
    other = Index(directory)
    assert not other.fresh
    index.put("tag", "a", {"n": 1})
    assert other.get("tag", "a") == {"n": 1}
    other.put("tag", "a", {"n": 2})
    assert index.get("tag", "a") == {"n": 2}
    other.close()


def test_items_are_those_of_one_kind_oldest_first(index: Index) -> None:
    for number in (3, 1, 2):
        index.put("tag", f"t{number}", {"n": number})
        index.put("tags", f"t{number}", {"n": -number})
    assert list(index.items("tag")) == [(f"t{number}", {"n": number}) for number in (3, 1, 2)]
    assert list(index.items("ta")) == []


def test_kinds_do_not_share_names(index: Index) -> None:
    index.put("a", "b:c", {"n": 1})
    assert index.get("a:b", "c") in (None, {"n": 1})
    assert index.get("a", "c") is None
    assert index.get("b", "b:c") is None


def test_nothing_is_evicted_by_the_library_itself(index: Index) -> None:
    for number in range(300):
        index.put("blob", str(number), {"padding": "x" * 2000})
    assert len(list(index.items("blob"))) == 300


@pytest.mark.parametrize("odd", [None, 5, "text", [], [{"a": 1}], True])
def test_a_record_that_is_no_object_counts_as_absent(
    index: Index, directory: Path, odd: object
) -> None:
    raw = Cache(str(directory), disk=JSONDisk)
    raw.set("tag:odd", odd)
    raw.close()
    index.put("tag", "good", {"n": 1})
    assert index.get("tag", "odd") is None
    assert list(index.items("tag")) == [("good", {"n": 1})]


# --- fault 34 ---


@pytest.mark.parametrize("content", [b"not a database", b"", b"SQLite format 3\0" + b"\xff" * 500])
def test_f34_a_damaged_database_is_moved_aside_and_replaced(
    directory: Path, content: bytes
) -> None:
    first = Index(directory)
    first.put("tag", "a", {"n": 1})
    first.close()
    for path in directory.iterdir():
        path.write_bytes(content)
    second = Index(directory)
    assert second.fresh
    assert second.get("tag", "a") is None
    second.put("tag", "b", {"n": 2})
    assert second.get("tag", "b") == {"n": 2}
    second.close()
    third = Index(directory)
    assert not third.fresh
    third.close()
    # An empty file is what SQLite starts from: there is nothing to keep.
    assert len(set_asides(directory)) == (1 if content else 0)


def test_f34_an_index_of_another_version_is_moved_aside(directory: Path) -> None:
    first = Index(directory)
    first.put("tag", "a", {"n": 1})
    first.close()
    raw = Cache(str(directory), disk=JSONDisk)
    raw.set("index-version", INDEX_VERSION + 1)
    raw.close()
    second = Index(directory)
    assert second.fresh
    assert second.get("tag", "a") is None
    second.close()
    assert len(set_asides(directory)) == 1


def test_f34_a_lost_index_is_made_anew(directory: Path) -> None:
    Index(directory).close()
    for path in directory.iterdir():
        path.unlink()
    second = Index(directory)
    assert second.fresh
    second.close()


@pytest.mark.parametrize(
    "value", [b"", b"not compressed", zlib.compress(b"not json"), zlib.compress(b"\xff"), None, 5]
)
def test_f34_a_damaged_record_is_absent_and_the_others_are_not(
    index: Index, directory: Path, value: object
) -> None:
    index.put("tag", "bad", {"n": 1})
    index.put("tag", "good", {"n": 2})
    key = zlib.compress(json.dumps("tag:bad").encode(), 1)
    change(directory, "UPDATE Cache SET value = ? WHERE key = ?", value, key)
    assert index.get("tag", "bad") is None
    assert list(index.items("tag")) == [("good", {"n": 2})]
    index.put("tag", "bad", {"n": 3})
    assert index.get("tag", "bad") == {"n": 3}


def test_f34_a_damaged_key_does_not_hide_the_other_records(index: Index, directory: Path) -> None:
    index.put("tag", "bad", {"n": 1})
    index.put("tag", "good", {"n": 2})
    key = zlib.compress(json.dumps("tag:bad").encode(), 1)
    change(directory, "UPDATE Cache SET key = ? WHERE key = ?", b"garbage", key)
    assert list(index.items("tag")) == [("good", {"n": 2})]


def test_f34_damage_within_the_database_raises_nothing(directory: Path) -> None:
    """The first page stays whole, so that opening succeeds and reading meets the damage."""
    first = Index(directory)
    for number in range(300):
        first.put("tag", str(number), {"padding": "x" * 500})
    first.close()
    pages = database(directory).stat().st_size // PAGE
    content = database(directory).read_bytes()
    for page in range(1, pages, 3):
        damaged = bytearray(content)
        damaged[page * PAGE : (page + 1) * PAGE] = os.urandom(PAGE)
        database(directory).write_bytes(damaged)
        second = Index(directory)
        for number in range(0, 300, 50):
            second.get("tag", str(number))
        list(second.items("tag"))
        second.put("tag", "new", {"n": 1})
        second.delete("tag", "5")
        second.close()
        directory.mkdir(exist_ok=True)
        for name in ("cache.db-wal", "cache.db-shm"):
            (directory / name).unlink(missing_ok=True)


# --- no pickle (CVE-2025-69872) ---


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.target),))


PICKLE_MODE = 4


def test_a_pickle_in_a_value_is_never_loaded(index: Index, directory: Path, tmp_path: Path) -> None:
    index.put("tag", "a", {"n": 1})
    target = tmp_path / "executed"
    payload = pickle.dumps(Planted(target))
    change(directory, "UPDATE Cache SET mode = ?, value = ?", PICKLE_MODE, payload)
    assert index.get("tag", "a") is None
    assert list(index.items("tag")) == []
    Index(directory).close()
    assert not target.exists()


def test_a_pickle_in_a_key_is_never_loaded(index: Index, directory: Path, tmp_path: Path) -> None:
    index.put("tag", "a", {"n": 1})
    target = tmp_path / "executed"
    payload = pickle.dumps(Planted(target))
    change(directory, "UPDATE Cache SET raw = 0, key = ? WHERE rowid = 2", payload)
    assert list(index.items("tag")) == []
    assert not target.exists()


def test_a_pickle_in_a_file_is_never_loaded(index: Index, directory: Path, tmp_path: Path) -> None:
    index.put("tag", "a", {"n": 1})
    target = tmp_path / "executed"
    (directory / "planted").write_bytes(pickle.dumps(Planted(target)))
    change(
        directory,
        "UPDATE Cache SET mode = ?, value = NULL, filename = 'planted'",
        PICKLE_MODE,
    )
    assert index.get("tag", "a") is None
    assert not target.exists()


def test_a_record_that_nobody_refreshes_is_swept(tmp_path: Path) -> None:
    index = Index(tmp_path / "index")
    index.put("tag", "kept", {"a": 1}, keep_seconds=0.05)
    index.put("tag", "old", {"a": 1}, keep_seconds=0.05)
    index.put("blob", "for ever", {"a": 1})
    index.refresh("tag", "kept", 60.0)
    time.sleep(0.1)
    assert index.get("tag", "old") is None
    assert index.sweep() == 1
    assert index.get("tag", "kept") == index.get("blob", "for ever") == {"a": 1}
    index.close()
