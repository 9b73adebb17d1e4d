"""The list's JSON: always the same bytes, and what is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.landmarks.caps import ListCaps
from headstart.content.landmarks.prefetch_list import (
    MEDIA_TYPE,
    ListedFile,
    PrefetchList,
    parse_prefetch_list,
    within_caps,
)
from headstart.content.landmarks.range_set import LARGEST, Range
from tests.content.estargz.memory import at_most
from tests.content.landmarks.lists import FILES, LISTS

DIGEST = Digest.of(b"content")
LAYER = Digest.of(b"layer")
CAPS = ListCaps()


def document(*files: object, **more: object) -> bytes:
    whole = {"version": 1, "mediaType": MEDIA_TYPE, "files": list(files)} | more
    return json.dumps(whole).encode()


def entry(**more: object) -> dict[str, object]:
    return {"path": "usr/bin/python3"} | more


@given(LISTS)
def test_a_list_is_read_as_it_was_written_and_its_bytes_are_always_the_same(
    listed: PrefetchList,
) -> None:
    encoded = listed.encode()
    read = parse_prefetch_list(encoded)
    assert read == listed
    assert read.encode() == encoded
    members = json.loads(encoded)
    assert parse_prefetch_list(json.dumps(members, indent=2).encode()).encode() == encoded
    again = json.dumps(members, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert again.encode() == encoded


def test_the_form_is_the_documented_one() -> None:
    files = (
        ListedFile(b"usr/lib/\xc3\xbc", 0, DIGEST, (Range(4096, 100), Range(0, 10)), 0.25),
        ListedFile(b"\xff", LAYER),
        ListedFile(b"etc/motd"),
    )
    assert PrefetchList(files).encode().decode() == (
        '{"files":['
        f'{{"digest":"{DIGEST}","layer":0,"path":"usr/lib/\u00fc",'
        '"ranges":[[4096,100],[0,10]],"seconds":0.25},'
        f'{{"layer":"{LAYER}","pathBase64":"/w=="}},'
        '{"path":"etc/motd"}'
        '],"mediaType":"application/vnd.headstart.prefetch.v1+json","version":1}'
    )


def test_members_may_be_left_out_or_null() -> None:
    given = document(entry(layer=None, digest=None, ranges=None, seconds=None), entry(seconds=3))
    name = b"usr/bin/python3"
    files = (ListedFile(name), ListedFile(name, seconds=3.0))
    assert parse_prefetch_list(given) == PrefetchList(files)
    assert parse_prefetch_list(document()) == PrefetchList(())


def test_nothing_is_before_the_start() -> None:
    body = document(entry(seconds=-0.0))
    assert b'"seconds":0.0}' in parse_prefetch_list(body).encode()


def test_the_files_of_a_layer_are_found_by_its_number_and_its_digest() -> None:
    files = [
        ListedFile(name, layer)
        for name, layer in ((b"a", 1), (b"b", LAYER), (b"c", 0), (b"d", None), (b"e", DIGEST))
    ]
    listed = PrefetchList(tuple(files))
    assert [file.path for file in listed.of_layer(1, LAYER)] == [b"a", b"b"]


NO_LAYERS: list[object] = [-1, True, 1.0, 4096, [], "sha256:0", "0"]
NO_DIGESTS: list[object] = ["", "sha256:0", 5, f"{DIGEST}0"]
NO_RANGES: list[object] = [[], {}, "0-1", [[0, 1]] * 1025]
NO_SECONDS: list[object] = [-1, True, "1", 86401, 1 << 2000]

REFUSED: dict[str, list[object]] = {
    "files[0].path": [
        entry(path="/usr"),
        entry(path="../usr"),
        entry(path="a//b"),
        entry(path="a/./b"),
        entry(path="a/../b"),
        entry(path="a/"),
        entry(path=""),
        entry(path="."),
        entry(path="a\0b"),
        entry(path="a" * 256),
        entry(path="a/" * 2048 + "a"),
        entry(path="\ud800"),
        entry(path=3),
    ],
    "files[0].pathBase64": [
        {"pathBase64": "/w"},
        {"pathBase64": "/w==\n"},
        {"pathBase64": "YQ=="},
        {"pathBase64": "L/8="},
        {"pathBase64": "\u00e9"},
        {"pathBase64": []},
    ],
    "files[0].layer": [entry(layer=given) for given in NO_LAYERS],
    "files[0].digest": [entry(digest=given) for given in NO_DIGESTS],
    "files[0].ranges": [entry(ranges=given) for given in NO_RANGES],
    "files[0].ranges[1]": [
        entry(ranges=[[0, 1], given])
        for given in (
            [],
            [0],
            [0, 1, 2],
            [0, 0],
            [-1, 1],
            [0, -1],
            [0, True],
            [False, 1],
            [0.0, 1],
            ["0", "1"],
            [LARGEST, 1],
            [1, LARGEST],
            {"offset": 0, "length": 1},
            None,
        )
    ],
    "files[0].seconds": [entry(seconds=given) for given in NO_SECONDS],
    "files[0]": [None, [], "usr/bin", {}, entry(pathBase64="/w=="), entry(weight=1)],
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_malformed_file_is_refused_by_field_value_and_remedy(field: str) -> None:
    for file in REFUSED[field]:
        with pytest.raises(InvalidInput) as refused:
            parse_prefetch_list(document(file))
        assert refused.value.field == field, file
        assert refused.value.remedy and "\n" not in str(refused.value)


def test_the_largest_range_is_taken() -> None:
    given = document(entry(ranges=[[LARGEST - 1, 1], [0, LARGEST]]))
    ranges = (Range(LARGEST - 1, 1), Range(0, LARGEST))
    assert parse_prefetch_list(given).files[0].ranges == ranges


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("version", {"version": 2}),
        ("version", {"version": True}),
        ("version", {"version": "1"}),
        ("version", {"version": None}),
        ("mediaType", {"mediaType": "application/json"}),
        ("mediaType", {"mediaType": None}),
        ("files", {"files": {}}),
        ("files", {"files": None}),
        ("prefetch list", {"comment": "x"}),
    ],
)
def test_another_version_type_or_member_is_refused(field: str, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_prefetch_list(document(**more))
    assert refused.value.field == field


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b'{"files":[],"files":[],"version":1}',
        document() + b"{}",
        document(entry(seconds=1)).replace(b'"seconds": 1', b'"seconds": NaN'),
        document(entry(seconds=1)).replace(b'"seconds": 1', b'"seconds": 1, "seconds": 2'),
        b"[" * 100_000,
        b'{"files":' * 50_000,
        b'{"version":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_such_document_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="prefetch list"):
        parse_prefetch_list(body)


def test_an_infinite_number_is_refused() -> None:
    body = document(entry(seconds=1)).replace(b'"seconds": 1', b'"seconds": 1e999')
    with pytest.raises(InvalidInput, match="seconds"):
        parse_prefetch_list(body)


@given(LISTS, st.data())
def test_damaged_json_is_read_or_refused_and_nothing_else(
    listed: PrefetchList, data: st.DataObject
) -> None:
    body = bytearray(listed.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.sampled_from(b'{}[]",:0-9e\x00\xff/.'))
    try:
        read = parse_prefetch_list(bytes(body))
    except InvalidInput as refused:
        assert len(refused.value) <= 100
    else:
        assert parse_prefetch_list(read.encode()) == read


@pytest.mark.parametrize(
    "body",
    [
        b'{"files":[' + b"{}," * 5_000_000,
        b'{"files":[' + b"[]," * 5_000_000,
        b'{"files":[' + b'"ab",' * 3_000_000,
        b'{"files":[' + b"1000," * 3_000_000,
        b"[" * (16 << 20),
        b" " * ((16 << 20) + 1),
    ],
    ids=["objects", "arrays", "texts", "numbers", "depth", "size"],
)
def test_a_hostile_document_is_refused_before_it_takes_memory(body: bytes) -> None:
    with at_most(4 << 20), pytest.raises(InvalidInput, match="at most"):
        parse_prefetch_list(body)


def test_as_many_files_as_the_caps_allow_are_read_and_no_more() -> None:
    listed = PrefetchList((ListedFile(b"a"),) * CAPS.files)
    assert parse_prefetch_list(listed.encode()) == listed
    with pytest.raises(InvalidInput, match="files"):
        parse_prefetch_list(PrefetchList((*listed.files, ListedFile(b"a"))).encode())


@given(
    st.lists(FILES, max_size=8),
    st.integers(100, 1000),
    st.integers(0, 60),
    st.integers(0, 8),
)
def test_a_list_within_the_caps_is_a_beginning_that_can_be_read(
    files: list[ListedFile], size: int, separators: int, most: int
) -> None:
    caps = ListCaps(json_bytes=size, separators=separators + 10, files=most)
    listed = within_caps(files, caps)
    kept = len(listed.files)
    assert listed.files == tuple(files[:kept])
    assert parse_prefetch_list(listed.encode(), caps) == listed
    if kept < len(files) and kept < most:
        encoded = PrefetchList(tuple(files[: kept + 1])).encode()
        signs = sum(encoded.count(sign) for sign in b",[{")
        assert len(encoded) >= size or signs >= caps.separators
