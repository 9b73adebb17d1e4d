"""What is promised of every tar: the layer means the same, and the read side takes it."""

import gzip
import hashlib
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.content.estargz.writing.errors import NotConvertible
from headstart.content.estargz.writing.options import WritingOptions
from headstart.content.estargz.writing.scan import scan_tar
from headstart.content.estargz.writing.writer import EStargzWriter
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.errors import LayerRefused
from tests.content.estargz.reading import opened
from tests.content.estargz.writing.converting import (
    OWN_FILES,
    Converted,
    backwards,
    convert,
    meaning,
    names,
    reader,
)
from tests.content.estargz.writing.tars import Tar, tars
from tests.content.layer.archives import member, parse, said, shared, tree_of, write

OPTIONS = st.builds(
    WritingOptions,
    chunk_size=st.sampled_from([300, 512, 1000, 4 << 20]),
    pack=st.booleans(),
    stored_from=st.sampled_from([0, 0.9, 2]),
)


def reads_well(tar: bytes, converted: Converted) -> None:
    """Every chunk verifies, and TOC, written tar and given tar make the same tree."""
    layer, result = converted.layer, converted.result
    assert result.digest == Digest.of(layer.blob)
    assert result.size == len(layer.blob)
    assert result.diff_id == Digest.of(layer.tar)
    assert result.uncompressed_size == len(layer.tar)
    assert result.toc_digest == Digest.of(layer.toc)
    read = opened(layer)
    read.verify()
    found = said(read.toc.tree, read.device())
    kept = [
        (entry, contents)
        for entry, contents in parse(tar)
        if entry.name.decode().strip("./") not in {name.strip(".") for name in OWN_FILES}
    ]
    expected = said(*tree_of(kept))
    ours = {name: found.pop(name.encode()) for name in OWN_FILES if name.encode() in found}
    landmark = ".no.prefetch.landmark" if read.toc.no_prefetch else ".prefetch.landmark"
    assert ours.keys() == {landmark, "stargz.index.json"}
    assert ours[landmark]["contents"] == b"\x0f"
    assert ours["stargz.index.json"]["contents"] == layer.toc
    assert shared(found) == shared(expected)
    for file in (*found.values(), *expected.values()):
        del file["inode"]
    assert found == expected


@settings(max_examples=200, deadline=None)
@given(tars(), OPTIONS, st.integers(1, 3000))
def test_any_tar_is_kept_in_meaning_or_not_converted(
    given_tar: Tar, options: WritingOptions, piece_size: int
) -> None:
    tar, order = given_tar
    try:
        tree_of(parse(tar))
    except LayerRefused:
        with pytest.raises((LayerRefused, NotConvertible)):
            convert(tar, order, options, piece_size=piece_size)
        return
    try:
        converted = convert(tar, order, options, piece_size=piece_size)
    except NotConvertible:
        given_names = [name.strip("./") for name in names(tar)]
        assert any(
            name in given_names[number + 1 :]
            or any(later.startswith(f"{name}/") for later in given_names[:number])
            for number, name in enumerate(given_names)
        ), "no name is given twice, or replaces a directory"
        return
    assert meaning(converted.layer.tar) == meaning(tar)
    reads_well(tar, converted)


@settings(max_examples=200, deadline=None)
@given(tars(twice=False), OPTIONS)
def test_a_tar_of_different_names_is_converted(given_tar: Tar, options: WritingOptions) -> None:
    tar, order = given_tar
    try:
        tree_of(parse(tar))
    except LayerRefused:
        return
    converted = convert(tar, order, options)
    assert meaning(converted.layer.tar) == meaning(tar)
    reads_well(tar, converted)


