"""Who may call: loopback peers, the control socket, and elsewhere whoever has the token."""

import asyncio
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
from starlette.requests import Request

from proxy.control.access import Access
from proxy.control.problem import FILL_STATUS, Problem
from proxy.serve.services import VIA_CONTROL_SOCKET
from tests.control.calls import JSON_BODY, Caller, assert_problem
from tests.control.conftest import TOKEN
from tests.control.node import Node

JOB = {"image": "registry.example/nothing:1"}


@pytest.fixture
def elsewhere(node: Node) -> Caller:
    """A caller whose address is none of loopback's: this machine's own, of another interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.254", 9))  # sends nothing: it only chooses an address
        except OSError:
            pytest.skip("this machine has no address but loopback's")
        address: str = probe.getsockname()[0]
    if address.startswith("127."):
        pytest.skip("this machine has no address but loopback's")
    return Caller((address, node.mirror.port))


def bearer(token: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **JSON_BODY, **more}


def test_health_is_open_to_all(elsewhere: Caller) -> None:
    assert elsewhere.call("/healthz").status == 200
    assert elsewhere.call("/readyz").status == 200


@pytest.mark.parametrize("path", ["/pulls", "/cache", "/warm", "/metrics", "/warm/x/events", "/no"])
def test_everything_else_needs_the_token_from_elsewhere(elsewhere: Caller, path: str) -> None:
    refused = elsewhere.call(path)
    assert_problem(refused, 401, detail="control.token_file")
    assert refused.fields["www-authenticate"].startswith("Bearer")
    assert_problem(elsewhere.call(path, fields=bearer("wrong")), 401)
    assert_problem(elsewhere.call(path, fields=bearer("")), 401)
    assert_problem(elsewhere.call(path, fields={"Authorization": f"Basic {TOKEN}"}), 401)


def test_the_token_opens_everything(elsewhere: Caller) -> None:
    assert elsewhere.call("/pulls", fields=bearer(TOKEN)).status == 200
    assert elsewhere.call("/metrics", fields=bearer(TOKEN)).status == 200
    assert elsewhere.call("/warm", "POST", JOB, bearer(TOKEN)).status == 202


def test_the_registry_needs_no_token(elsewhere: Caller) -> None:
    assert elsewhere.call("/v2/").status == 200


def test_a_peer_that_speaks_for_another_is_no_loopback_peer(node: Node) -> None:
    for field in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"):
        assert_problem(node.caller.call("/pulls", fields={field: "203.0.113.9"}), 401)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "["])
def test_another_name_for_this_machine_is_refused(node: Node, host: str) -> None:
    assert_problem(node.caller.call("/pulls", fields={"Host": host}), 403, field="Host")


@pytest.mark.parametrize("host", ["localhost", "localhost:5050", "[::1]:5050", "127.0.0.7"])
def test_names_of_this_machine_are_not(node: Node, host: str) -> None:
    assert node.caller.call("/pulls", fields={"Host": host}).status == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1", "http://localhost:1/x", ""]
)
def test_a_foreign_origin_changes_nothing(node: Node, origin: str) -> None:
    fields = {"Origin": origin, **JSON_BODY}
    assert_problem(node.caller.call("/warm", "POST", JOB, fields), 403, field="Origin")
    assert_problem(node.caller.call("/warm/x", "DELETE", fields=fields), 403, field="Origin")


def test_the_mirrors_own_pages_may_change_something(node: Node) -> None:
    fields = {"Origin": f"http://127.0.0.1:{node.mirror.port}", **JSON_BODY}
    assert node.caller.call("/warm", "POST", JOB, fields).status == 202


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_what_a_form_can_send_changes_nothing(node: Node, kind: str | None) -> None:
    fields = {} if kind is None else {"Content-Type": kind}
    for path, method in (("/warm", "POST"), ("/warm/x", "DELETE"), ("/cache/x/pin", "PUT")):
        answer = node.caller.call(path, method, b"{}", fields)
        assert_problem(answer, 415, field="Content-Type")


def test_the_control_socket_is_for_whoever_may_open_it(node: Node) -> None:
    over_socket = Caller(node.socket)
    assert over_socket.call("/pulls", fields={"Host": "anything.example"}).status == 200
    assert over_socket.call("/warm", "POST", JOB).status == 202
    # A page cannot reach it, but a proxy before it could.
    foreign = {"Origin": "http://evil.example", **JSON_BODY}
    assert_problem(over_socket.call("/warm", "POST", JOB, foreign), 403, field="Origin")


# --- the rules by themselves ---


def refusal(
    access: Access,
    peer: str | None,
    fields: Mapping[str, str] | None = None,
    *,
    via_socket: bool = False,
) -> int | None:
    """Status of the refusal of GET /pulls; None when it is let in."""
    headers = {"host": "127.0.0.1", **(fields or {})}
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/pulls",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None if peer is None else (peer, 40000),
        VIA_CONTROL_SOCKET: via_socket,
    }
    try:
        asyncio.run(access.check(Request(scope)))
    except Problem as problem:
        return int(problem.status)
    return None


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_loopback_peers(peer: str) -> None:
    assert refusal(Access(None), peer) is None


@pytest.mark.parametrize("peer", ["192.0.2.1", "::ffff:192.0.2.1", "fe80::1", "", "name", None])
def test_others_are_refused_where_there_is_no_token(peer: str | None) -> None:
    assert refusal(Access(None), peer) == 403
    assert refusal(Access(None), peer, via_socket=True) is None


def test_the_token_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "token"
    access = Access(file)

    def status(token: str) -> int | None:
        return refusal(access, "192.0.2.1", {"authorization": f"bearer {token}"})

    assert status("first") == 401
    file.write_text("first\n")
    assert status("first") is None
    assert status("first\u00fc") == 401
    fresh = tmp_path / "fresh"
    fresh.write_text("other\n")
    os.replace(fresh, file)
    assert status("first") == 401
    assert status("other") is None
    file.write_text("\n")
    assert status("") == 401
    file.unlink()
    assert status("other") == 401


def test_every_code_of_the_filler_has_a_status() -> None:
    codes = "deadline, denied, missing, digest, space, protocol, upstream, refused"
    assert set(FILL_STATUS) == set(codes.split(", "))
