"""A TOC's JSON, entry by entry."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.content.estargz import toc_json
from headstart.content.estargz.caps import TocCaps
from headstart.content.estargz.toc_json import read_entries
from headstart.content.layer.errors import LayerRefused
from tests.content.estargz.memory import at_most

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=6)


def toc(entries: bytes, *, version: bytes = b"1") -> bytes:
    return b'{"version":' + version + b',"entries":[' + entries + b"]}"


@settings(deadline=None)
@given(ENTRIES, st.integers(1, 40), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_entries_come_as_json_has_them(
    entries: list[object], piece: int, indent: int | str | None, ascii_only: bool
) -> None:
    document = {"other": entries, "entries": entries, "version": 1}
    content = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode(
        "utf-8", "surrogatepass"
    )
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(toc_json, "_PIECE_SIZE", piece)
        assert list(read_entries(content)) == entries


def test_an_entry_may_lie_across_any_border_of_the_window() -> None:
    entries = [
        {"name": "\u00fc\U0001f600" * (number % 90), "n": number} for number in range(20_000)
    ]
    content = json.dumps({"version": 1, "entries": entries}, ensure_ascii=False).encode()
    assert len(content) > 5 << 20
    assert list(read_entries(bytearray(content))) == entries


@pytest.mark.parametrize("content", [b'{"entries":null,"version":1}', toc(b"")])
def test_a_layer_without_files_has_no_entries(content: bytes) -> None:
    assert list(read_entries(content)) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"version":1}',
        b'{"entries":[]}',
        toc(b"", version=b"2"),
        toc(b"", version=b"1.0"),
        toc(b"", version=b"true"),
        toc(b"", version=b'"1"'),
        b'{"version":1,"entries":{}}',
        b'{"version":1,"entries":[],"entries":[]}',
        b'{"version":1,"version":1,"entries":[]}',
        b'{1:1,"version":1,"entries":[]}',
        b'{"version":1,"entries":[],}',
        toc(b"{},"),
        toc(b"{} {}"),
        toc(b"1"),
        toc(b"[]"),
        toc(b'"name"'),
        toc(b'{"name":"a","name":"b"}'),
        toc(b'{"xattrs":{"a":"","a":""}}'),
        toc(b'{"size":NaN}'),
        toc(b'{"size":-Infinity}'),
        toc(b'{"name":"\xff"}'),
        toc(b'{"name":"\xc3"}')[:-3],
        toc(b'{"name":"a\nb"}'),
        toc(b"{'name':1}"),
        toc(b'{"size":' + b"9" * 5000 + b"}"),
        toc(b"") + b"{}",
        toc(b"") + b"\0",
        b"\xef\xbb\xbf" + toc(b""),
        toc(b"{}")[:-1],
        toc(b"{}")[:-2],
        toc(b"{}")[:-3],
    ],
)
def test_another_document_is_refused(content: bytes) -> None:
    with pytest.raises(LayerRefused):
        list(read_entries(content))


@pytest.mark.parametrize("bracket", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [1000, 100_000])
def test_deep_nesting_is_refused(bracket: bytes, depth: int) -> None:
    for content in (toc(b'{"a":' + bracket * depth), b'{"other":' + bracket * depth):
        with pytest.raises(LayerRefused):
            list(read_entries(content))


def test_an_entry_over_the_cap_is_refused() -> None:
    caps = TocCaps(entry_bytes=1000)
    assert list(read_entries(toc(b'{"a":"' + b"x" * 900 + b'"}'), caps))
    with pytest.raises(LayerRefused, match="over 1000 bytes"):
        list(read_entries(toc(b'{"a":"' + b"x" * 1000 + b'"}'), caps))
    with pytest.raises(LayerRefused):
        list(read_entries(toc(b'{"a":"' + b"x" * (5 << 20) + b'"}'), caps))


def test_a_document_over_the_cap_is_refused() -> None:
    with pytest.raises(LayerRefused, match="over 30"):
        list(read_entries(toc(b"{},{},{},{}"), TocCaps(json_bytes=30)))


def test_ten_million_entries_take_no_more_memory_than_one() -> None:
    content = bytearray(toc(b"{}," * 9_999_999 + b"{}"))
    entries = read_entries(content)
    # Reading all takes a minute; the window moves alike over each part.
    with at_most(8 << 20):
        for _ in range(200_000):
            assert next(entries) == {}
