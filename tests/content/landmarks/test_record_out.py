"""Lines as ctr-remote records them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.landmarks.caps import ListCaps
from headstart.content.landmarks.prefetch_list import ListedFile
from headstart.content.landmarks.range_set import Range
from headstart.content.landmarks.record_out import (
    RecordedRead,
    listed_files,
    read_record_out,
    recorded_reads,
    write_record_out,
)
from tests.content.estargz.memory import at_most
from tests.content.landmarks.lists import DIGESTS, clean

MANIFEST = Digest.of(b"manifest")
LAYERS = (Digest.of(b"base"), Digest.of(b"upper"))
LINES = (
    f'{{"path":"bin/show","manifestDigest":"{MANIFEST}","layerIndex":0}}\n'
    f'{{"path":"etc/motd","manifestDigest":"{MANIFEST}","layerIndex":1}}\n'
    f'{{"path":"odd/\\u003c\\u0026\\u003e \u00fc\\u2028\\u2029\x7f\\"\\\\\\t",'
    f'"manifestDigest":"{MANIFEST}","layerIndex":1}}\n'
    '{"path":"etc/hosts"}\n'
).encode()
"""As Go writes them: ``test_real_record_out.py`` has real ones."""
READS = (
    RecordedRead(b"bin/show", MANIFEST, 0),
    RecordedRead(b"etc/motd", MANIFEST, 1),
    RecordedRead('odd/<&> \u00fc\u2028\u2029\x7f"\\\t'.encode(), MANIFEST, 1),
    RecordedRead(b"etc/hosts"),
)

PATHS = st.text(min_size=1, max_size=10).filter(
    lambda path: not any("\ud800" <= sign <= "\udfff" for sign in path) and clean(path.encode())
)


def test_lines_of_go_are_read_and_written_as_they_are() -> None:
    assert read_record_out(LINES) == READS
    assert write_record_out(READS) == LINES


@given(
    st.lists(
        st.builds(
            RecordedRead,
            PATHS.map(str.encode),
            st.none() | DIGESTS,
            st.none() | st.integers(0, 4095),
        )
    )
)
def test_what_was_written_is_read_again(reads: list[RecordedRead]) -> None:
    written = write_record_out(reads)
    assert read_record_out(written) == tuple(reads)
    assert written.count(b"\n") == len(reads)


def test_unknown_members_are_kept_out_and_empty_lines_passed_over() -> None:
    body = b'\n  {"path": "/a/../b", "size": 3, "layerIndex": null, "manifestDigest": ""}\r\n\n'
    assert read_record_out(body) == (RecordedRead(b"b"),)
    assert read_record_out(b'{"path":"a"}') == (RecordedRead(b"a"),)
    assert read_record_out(b"") == ()


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"usr/bin/python3", "line 5"),
        (b"[]", "line 5"),
        (b'"path"', "line 5"),
        (b"{}", "line 5"),
        (b'{"path":3}', "line 5"),
        (b'{"path":null}', "line 5"),
        (b'{"path":{"encode":1}}', "line 5"),
        (b'{"path":"a"', "line 5"),
        (b'{"path":"a"}{"path":"b"}', "line 5"),
        (b'{"path":"a","path":"b"}', "line 5"),
        (b'{"path":"\\ud800"}', "line 5"),
        (b'{"path":"\xff"}', "line 5"),
        (b'{"path":' + b"[" * 30_000, "line 5"),
        (b'{"path":"' + b"a" * 33_000 + b'"}', "line 5"),
        (b'{"path":"../a"}', "path in line 5"),
        (b'{"path":"/"}', "path in line 5"),
        (b'{"path":""}', "path in line 5"),
        (b'{"path":"a\\u0000"}', "path in line 5"),
        (b'{"path":"a","layerIndex":-1}', "layerIndex in line 5"),
        (b'{"path":"a","layerIndex":true}', "layerIndex in line 5"),
        (b'{"path":"a","layerIndex":"0"}', "layerIndex in line 5"),
        (b'{"path":"a","layerIndex":4096}', "layerIndex in line 5"),
        (b'{"path":"a","manifestDigest":"sha256:0"}', "manifestDigest in line 5"),
        (b'{"path":"a","manifestDigest":3}', "manifestDigest in line 5"),
    ],
)
def test_an_unknown_line_is_refused_with_its_number(line: bytes, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_record_out(LINES + line + b"\n" + LINES)
    assert refused.value.field == field


def test_a_long_record_costs_no_more_than_its_files() -> None:
    """ctr-remote writes a line for every 64 KiB of a file."""
    reads = read_record_out(LINES * 100_000)
    assert len(reads) == 400_000
    assert len({id(read) for read in reads}) == 4
    assert listed_files(reads) == listed_files(READS)


def test_more_than_the_caps_is_refused() -> None:
    caps = ListCaps(files=10, record_bytes=1000)
    ten = b"".join(b'{"path":"%d"}\n' % number for number in range(10))
    assert len(read_record_out(ten * 2, caps)) == 20
    with pytest.raises(InvalidInput, match="line 11"):
        read_record_out(ten + b'{"path":"x"}\n', caps)
    with pytest.raises(InvalidInput, match="1001 bytes"):
        read_record_out(b" " * 1001, caps)
    hostile = b'{"path":[' + b"{}," * 5_000_000
    with at_most(1 << 20), pytest.raises(InvalidInput, match="line 1"):
        read_record_out(hostile)


def test_a_file_is_listed_once_where_it_was_read_first() -> None:
    names = [b"a", b"b", b"a", b"c", b"b"]
    listed = listed_files([RecordedRead(name, MANIFEST, 0) for name in names])
    assert listed == tuple(ListedFile(name, 0) for name in (b"a", b"b", b"c"))


def test_a_list_becomes_lines_for_the_layers_of_an_image() -> None:
    files = [
        ListedFile(b"a", LAYERS[1], None, (Range(0, 1),)),
        ListedFile(b"b", 0),
        ListedFile(b"a", 1, MANIFEST, (Range(5, 1),)),
        ListedFile(b"c", MANIFEST),
        ListedFile(b"d", 2),
        ListedFile(b"e"),
    ]
    reads = recorded_reads(files, MANIFEST, LAYERS)
    assert reads == (RecordedRead(b"a", MANIFEST, 1), RecordedRead(b"b", MANIFEST, 0))


def test_a_path_that_is_not_utf_8_has_no_line() -> None:
    with pytest.raises(InvalidInput, match="path"):
        write_record_out([RecordedRead(b"\xff")])


def test_a_line_is_json_for_others() -> None:
    assert [json.loads(line)["path"] for line in LINES.splitlines()] == [
        read.path.decode() for read in READS
    ]
