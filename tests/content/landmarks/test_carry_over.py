"""Where listed files are in an image, and what of a list holds for the next one."""

from hypothesis import given
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.content.landmarks.carry_over import Contents, Fitted, carry_over, identify
from headstart.content.landmarks.prefetch_list import Layer, ListedFile, PrefetchList
from headstart.content.landmarks.range_set import Range

BASE, UPPER, NEXT = (Digest.of(name) for name in (b"base", b"upper", b"next"))
OLD, NEW, SAME = (Digest.of(name) for name in (b"old", b"new", b"same"))
RANGES = (Range(4096, 8),)

LAYERS = st.sampled_from((BASE, UPPER, NEXT))
CONTENTS = st.dictionaries(
    LAYERS,
    st.dictionaries(st.sampled_from((b"a", b"b", b"c")), st.sampled_from((OLD, NEW, None))),
)
FILES = st.builds(
    ListedFile,
    st.sampled_from((b"a", b"b", b"c", b"d")),
    st.none() | st.integers(0, 3) | LAYERS,
    st.sampled_from((OLD, NEW, None)),
)


def listed(*files: ListedFile) -> PrefetchList:
    return PrefetchList(files)


def test_a_file_is_kept_by_path_and_content_with_its_new_layer() -> None:
    old = listed(
        ListedFile(b"moved", BASE, SAME, RANGES, 1.5),
        ListedFile(b"changed", BASE, OLD),
        ListedFile(b"removed", BASE, SAME),
        ListedFile(b"unmoved", UPPER, OLD),
        ListedFile(b"replaced", UPPER, SAME),
        ListedFile(b"numbered", 0, SAME),
        ListedFile(b"no digest", BASE),
    )
    contents: Contents = {
        UPPER: {b"unmoved": OLD, b"replaced": SAME, b"moved": OLD},
        NEXT: {
            b"moved": SAME,
            b"changed": NEW,
            b"replaced": NEW,
            b"numbered": SAME,
            b"no digest": None,
            b"renamed": SAME,
        },
    }
    kept = listed(
        ListedFile(b"moved", NEXT, SAME, RANGES, 1.5),
        ListedFile(b"unmoved", UPPER, OLD),
        ListedFile(b"numbered", NEXT, SAME),
    )
    assert carry_over(old, contents) == Fitted(kept, 4)


def test_a_layer_that_both_images_have_needs_no_digests() -> None:
    old = listed(ListedFile(b"a", BASE), ListedFile(b"b", BASE), ListedFile(b"c", BASE))
    contents = {BASE: {b"a": None, b"b": None}, NEXT: {b"b": None}}
    assert carry_over(old, contents) == Fitted(listed(ListedFile(b"a", BASE)), 2)


@given(st.lists(FILES), CONTENTS)
def test_what_is_kept_is_in_order_and_the_rest_is_counted(
    files: list[ListedFile], contents: dict[Digest, dict[bytes, Digest | None]]
) -> None:
    for fitted in (carry_over(listed(*files), contents), identify(listed(*files), contents)):
        kept = fitted.listed.files
        assert len(kept) + fitted.dropped == len(files)
        remaining = iter(file.path for file in files)
        assert all(file.path in remaining for file in kept)
        for file in kept:
            assert isinstance(file.layer, Digest)
            assert file.path in contents[file.layer]
            assert contents[file.layer][file.path] in (file.digest, None)


@given(st.lists(FILES), CONTENTS)
def test_a_list_holds_for_the_image_that_it_was_identified_in(
    files: list[ListedFile], contents: dict[Digest, dict[bytes, Digest | None]]
) -> None:
    uppermost = [ListedFile(file.path) for file in files]
    identified = identify(listed(*uppermost), contents)
    assert carry_over(identified.listed, contents) == Fitted(identified.listed, 0)
    assert identify(identified.listed, contents) == Fitted(identified.listed, 0)


def test_a_file_is_identified_by_its_layers_number_or_digest_or_else_from_above() -> None:
    contents: Contents = {BASE: {b"a": OLD, b"b": SAME}, UPPER: {b"a": NEW, b"c": None}}

    def found(path: bytes, layer: Layer | None) -> tuple[Layer | None, Digest | None] | None:
        files = identify(listed(ListedFile(path, layer, None, RANGES)), contents).listed.files
        assert all(file.ranges == RANGES for file in files)
        return (files[0].layer, files[0].digest) if files else None

    assert found(b"a", None) == found(b"a", 1) == found(b"a", UPPER) == (UPPER, NEW)
    assert found(b"a", 0) == found(b"a", BASE) == (BASE, OLD)
    assert found(b"b", None) == (BASE, SAME)
    assert found(b"c", None) == (UPPER, None)
    for path, layer in ((b"b", 1), (b"b", UPPER), (b"a", 2), (b"a", NEXT), (b"d", None)):
        assert found(path, layer) is None
