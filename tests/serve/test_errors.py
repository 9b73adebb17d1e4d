"""The table from errors to HTTP: complete, and silent about what is none of a client's business."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import headstart.registry.client
import headstart.store.extent_map
import proxy.serve.registry
from headstart.content.errors import InvalidInput
from headstart.registry.errors import (
    CredentialsUnusable,
    RegistryError,
    UpstreamDeadline,
    UpstreamThrottled,
)
from headstart.store.errors import FillerUnreachable, FillFailed, StoreError, StoreLocked
from proxy.serve.errors import (
    BY_FIELD,
    BY_FILL_CODE,
    UNEXPECTED,
    UNKNOWN,
    CredentialsWanted,
    MethodRefused,
    RangeUnsatisfiable,
    RequestRefused,
    kind_of,
    problem,
)

ROOT = Path(__file__).parents[2]
LISTED = {  # OCI distribution specification, error codes; UNAVAILABLE and UNKNOWN as registries do
    "BLOB_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
    "UNAVAILABLE",
    "UNKNOWN",
}
SOME = {
    UpstreamThrottled: UpstreamThrottled("a pause", 2.0),
    UpstreamDeadline: UpstreamDeadline("stall", 20.0, "nothing came"),
    RangeUnsatisfiable: RangeUnsatisfiable(10),
    CredentialsWanted: CredentialsWanted("ghcr.io", "credentials are wanted"),
}


def family(ancestor: type[Exception]) -> Iterator[type[Exception]]:
    yield ancestor
    for child in ancestor.__subclasses__():
        yield from family(child)


def made(kind: type[Exception]) -> Exception:
    return SOME.get(kind) or kind("the reason")


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for ancestor in (RegistryError, StoreError, FillerUnreachable, RequestRefused)
        for kind in family(ancestor)
        if kind is not RequestRefused
    ]
    + [CredentialsWanted, OSError, MemoryError],
    ids=lambda kind: kind.__name__,
)
def test_every_error_has_a_status_and_a_listed_code(kind: type[Exception]) -> None:
    answer = problem(made(kind), "BLOB_UNKNOWN")
    assert kind_of(made(kind)) is not UNEXPECTED
    assert answer.status in (400, 401, 404, 405, 416, 502, 503)
    assert answer.code in LISTED


def test_every_code_of_the_filler_is_in_the_table() -> None:
    text = FillFailed.__doc__ or ""
    listed = re.search(r"is one of ``([^`]*)``", text)
    assert listed is not None
    assert set(listed[1].replace("\n", " ").replace(" ", "").split(",")) == set(BY_FILL_CODE)
    for code in BY_FILL_CODE:
        assert problem(FillFailed(code, "the reason"), "BLOB_UNKNOWN").code in LISTED


def fields_in_sources() -> set[str]:
    """The first argument of every InvalidInput that a request can bring up."""
    found = set()
    for path in [*ROOT.glob("headstart/content/*.py"), *ROOT.glob("proxy/serve/*.py")]:
        if path.name == "sizes.py":  # of the configuration
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "InvalidInput"
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value))
    return found


def test_every_malformed_input_of_a_request_is_in_the_table() -> None:
    of_no_request = {"image", "image configuration", "platform"}
    assert fields_in_sources() - of_no_request == set(BY_FIELD)
    for field in BY_FIELD:
        answer = problem(InvalidInput(field, "the value", "the remedy"), "BLOB_UNKNOWN")
        assert answer.code in LISTED
        assert answer.detail == {"field": field, "value": "the value", "remedy": "the remedy"}


@pytest.mark.parametrize("unknown", ["BLOB_UNKNOWN", "MANIFEST_UNKNOWN", "NAME_UNKNOWN"])
def test_what_is_missing_has_the_code_of_what_was_asked_for(unknown: str) -> None:
    assert problem(FillFailed("missing", "no"), unknown).code == unknown


def test_unexpected_errors_tell_a_client_nothing() -> None:
    answer = problem(RuntimeError("secret"), "BLOB_UNKNOWN")
    assert (answer.status, answer.code) == (500, "UNKNOWN")
    assert "secret" not in answer.message
    assert problem(FillFailed("a new code", "secret"), "BLOB_UNKNOWN").status == 500


@pytest.mark.parametrize(
    "error", [OSError(28, "No space", "/secret"), StoreLocked("/secret is in use"), MemoryError()]
)
def test_errors_of_this_machine_name_no_paths(error: Exception) -> None:
    answer = problem(error, "BLOB_UNKNOWN")
    assert answer.status == 503
    assert "secret" not in answer.message


def test_only_credentials_wanted_sends_a_challenge() -> None:
    challenge = dict(problem(SOME[CredentialsWanted], UNKNOWN).fields)
    assert challenge == {b"www-authenticate": b'Basic realm="ghcr.io"'}
    assert problem(CredentialsUnusable("no file"), "BLOB_UNKNOWN").status == 404


def test_header_fields_that_go_with_an_error() -> None:
    assert dict(problem(MethodRefused("PUT"), UNKNOWN).fields) == {b"allow": b"GET, HEAD"}
    size = dict(problem(RangeUnsatisfiable(10), UNKNOWN).fields)
    assert size == {b"content-range": b"bytes */10"}
    throttled = problem(UpstreamThrottled("a pause", 0.2), UNKNOWN)
    assert throttled.status == 503
    assert dict(throttled.fields) == {b"retry-after": b"1"}
    filling = problem(FillFailed("upstream", "a pause", retry_after=30.4), UNKNOWN)
    assert dict(filling.fields) == {b"retry-after": b"30"}


def test_deadlines_name_their_key() -> None:
    answer = problem(UpstreamDeadline("first_byte", 15.0, "nothing came"), UNKNOWN)
    assert answer.detail == {"key": "fetch.deadlines.first_byte", "value": "15"}


def test_the_modules_that_define_errors_are_loaded() -> None:
    """Subclasses are found among what is imported."""
    assert headstart.registry.client and headstart.store.extent_map and proxy.serve.registry
