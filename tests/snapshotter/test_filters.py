"""containerd's filter language."""

from collections.abc import Mapping
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mount.snapshotter.errors import InvalidRequest
from mount.snapshotter.filters import parse_filters
from mount.snapshotter.snapshot import Kind, Snapshot

REF = "containerd.io/snapshot.ref"


def snapshot(
    name: str = "k8s.io/7/base",
    parent: str = "k8s.io/3/below",
    kind: Kind = Kind.COMMITTED,
    labels: Mapping[str, str] | None = None,
) -> Snapshot:
    return Snapshot(7, name, parent, kind, 0, 0, labels or {})


def matches(one: Snapshot, *filters: str) -> bool:
    return parse_filters(filters)(one)


def test_the_filter_of_a_pull_finds_the_layer_under_its_parent() -> None:
    asked = f'labels."{REF}"==sha256:abc,parent=="k8s.io/3/below"'
    assert matches(snapshot(labels={REF: "sha256:abc"}), asked)
    assert not matches(snapshot(labels={REF: "sha256:abd"}), asked)
    assert not matches(snapshot(labels={REF: "sha256:abc"}, parent=""), asked)
    assert not matches(snapshot(), asked)


def test_an_empty_parent_is_quoted() -> None:
    assert matches(snapshot(parent=""), 'parent==""')
    assert not matches(snapshot(), 'parent==""')


def test_no_filter_matches_everything() -> None:
    assert matches(snapshot())
    assert matches(snapshot(), "")


def test_one_of_several_filters_suffices() -> None:
    assert matches(snapshot(), "kind==active", "kind==committed")
    assert not matches(snapshot(), "kind==active", "kind==view")


def test_all_selectors_of_a_filter_have_to_match() -> None:
    assert matches(snapshot(), "kind==committed,name==k8s.io/7/base")
    assert not matches(snapshot(), "kind==committed,name==k8s.io/8/base")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("labels.a", True),
        ("labels.b", False),
        ("labels.a,kind", True),
        ("labels.a!=x", False),
        ("labels.a!=y", True),
        ("labels.b!=y", True),
        ("labels.a~=^x$", True),
        ("labels.a~=/^[xy]$/", True),
        ("labels.a~=|^z$|", False),
        ("name~=k8s", True),
        ('labels."with.dot"==1', True),
        ("labels.with.dot==1", True),
        ("labels.other-name_2==v", True),
        ('labels.a=="x" , kind==committed', True),
        ("size==1", False),
        ("size!=1", True),
        (r'labels.quoted=="a\"b\\c\n\x41A\101\U0001F600"', True),
        (r"labels.slash==/a\/b/", True),
        ('labels.bytes=="\\xc3\\xa9"', True),
    ],
)
def test_selectors(asked: str, expected: bool) -> None:
    labels = {
        "a": "x",
        "with.dot": "1",
        "other-name_2": "v",
        "quoted": 'a"b\\c\nAAA\U0001f600',
        "slash": "a/b",
        "bytes": "é",
    }
    assert matches(snapshot(labels=labels), asked) is expected


@pytest.mark.parametrize(
    "asked",
    [
        ",",
        "labels.",
        "labels.a==",
        "labels.a=x",
        "labels.a===x",
        "labels.a x",
        'labels."a==x',
        r'labels.a=="\d"',
        r'labels.a=="\777"',
        r'labels.a=="\U00110000"',
        "labels.a~=/(/",
        "kind==committed,",
        "kind==committed,,name==x",
        "(kind)",
    ],
)
def test_what_is_no_filter_is_refused_with_the_place(asked: str) -> None:
    with pytest.raises(InvalidRequest, match=r"expected .* at [0-9]+"):
        parse_filters([asked])


def go_quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(sign):08x}" for sign in text) + '"'


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(max_size=3))
def test_a_quoted_value_is_any_text(value: str, other: str) -> None:
    found = snapshot(labels={value or "x": value})
    assert matches(found, f"labels.{go_quoted(value or 'x')}=={go_quoted(value)}")
    assert matches(found, f"labels.{go_quoted(value or 'x')}=={go_quoted(other)}") is (
        other == value
    )


@given(st.text())
def test_any_text_is_a_filter_or_is_refused(text: str) -> None:
    with suppress(InvalidRequest):
        assert parse_filters([text])(snapshot()) in (True, False)
