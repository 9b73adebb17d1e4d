"""Prefetch lists made up for tests."""

from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.landmarks.paths import clean_path
from headstart.content.landmarks.prefetch_list import ListedFile, PrefetchList
from headstart.content.landmarks.range_set import Range


def clean(path: bytes) -> bool:
    """Whether a layer can have a file there, written so."""
    try:
        return clean_path(path, "path") == path
    except InvalidInput:
        return False


DIGESTS = st.binary(max_size=2).map(Digest.of)
PATHS = st.one_of(
    st.sampled_from(
        (b"usr/bin/python3", b"etc/ld.so.cache", '\u00fc<&>\u2028"\\'.encode(), b"\xff")
    ),
    st.binary(min_size=1, max_size=12).filter(clean),
)
RANGES = st.builds(Range, st.integers(0, 1 << 40), st.integers(1, 1 << 40))
FILES = st.builds(
    ListedFile,
    PATHS,
    st.none() | st.integers(0, 100) | DIGESTS,
    st.none() | DIGESTS,
    st.lists(RANGES, max_size=4).map(tuple),
    st.none() | st.floats(0, 86_400),
)
LISTS = st.lists(FILES, max_size=6).map(lambda files: PrefetchList(tuple(files)))


def names(listed: PrefetchList) -> list[str]:
    """The paths of a list."""
    return [file.path.decode() for file in listed.files]
