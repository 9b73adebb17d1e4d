"""Layers put together again, and TOCs that lie found out."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.content.estargz.whole_layer import WholeLayer
from headstart.content.layer.errors import LayerRefused
from tests.content.estargz.layers import FORMS, TAR, trees
from tests.content.estargz.reading import Opened, opened
from tests.content.estargz.writer import Form, WrittenLayer, rewritten, write_layer
from tests.content.layer.archives import Member, member, write

Entries = list[dict[str, Any]]


@pytest.mark.parametrize("form", FORMS)
def test_framing_and_payload_in_order_are_the_tar(form: str) -> None:
    put_together(write_layer(TAR, FORMS[form]))


@settings(max_examples=250, deadline=None)
@given(
    trees(),
    st.sampled_from(["build", "lossless", "storage"]),
    st.sampled_from([1, 500, 512, 1000, 4 << 20]),
    st.sampled_from([0, 1500, 10_000]),
    st.integers(1, 3000),
)
def test_any_layer_is_put_together_again(
    members: list[Member], style: str, chunk_size: int, least_member: int, piece_size: int
) -> None:
    if chunk_size == 1:
        members = [of_few_bytes(made) for made in members]
    form = (
        Form(style, "zstd", chunk_size, 0, "zstd-64")
        if style == "storage"
        else Form(style, "gzip", chunk_size, least_member)
    )
    put_together(write_layer(write(members), form), piece_size)


def of_few_bytes(made: Member) -> Member:
    """Else a chunk a byte is many members."""
    header, contents = made
    if len(contents) > 20:
        header.size = 20
    return Member(header, contents[:20])


def put_together(layer: WrittenLayer, piece_size: int = 1 << 20) -> None:
    """From chunks on the data device and framing of the members, as the filler does it."""
    reader = opened(layer)
    device = reader.device()
    table = reader.toc.chunks
    tar = bytearray()
    for number, content in reader.members():
        for span in table.spans(number):
            if span.chunk is None:
                tar += content[span.start : span.stop]
            else:
                at = table.chunk(span.chunk).device_offset
                assert span.stop is not None
                tar += device[at : at + span.stop - span.start]
    assert hashlib.sha256(tar).digest() == hashlib.sha256(layer.tar).digest()
    reader.verify(piece_size)


CONTENTS = [
    member(b"a", contents=b"first first" * 100, mode=0o644),
    member(b"b", contents=b"other other" * 100, mode=0o644),
    member(b"c", contents=b"c" * 5000),
    member(b"d", contents=b"tail"),
]


def lied(change: Callable[[Entries], None], form: Form = Form()) -> Opened:  # noqa: B008
    """A layer whose TOC was changed, and that announces the changed one."""
    layer = write_layer(write(CONTENTS), form)
    document = json.loads(layer.toc)
    change(document["entries"])
    return opened(rewritten(layer, json.dumps(document).encode()))


def unchanged(entries: Entries) -> None:
    pass


def other_mode(entries: Entries) -> None:
    entries[0]["mode"] = 0o4755


def other_owner(entries: Entries) -> None:
    entries[0]["uid"] = 1


def other_name(entries: Entries) -> None:
    entries[0]["name"] = "sudo"


def other_time(entries: Entries) -> None:
    entries[0]["modtime"] = "2023-11-14T22:13:20Z"


def other_kind(entries: Entries) -> None:
    entries.append({"name": "new", "type": "dir"})


def left_out(entries: Entries) -> None:
    del entries[1]


def another_file(entries: Entries) -> None:
    entries.insert(0, {"name": "empty", "type": "reg"})


def swapped_contents(entries: Entries) -> None:
    """Same names, sizes and modes; each digest is of what lies there."""
    entries[0]["name"], entries[1]["name"] = "b", "a"


def whiteout(entries: Entries) -> None:
    entries.append({"name": ".wh.below", "type": "reg"})


def cut_in_two(entries: Entries) -> None:
    """Two files where the tar has one."""
    content = b"c" * 5000
    entries[2] |= {"size": 4096, "chunkDigest": sha256(content[:4096])}
    entries.insert(
        3,
        {
            "name": "hidden",
            "type": "reg",
            "size": 904,
            "offset": entries[2]["offset"],
            "innerOffset": 4096,
            "chunkDigest": sha256(content[4096:]),
        },
    )


def shorter(entries: Entries) -> None:
    entries[2] |= {"size": 4096, "chunkDigest": sha256(b"c" * 4096)}


def moved(entries: Entries) -> None:
    """All bytes of a file one further: the last one is of its padding."""
    content = (b"first first" * 100)[1:] + b"\0"
    entries[0] |= {"innerOffset": 1, "chunkDigest": sha256(content)}


LIES = [
    other_mode,
    other_owner,
    other_name,
    other_time,
    other_kind,
    left_out,
    another_file,
    swapped_contents,
    whiteout,
    cut_in_two,
    shorter,
    moved,
]


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.mark.parametrize("lie", LIES)
def test_a_toc_that_says_something_else_than_the_tar_is_found_out(
    lie: Callable[[Entries], None],
) -> None:
    reader = lied(lie)
    # All digests are right: that is what makes it a lie and not damage.
    reader.device()
    for piece_size in (1 << 20, 100, 1):
        with pytest.raises(LayerRefused):
            reader.verify(piece_size)


def test_a_toc_that_was_only_written_again_is_none() -> None:
    reader = lied(unchanged)
    reader.device()
    reader.verify()


def test_a_tar_that_is_cut_is_found_out() -> None:
    reader = opened(write_layer(write(CONTENTS)))
    members = list(reader.members())
    for count in range(len(members)):
        whole = WholeLayer(reader.toc)
        with pytest.raises(LayerRefused):
            for number, content in members[:count]:
                whole.feed(number, memoryview(content))
            whole.close()


def test_a_member_that_is_cut_or_left_out_is_found_out() -> None:
    reader = opened(write_layer(write(CONTENTS)))
    for cut in range(reader.toc.chunks.members):
        for kept in (0, 1, 3):
            whole = WholeLayer(reader.toc)
            with pytest.raises(LayerRefused):
                for number, content in reader.members():
                    whole.feed(number, memoryview(content)[: kept if number == cut else None])
                whole.close()


def test_the_index_is_shown_where_the_tar_goes_on_to_it() -> None:
    for ending, shown in (("build", True), ("lossless", False)):
        reader = opened(write_layer(TAR, Form(ending)))
        assert (b"stargz.index.json" in reader.toc.tree.root.children) == shown
        # Without it, or with it where it is not, the trees differ.
        reader.verify()


def test_a_toc_without_a_file_at_the_end_of_the_tar_is_refused() -> None:
    def without_last(entries: Entries) -> None:
        del entries[-1]

    with pytest.raises(LayerRefused, match="says nothing of the last file"):
        lied(without_last)


def test_members_come_in_order() -> None:
    whole = WholeLayer(opened(write_layer(write(CONTENTS))).toc)
    whole.feed(0, memoryview(bytes(0)))
    whole.feed(0, memoryview(bytes(0)))
    whole.feed(1, memoryview(bytes(0)))
    with pytest.raises(ValueError, match="is over"):
        whole.feed(0, memoryview(bytes(0)))
