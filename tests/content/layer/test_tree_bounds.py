"""What no tree may hold: names and numbers that Linux has no room for, and more than the caps."""

import pytest

from headstart.content.layer.caps import LayerCaps
from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.errors import LayerRefused
from tests.content.layer.growing import file, made, names

DIRECTORY = EntryKind.DIRECTORY
SYMLINK = EntryKind.SYMLINK
HARD_LINK = EntryKind.HARD_LINK
CHARACTER = EntryKind.CHARACTER


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (file(b"a\0b"), "NUL"),
        (file(b"n" * 256), "longer than 255"),
        (file(b"d/" + b"n" * 256 + b"/x"), "longer than 255"),
        (file(b"/".join([b"n" * 200] * 21)), "longer than 4095"),
        (file(b"/".join([b"n"] * 257)), "deeper than 256"),
        (Entry(b"l", SYMLINK), "is empty"),
        (Entry(b"l", SYMLINK, target=b"a\0b"), "NUL"),
        (Entry(b"l", SYMLINK, target=b"a" * 4096), "longer than 4095"),
        (Entry(b"l", HARD_LINK, target=b"a\0b"), "NUL"),
        (file(b"a", -1), "negative"),
        (file(b"a", uid=-1), "out of range"),
        (file(b"a", gid=(1 << 32) - 1), "out of range"),
        (Entry(b"a", CHARACTER, device=(4096, 0)), "out of range"),
        (Entry(b"a", CHARACTER, device=(0, 1 << 20)), "out of range"),
        (Entry(b"a", EntryKind.BLOCK, device=(-1, 0)), "out of range"),
        (file(b"a", xattrs={b"user." + b"n" * 251: b""}), "longer than 255"),
        (file(b"a", xattrs={b"user.a\0": b""}), "NUL"),
        (file(b"a", xattrs={b"user.a": bytes(65536)}), "65536 bytes"),
        (file(b"a", xattrs={b"user.%d" % n: bytes(60000) for n in range(3)}), "over 131072"),
        (file(b"a", 1 << 50), "have more than"),
    ],
)
def test_what_no_file_can_have_is_refused(entry: Entry, reason: str) -> None:
    with pytest.raises(LayerRefused, match=reason) as refused:
        made(entry)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "entry",
    [
        file(b"n" * 255),
        file(b"/".join([b"n"] * 256)),
        file(b"/".join([b"n" * 255] * 15 + [b"n" * 254])),
        Entry(b"l", SYMLINK, target=b"a" * 4095),
        file(b"a", uid=(1 << 32) - 2),
        file(b"a", xattrs={b"user." + b"n" * 250: b"", b"user.a": bytes(65535)}),
    ],
)
def test_what_linux_takes_is_taken(entry: Entry) -> None:
    assert entry.name.rpartition(b"/")[2] in {
        path.rpartition(b"/")[2] for path in names(made(entry))
    }


def test_files_are_counted_with_those_implied_replaced_and_hidden() -> None:
    caps = LayerCaps(entries=4)
    assert len(names(made(file(b"a/b/c"), file(b"d"), caps=caps))) == 4
    for entries in (
        [file(b"a/b/c"), file(b"d"), file(b"e")],
        [file(b"a/b/c/d/e")],
        [file(b"a")] * 5,
        [Entry(b"a", DIRECTORY)] * 5,
        [Entry(b"/", DIRECTORY)] * 5,
        [file(b".wh.%d" % number) for number in range(5)],
        [file(b".wh..wh..opq")] * 5,
        [file(b"a"), *(Entry(b"b", HARD_LINK, target=b"a") for _ in range(4))],
    ):
        with pytest.raises(LayerRefused, match="more than 4 files"):
            made(*entries, caps=caps)


@pytest.mark.parametrize(
    "entry",
    [
        file(b"n" * 200),
        file(b"d" * 200 + b"/x"),
        file(b".wh." + b"n" * 200),
        Entry(b"a", SYMLINK, target=b"t" * 200),
        file(b"a", xattrs={b"user.a": bytes(200)}),
    ],
)
def test_names_and_attributes_are_bounded_together(entry: Entry) -> None:
    with pytest.raises(LayerRefused, match="names and attributes"):
        made(entry, file(b"b" * 200), caps=LayerCaps(metadata_bytes=399))


def test_the_sizes_of_all_files_are_bounded_together() -> None:
    caps = LayerCaps(total_bytes=10)
    made(file(b"a", 5), file(b"b", 5), caps=caps)
    with pytest.raises(LayerRefused, match="more than 10 bytes"):
        made(file(b"a", 5), file(b"a", 6), caps=caps)
