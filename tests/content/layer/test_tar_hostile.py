"""Damaged and hostile archives: refused or read, never anything else."""

import random
import resource
import tarfile

import pytest

from headstart.content.layer.caps import LayerCaps
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.errors import LayerRefused
from tests.content.layer.archives import CAPABILITY, FORMATS, Member, member, parse, tree_of, write

CAPS = LayerCaps(entries=200, metadata_bytes=200_000, extension_bytes=100_000)
CHECKSUM = slice(148, 156)
PARTS = [b"a", b"b", b"c", b"d"]
ODD_PARTS = [b"..", b".", b"", b".wh.a", b".wh..wh..opq", b".wh.", b"x" * 200, b"\xff"]
RECORDS = ["path", "linkpath", "size", "uid", "gid", "mtime", "GNU.sparse.major", "SCHILY.xattr."]
VALUES = ["", "0", "-1", "9" * 30, "1.5", "a", "../../a", "/", ".wh.a", "x" * 5000]
BYTES = b"\0\x01 /.07x\x7f\x80\xff"


def generated(source: random.Random) -> bytes:
    """An archive of few names, so that they meet."""
    form = source.choice(sorted(FORMATS.values()))
    made: list[Member] = []
    for _ in range(source.randrange(1, 9)):
        kind = source.choice(list(EntryKind))
        made.append(
            member(
                _name(source),
                kind,
                source.randbytes(source.choice([0, 1, 511, 512, 700]))
                if kind is EntryKind.REGULAR
                else b"",
                target=_name(source),
                mtime=source.choice([0, 1, 1 << 35]),
                device=(source.randrange(3), source.randrange(3)),
                xattrs={b"security.capability": CAPABILITY} if source.random() < 0.3 else None,
                records=_records(source) if source.random() < 0.1 else None,
            )
        )
    try:
        return write(made, form)
    except (ValueError, tarfile.HeaderError):
        return write(made[:1], tarfile.PAX_FORMAT)


def _name(source: random.Random) -> bytes:
    parts = PARTS + ODD_PARTS if source.random() < 0.2 else PARTS
    return b"/".join(source.choices(parts, k=source.randrange(1, 4)))


def _records(source: random.Random) -> dict[str, str]:
    return {source.choice(RECORDS): source.choice(VALUES) for _ in range(2)}


def mutated(archive: bytes, source: random.Random) -> bytes:
    """Damage: bytes changed, with and without a right checksum, pieces cut, doubled, swapped."""
    damaged = bytearray(archive)
    for _ in range(source.randrange(1, 5)):
        action = source.randrange(5)
        at = source.randrange(len(damaged) + 1)
        block = at - at % 512
        if action == 0:
            damaged[at : at + 1] = source.randbytes(1)
        elif action == 1 and block + 512 <= len(damaged):
            damaged[block + source.randrange(512)] = source.choice(BYTES)
            header = damaged[block : block + 512]
            header[CHECKSUM] = b" " * 8
            damaged[block + 148 : block + 156] = b"%06o\0 " % sum(header)
        elif action == 2:
            del damaged[at : at + source.choice([1, 511, 512, 2000])]
        elif action == 3:
            damaged[at:at] = damaged[block : block + 512]
        else:
            damaged[at:at] = source.randbytes(source.choice([1, 512, 1024]))
    return bytes(damaged)


def outcome(archive: bytes, sizes: list[int]) -> object:
    """What an archive comes to: the tree's names, or the reason why not."""
    try:
        tree, _ = tree_of(parse(archive, sizes, CAPS), CAPS)
    except LayerRefused as refused:
        reason = str(refused)
        assert reason and "\n" not in reason and len(reason) < 1000
        return reason
    return sorted(tree.root.children)


def survive(seeds: range) -> tuple[int, int]:
    """Every archive of these seeds comes to the same in any pieces; how many were read, refused."""
    read = refused = 0
    for seed in seeds:
        source = random.Random(seed)
        archive = generated(source)
        if source.random() < 0.6:
            archive = mutated(archive, source)
        result = outcome(archive, [1 << 20])
        assert outcome(archive, [source.randrange(1, 700), 512, 1]) == result, f"seed {seed}"
        if isinstance(result, str):
            refused += 1
        else:
            read += 1
    return read, refused


def test_damaged_archives_are_refused_or_read() -> None:
    read, refused = survive(range(1400))
    # Both ways are taken often enough to mean something.
    assert read > 50
    assert refused > 400


@pytest.mark.soak
def test_many_damaged_archives_are_refused_or_read() -> None:
    read, refused = survive(range(10_000, 110_000))
    assert read > 5_000
    assert refused > 40_000


@pytest.mark.parametrize("seed", range(20))
def test_garbage_is_refused(seed: int) -> None:
    source = random.Random(seed)
    assert isinstance(outcome(source.randbytes(source.randrange(1, 100_000)), [4096]), str)


def test_what_is_endless_ends_at_a_cap_with_little_memory() -> None:
    empty = write([member(b"e" * 90)], tarfile.USTAR_FORMAT)[:512]
    caps = LayerCaps(entries=10_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # As many headers as a terabyte of them has, as far as the parser can know.
    with pytest.raises(LayerRefused, match="more than 10000 files"):
        parse(empty * 10_001, [1 << 20], caps)
    deep = [member(b"%d/" % number + b"d/" * 200 + b"x") for number in range(100)]
    with pytest.raises(LayerRefused, match="more than 10000 files"):
        tree_of(parse(write(deep)), caps)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
