"""What clients accept, and what the upstream is asked for."""

import pytest

from headstart.content.manifest import ACCEPT, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from proxy.serve.accept import Accepted


@pytest.mark.parametrize(
    ("field", "media_type", "admitted"),
    [
        ("", OCI_INDEX, True),
        ("*/*", "application/x", True),
        ("application/*", OCI_INDEX, True),
        (OCI_MANIFEST, OCI_MANIFEST, True),
        (OCI_MANIFEST.upper(), OCI_MANIFEST, True),
        (f"{OCI_MANIFEST}; q=0.5, {OCI_INDEX}", OCI_MANIFEST, True),
        (f"{OCI_MANIFEST};q=0", OCI_MANIFEST, True),  # nothing is left, so nothing was said
        (f"{OCI_MANIFEST};q=0.0, {OCI_INDEX}", OCI_MANIFEST, False),
        (f"*/*;q=0, {OCI_INDEX}", OCI_MANIFEST, False),
        (OCI_MANIFEST, OCI_INDEX, False),
        (ACCEPT, "application/x", False),
    ],
)
def test_admits(field: str, media_type: str, admitted: bool) -> None:
    assert Accepted.parse(field).admits(media_type) is admitted


def test_usual_clients_ask_the_same_whatever_else_they_accept() -> None:
    usual = [
        Accepted.parse(text)
        for text in ("", "*/*", ACCEPT, f"{ACCEPT}, application/json", f"*/*, {OCI_INDEX}")
    ]
    assert {accepted.field for accepted in usual} == {f"{ACCEPT}, */*"}
    assert {accepted.key for accepted in usual} == {""}


def test_other_clients_are_kept_apart_by_what_they_accept() -> None:
    one = Accepted.parse(f"{OCI_INDEX}, {DOCKER_MANIFEST}")
    same = Accepted.parse(f"{DOCKER_MANIFEST},{OCI_INDEX};q=0.1")
    other = Accepted.parse(DOCKER_MANIFEST)
    assert one.field == same.field == f"{DOCKER_MANIFEST}, {OCI_INDEX}"
    assert one.key == same.key
    assert len({one.key, other.key, ""}) == 3


def test_an_endless_field_is_cut() -> None:
    field = ", ".join(f"application/x{number}" for number in range(10_000))
    assert len(Accepted.parse(field).types) <= 64
