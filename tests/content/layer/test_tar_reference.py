"""The parser against Python's tarfile and GNU tar."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.content.layer.entry import Entry, EntryKind
from headstart.content.layer.errors import LayerRefused
from tests.content.layer.archives import (
    CAPABILITY,
    FORMATS,
    TYPES,
    Member,
    member,
    parse,
    said,
    shared,
    text,
    tree_of,
    write,
)
from tests.content.layer.unpacked import look
from tests.parts.processes import run

GNU_TAR_FORMATS = ("v7", "oldgnu", "gnu", "ustar", "posix")
LONG_TIME = 1_700_000_000
FRACTION = 123_456_789

NAME_BYTES = st.binary(min_size=1, max_size=12).filter(lambda part: not {0, 0x2F} & set(part))
LONG_NAME = st.integers(90, 260).map(lambda length: b"n" * length)
NAMES = st.lists(st.one_of(NAME_BYTES, LONG_NAME), min_size=1, max_size=4).map(b"/".join)
XATTRS = st.dictionaries(
    st.sampled_from([b"user.a", b"user.%d", b"security.capability", b"trusted.x"]),
    st.one_of(st.just(CAPABILITY), st.binary(max_size=40)),
    max_size=3,
)
DEVICES = st.tuples(st.integers(0, 4095), st.integers(0, 1_048_575))
SPLITS = st.lists(st.one_of(st.integers(1, 30), st.integers(1, 3000)), min_size=1, max_size=5)


@st.composite
def members(draw: st.DrawFn) -> tuple[Member, int]:
    """A file, and its time in nanoseconds, which only the PAX format has room for."""
    kind = draw(st.sampled_from(EntryKind))
    contents = draw(st.binary(max_size=1200)) if kind is EntryKind.REGULAR else b""
    mtime_ns = draw(st.integers(0, 1 << 40)) * draw(st.sampled_from([1, 1_000_000_000]))
    seconds, fraction = divmod(mtime_ns, 1_000_000_000)
    made = member(
        draw(NAMES),
        kind,
        contents,
        mode=draw(st.integers(0, 0o7777)),
        owner=(draw(st.integers(0, 1 << 33)), draw(st.integers(0, 0o7777777))),
        mtime=seconds,
        target=draw(NAMES) if kind in (EntryKind.SYMLINK, EntryKind.HARD_LINK) else b"",
        device=draw(DEVICES) if kind in (EntryKind.CHARACTER, EntryKind.BLOCK) else (0, 0),
        xattrs=draw(XATTRS),
        records={"mtime": f"{seconds}.{fraction:09}"},
    )
    return made, mtime_ns


def as_tarfile_sees(archive: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    found = []
    with tarfile.open(
        fileobj=io.BytesIO(archive), encoding="utf-8", errors="surrogateescape"
    ) as opened:
        for header in opened:
            file = opened.extractfile(header) if header.isreg() else None
            found.append((header, file.read() if file else b""))
    return found


@settings(max_examples=600, deadline=None)
@given(
    given_members=st.lists(members(), max_size=6),
    form=st.sampled_from(sorted(FORMATS)),
    splits=SPLITS,
)
def test_archives_in_any_pieces_are_read_as_tarfile_reads_them(
    given_members: list[tuple[Member, int]], form: str, splits: list[int]
) -> None:
    compare(given_members, form, splits)


@pytest.mark.soak
@settings(max_examples=50_000, deadline=None)
@given(
    given_members=st.lists(members(), max_size=8),
    form=st.sampled_from(sorted(FORMATS)),
    splits=SPLITS,
)
def test_many_archives_are_read_as_tarfile_reads_them(
    given_members: list[tuple[Member, int]], form: str, splits: list[int]
) -> None:
    compare(given_members, form, splits)


def compare(given_members: list[tuple[Member, int]], form: str, splits: list[int]) -> None:
    fitting = [pair for pair in given_members if fits(pair[0], form)]
    archive = write([made for made, _ in fitting], FORMATS[form])
    parsed = parse(archive, splits)
    assert parsed == parse(archive)
    expected = as_tarfile_sees(archive)
    assert len(parsed) == len(expected) == len(fitting)
    for (entry, contents), (header, reference), (made, mtime_ns) in zip(
        parsed, expected, fitting, strict=True
    ):
        assert contents == reference
        assert as_entry(header, entry) == entry
        if form == "pax":
            assert entry.mtime_ns == mtime_ns
            prefix = "SCHILY.xattr."
            assert entry.xattrs == {
                os.fsencode(name[len(prefix) :]): os.fsencode(value)
                for name, value in made.header.pax_headers.items()
                if name.startswith(prefix)
            }
        else:
            assert entry.mtime_ns == mtime_ns // 1_000_000_000 * 1_000_000_000
            assert not entry.xattrs


def fits(made: Member, form: str) -> bool:
    """Whether a format has room for a file; PAX has for all that is given here."""
    try:
        write([made], FORMATS[form])
    except ValueError:
        return False
    return True


def as_entry(header: tarfile.TarInfo, entry: Entry) -> Entry:
    """What tarfile read, but time and extended attributes, which it knows less exactly."""
    kinds = {typeflag: kind for kind, typeflag in TYPES.items()}
    # tarfile takes slashes off the end.
    slashes = entry.name[len(entry.name.rstrip(b"/")) :]
    link = header.islnk() or header.issym()
    return Entry(
        os.fsencode(header.name) + slashes,
        kinds[header.type],
        header.mode,
        header.uid,
        header.gid,
        entry.mtime_ns,
        header.size,
        os.fsencode(header.linkname) if link else b"",
        (header.devmajor, header.devminor) if header.isdev() and not header.isfifo() else (0, 0),
        entry.xattrs,
    )


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A directory with files of every kind."""
    if os.geteuid() != 0:
        pytest.skip("making devices has to be done by root")
    root = tmp_path / "planted"
    (root / "d/e").mkdir(parents=True)
    (root / "d/file").write_bytes(bytes(range(256)) * 20)
    (root / "d/empty").touch()
    (root / "d/e/link").symlink_to("../../elsewhere")
    os.link(root / "d/file", root / "d/e/hard")
    os.link(root / "d/e/link", root / "hard symlink", follow_symlinks=False)
    (root / text(b"\xc3\xa4\xff\n")).write_bytes(b"odd name")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    os.mknod(root / "sda", 0o060660, os.makedev(259, 70_000))
    (root / "d/setuid").write_bytes(b"x")
    os.chown(root / "d/setuid", 1234, 2_000_000)
    (root / "d/setuid").chmod(0o4751)
    (root / "d").chmod(0o1777)
    os.setxattr(root / "d/setuid", "security.capability", CAPABILITY)
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(0, LONG_TIME * 10**9 + FRACTION), follow_symlinks=False)
    return root


