"""A list in a file, in whichever of the three forms."""

from pathlib import Path

import pytest

from headstart.command.prefetch_file import read_prefetch_file
from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.landmarks.caps import ListCaps
from headstart.content.landmarks.prefetch_list import ListedFile, PrefetchList
from headstart.content.landmarks.range_set import Range
from headstart.content.landmarks.record_out import RecordedRead, write_record_out

MANIFEST = Digest.of(b"manifest")
LISTED = PrefetchList(
    (
        ListedFile(b"bin/app", 0, MANIFEST, (Range(0, 4096),), 0.5),
        ListedFile(b"etc/motd", 1),
    )
)
RECORDED = write_record_out(
    [RecordedRead(path, MANIFEST, 1) for path in (b"bin/app", b"bin/app", b"etc/motd")]
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "list"


def read(file: Path, content: bytes, caps: ListCaps | None = None) -> PrefetchList:
    file.write_bytes(content)
    return read_prefetch_file(file, caps or ListCaps())


def test_our_own_json_is_read(file: Path) -> None:
    assert read(file, LISTED.encode()) == LISTED
    spread = LISTED.encode().replace(b",", b",\n ").replace(b"{", b"{\n")
    assert read(file, b"\n" + spread) == LISTED
    assert read(file, b"\xef\xbb\xbf" + LISTED.encode()) == LISTED
    nothing = PrefetchList(())
    assert read(file, nothing.encode()) == nothing


def test_a_list_whose_first_line_is_long_is_read(file: Path) -> None:
    listed = PrefetchList(tuple(ListedFile(b"%d" % number) for number in range(10_000)))
    assert read(file, listed.encode()) == listed


def test_what_ctr_remote_records_is_read(file: Path) -> None:
    expected = PrefetchList((ListedFile(b"bin/app", 1), ListedFile(b"etc/motd", 1)))
    assert read(file, RECORDED) == expected
    assert read(file, b'{"path":"a"}') == PrefetchList((ListedFile(b"a"),))


def test_a_path_on_each_line_is_read(file: Path) -> None:
    content = b"/usr/bin/python3\n\n./etc//motd\r\n\xff name \nusr/bin/python3\n/{odd}\n#a"
    names = [b"usr/bin/python3", b"etc/motd", b"\xff name ", b"{odd}", b"#a"]
    assert read(file, content) == PrefetchList(tuple(map(ListedFile, names)))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "--list"),
        (b" \n\n", "--list"),
        (b"{odd}/a\n", "prefetch list"),
        (b'{"files":[]}', "version"),
        (LISTED.encode().replace(b"etc/motd", b"/etc/motd"), "files[1].path"),
        (RECORDED + b"etc/motd\n", "line 4"),
        (b"a\n../b\n", "line 2"),
        (b"a\n/\n", "line 2"),
        (b"a\nb\0\n", "line 2"),
        (b"a/" * 50_000, "line 1"),
        (b"\x1f\x8b\x08\x00\x00", "line 1"),
    ],
)
def test_an_error_names_the_file_and_the_place(file: Path, content: bytes, place: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read(file, content)
    assert refused.value.field == f"{file}: {place}"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for file in (tmp_path / "missing", tmp_path):
        with pytest.raises(InvalidInput, match="cannot be read") as refused:
            read_prefetch_file(file)
        assert refused.value.field == "--list"
        assert refused.value.value == str(file)[:97] + "..." * (len(str(file)) > 100)


def test_a_list_that_no_mirror_would_take_is_refused(file: Path) -> None:
    caps = ListCaps(files=10, json_bytes=2000)
    paths = [b"%d" % number for number in range(11)]
    for taken in (b"\n".join(paths[:10]), b"\n".join(paths[:10] * 5)):
        assert len(read(file, taken, caps).files) == 10
    for refused in (b"\n".join(paths), b"\n".join(b"%d" % number * 200 for number in range(10))):
        with pytest.raises(InvalidInput, match="at most"):
            read(file, refused, caps)
    with pytest.raises(InvalidInput, match="at most"):
        read(file, b" " * 100 + b"{" + b" " * 3000 + b"}", caps)
    small = ListCaps(record_bytes=len(RECORDED))
    assert len(read(file, RECORDED, small).files) == 2
    for refused in (RECORDED + b"\n", b"\xef\xbb\xbf" + RECORDED, b"a\n" * len(RECORDED)):
        with pytest.raises(InvalidInput, match="size"):
            read(file, refused, small)
