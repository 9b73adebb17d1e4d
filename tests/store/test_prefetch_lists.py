"""Prefetch lists as the index keeps them."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from headstart.content.errors import InvalidInput
from headstart.content.landmarks import prefetch_list
from headstart.content.landmarks.prefetch_list import ListedFile, PrefetchList
from headstart.store import prefetch_lists
from headstart.store.prefetch_lists import list_record, listed_text, read_list


def test_a_list_is_kept_in_its_one_form() -> None:
    listed = PrefetchList((ListedFile(b"usr/bin/python3", 0),))
    record = list_record(listed.encode().replace(b",", b" ,\n "))
    assert listed_text(record) == listed.encode().decode()
    assert read_list(record) == listed
    with pytest.raises(InvalidInput):
        list_record(b"{}")


@pytest.mark.parametrize("record", [None, {}, {"list": 1}, {"list": "no JSON"}])
def test_what_is_no_list_is_none(record: dict[str, object] | None) -> None:
    assert read_list(record) is None


def test_layers_that_are_begun_together_read_their_list_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = PrefetchList(tuple(ListedFile(b"file-%d" % number, 0) for number in range(1000)))
    read: list[int] = []

    def counted(body: bytes) -> PrefetchList:
        read.append(len(body))
        return prefetch_list.parse_prefetch_list(body)

    monkeypatch.setattr(prefetch_lists, "parse_prefetch_list", counted)
    # The index gives each of them a record of its own.
    records = [{"list": listed.encode().decode()} for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read_list, records)) == [listed] * 8
    assert len(read) == 1