def plant_what_v7_has_no_room_for(root: Path) -> None:
    deep = root / ("p" * 90) / ("q" * 60)
    deep.mkdir(parents=True)
    (deep / ("n" * 90)).write_bytes(b"long")
    os.utime(deep / ("n" * 90), ns=(0, LONG_TIME * 10**9 + FRACTION))
    (root / "long target").symlink_to("t" * 99)


def gnu_tar(root: Path, form: str, *options: str) -> bytes:
    command: list[str | Path] = [
        "tar",
        f"--format={form}",
        "--numeric-owner",
        *options,
        "-C",
        root,
        "-cf",
        "-",
        ".",
    ]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.parametrize("form", GNU_TAR_FORMATS)
def test_a_tree_packed_by_gnu_tar_is_read_whole(planted: Path, form: str) -> None:
    if form == "v7":
        for device in ("null", "sda", "fifo"):
            (planted / device).unlink()
    else:
        plant_what_v7_has_no_room_for(planted)
    options = ("--xattrs", "--xattrs-include=*") if form == "posix" else ()
    tree, contents = tree_of(parse(gnu_tar(planted, form, *options), [1000, 1]))
    expected, found = look(planted), said(tree, contents)
    assert shared(found) == shared(expected)
    for files in (expected, found):
        for attributes in files.values():
            del attributes["inode"]
            if form != "posix":
                attributes["xattrs"] = {}
                attributes["mtime_ns"] = int(str(attributes["mtime_ns"])) // 10**9
    assert found == expected


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("gnu", ()),
        ("oldgnu", ()),
        ("posix", ("--sparse-version=0.0",)),
        ("posix", ("--sparse-version=0.1",)),
        ("posix", ("--sparse-version=1.0",)),
    ],
)
def test_sparse_files_packed_by_gnu_tar_are_refused(
    tmp_path: Path, form: str, options: tuple[str, ...]
) -> None:
    root = tmp_path / "planted"
    root.mkdir()
    with (root / "sparse").open("wb") as file:
        file.truncate(4 << 20)
        file.seek(1 << 20)
        file.write(b"x" * 5000)
    with pytest.raises(LayerRefused, match="sparse file"):
        parse(gnu_tar(root, form, "--sparse", "--hole-detection=raw", *options))
    ((_, contents),) = [pair for pair in parse(gnu_tar(root, form)) if pair[0].size]
    assert contents == (root / "sparse").read_bytes()


def test_an_archive_to_which_gnu_tar_appended_is_read_to_its_end(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    for name in ("one", "two", "one"):
        (tmp_path / name).write_text(name)
        run(["tar", "-C", tmp_path, "-rf", archive, name], deadline=20)
    assert [entry.name for entry, _ in parse(archive.read_bytes())] == [b"one", b"two", b"one"]
