"""Layers to be written, and the forms to write them in."""

from hypothesis import strategies as st

from headstart.content.layer.entry import EntryKind
from tests.content.estargz.writer import LANDMARK, Form, landmark
from tests.content.layer.archives import CAPABILITY, Member, member, write

FORMS = {
    "ctr-remote": Form("build", "gzip"),
    "small chunks": Form("build", "gzip", chunk_size=1000),
    "small chunks, few members": Form("build", "gzip", chunk_size=700, least_member=5000),
    "one member": Form("build", "gzip", least_member=1 << 30),
    "stargz": Form("build", "gzip", footer="stargz"),
    "BuildKit": Form("lossless", "gzip"),
    "BuildKit, few members": Form("lossless", "gzip", chunk_size=700, least_member=5000),
    "ctr-remote zstd": Form("build", "zstd", chunk_size=1000, footer="zstd-40"),
    "podman": Form("storage", "zstd", chunk_size=1000, footer="zstd-40"),
    "podman 5": Form("storage", "zstd", footer="zstd-64"),
}

DIRECTORY = EntryKind.DIRECTORY

MEMBERS = [
    member(b"etc/", DIRECTORY, mode=0o711, owner=(3, 4), mtime=1_700_000_000),
    member(b"etc/first", contents=b"first", mtime=1_700_000_001, owner=(1000, 1001)),
    member(LANDMARK, contents=b"\x0f", mode=0),
    member(b"etc/empty"),
    member(b"big", contents=bytes(range(256)) * 20, mode=0o4755, mtime=1_600_000_000),
    member(b"implied/below/x", contents=b"x" * 512),
    member(b"etc/symlink", EntryKind.SYMLINK, target=b"first"),
    member(b"etc/hard", EntryKind.HARD_LINK, target=b"etc/first", mode=0o600, mtime=5),
    member(b"dev/null", EntryKind.CHARACTER, mode=0o666, device=(1, 3)),
    member(b"dev/sda", EntryKind.BLOCK, device=(259, 70_000)),
    member(b"dev/fifo", EntryKind.FIFO),
    member(
        b"attributes",
        contents=b"x",
        xattrs={b"user.a": b"\xff\0b", b"security.capability": CAPABILITY},
        records={"mtime": "1700000000.75"},
    ),
    member("\u00fc<&>\u2028".encode(), contents=b"umlaut"),
    member(b"n" * 120, contents=b"long name"),
    member(b".wh.gone"),
    member(b"etc/.wh..wh..opq"),
    member(b"last", contents=b"z" * 5000),
    member(b"last directory/", DIRECTORY),
]
TAR = write(MEMBERS)


@st.composite
def trees(draw: st.DrawFn) -> list[Member]:
    """Files of every kind and of sizes around a tar's blocks, no name twice, a landmark perhaps."""
    directories = draw(st.integers(0, 4))
    made = [member(b"d%d/" % number, DIRECTORY, mtime=number) for number in range(directories)]
    sizes = st.sampled_from([0, 1, 100, 511, 512, 513, 1000, 1001, 2048, 7000])
    files = draw(st.lists(st.tuples(st.sampled_from("rrrrrshcf"), sizes), max_size=12))
    regular: list[bytes] = []
    for number, (kind, size) in enumerate(files):
        name = b"d%d/" % draw(st.integers(0, 5)) + b"f%d" % number
        contents = bytes((number + at) % 251 for at in range(size))
        if kind == "h" and regular:
            target = draw(st.sampled_from(regular))
            made.append(member(name, EntryKind.HARD_LINK, target=target, mode=draw(MODES)))
        elif kind == "s":
            made.append(member(name, EntryKind.SYMLINK, target=b"t" * (size % 3000 + 1)))
        elif kind == "c":
            made.append(member(name, EntryKind.CHARACTER, device=(1, number)))
        elif kind == "f":
            made.append(member(name, EntryKind.FIFO))
        else:
            seconds = draw(st.sampled_from(["0.4", "0.9", "5.5", "1700000000.999999999", "7"]))
            records = {"mtime": seconds}
            made.append(member(name, contents=contents, mode=draw(MODES), records=records))
            regular.append(name)
    if draw(st.booleans()):
        made.insert(draw(st.integers(0, len(made))), landmark(LANDMARK))
    return made


MODES = st.sampled_from([0, 0o644, 0o4755, 0o7777])