@settings(max_examples=100, deadline=None)
@given(tars(twice=False), OPTIONS)
def test_the_way_of_mapping_changes_no_byte(given_tar: Tar, options: WritingOptions) -> None:
    tar, order = given_tar
    try:
        scan = scan_tar([tar])
    except LayerRefused:
        return
    writer = EStargzWriter(scan, order, options)
    first = list(writer.write(reader(tar)))
    result = writer.result
    with ThreadPoolExecutor(3) as threads:
        for map_ordered in (map, threads.map, backwards):
            assert list(writer.write(reader(tar), map_ordered)) == first
            assert writer.result == result


@settings(max_examples=50, deadline=None)
@given(tars(twice=False), OPTIONS)
def test_what_is_converted_again_is_the_same(given_tar: Tar, options: WritingOptions) -> None:
    tar, order = given_tar
    try:
        once = convert(tar, order, options)
    except LayerRefused:
        return
    again = convert(once.layer.tar, order, options)
    assert again.layer.blob == once.layer.blob


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 300), st.integers(0, 4000), st.data())
def test_a_damaged_tar_is_refused_or_read_as_the_parser_reads_it(
    at: int, size: int, data: st.DataObject
) -> None:
    tar = bytearray(write([member(b"a/b", contents=b"x" * size), member(b"n" * 120)]))
    tar[at] = data.draw(st.integers(0, 255))
    del tar[data.draw(st.integers(0, len(tar))) :]
    try:
        tree_of(parse(bytes(tar)))
    except LayerRefused:
        with pytest.raises((LayerRefused, NotConvertible)):
            convert(bytes(tar))
        return
    try:
        converted = convert(bytes(tar))
    except NotConvertible:
        # Of the damage only a name that is not UTF-8 any more.
        assert at < 100
        return
    reads_well(bytes(tar), converted)


def test_threads_change_no_byte_of_a_large_layer() -> None:
    source = random.Random(5)
    members = [
        member(b"%d" % number, contents=source.randbytes(90_000) + bytes(100_000))
        for number in range(30)
    ]
    tar = write([member(b"large", contents=source.randbytes(3 << 20)), *members])
    for options in (WritingOptions(chunk_size=1 << 20), WritingOptions(pack=True)):
        writer = EStargzWriter(scan_tar([tar]), [b"7", b"large"], options)
        first = list(writer.write(reader(tar)))
        assert len(first) > 5, "all members are one item"
        result = writer.result
        with ThreadPoolExecutor(3) as threads:
            for map_ordered in (threads.map, backwards):
                assert list(writer.write(reader(tar), map_ordered)) == first
                assert writer.result == result
        reads_well(tar, convert(tar, [b"7", b"large"], options))


def test_members_stand_where_the_specification_wants_them() -> None:
    tar = write(
        [
            member(b"d", EntryKind.DIRECTORY),
            member(b"d/a", contents=b"a" * 2500),
            member(b"d/empty"),
            member(b"d/b", contents=b"b" * 700),
        ],
        tarfile.GNU_FORMAT,
    )
    layer = convert(tar, options=WritingOptions(chunk_size=1000)).layer
    toc = opened(layer).toc
    table = toc.chunks
    contents = []
    for number in range(table.members):
        start, stop, numbers = table.member(number)
        assert layer.blob[start : start + 4] == b"\x1f\x8b\x08\0"
        inflated = gzip.decompress(layer.blob[start:stop])
        contents.append((len(inflated), [table.chunk(chunk)[1::3] for chunk in numbers]))
    framing = 512
    assert contents[:-1] == [
        (framing, []),
        (1 + 511 + 2 * framing, [(1, 0)]),
        (1000, [(1000, 0)]),
        (1000, [(1000, 0)]),
        (500 + 60 + 2 * framing, [(500, 0)]),
        (700 + 324, [(700, 0)]),
    ]
    # The TOC, and of it the header is first.
    start, stop, _ = table.member(table.members - 1)
    assert gzip.decompress(layer.blob[start:stop]).startswith(b"stargz.index.json\0")
    assert stop == len(layer.blob) - 51
    digest = hashlib.sha256(b"a" * 2500).hexdigest()
    assert f'"digest":"sha256:{digest}"'.encode() in layer.toc
