"""Whose credentials go where, and who is challenged for some."""

import logging
from collections.abc import Iterator

import pytest

from headstart.store.errors import FillFailed
from tests.doubles.scripted_upstream import BasicAccess, ScriptedUpstream, basic_authorization
from tests.serve.running_server import Client
from tests.serve.scripted_filler import ScriptedFiller
from tests.serve.serving import MANIFEST, Serving, error_of, get, keys_of, whole_blob

HEX = "sha256:" + "a" * 64


RIGHT = basic_authorization("user", "secret")


@pytest.mark.parametrize("tail", ["manifests/latest", f"manifests/{HEX}", "tags/list"])
def test_f17_private_upstream_sends_no_challenge_by_default(
    client: Client, upstream: ScriptedUpstream, tail: str
) -> None:
    upstream.access = BasicAccess("user", "secret")
    client.ask(f"/v2/team/app/{tail}", "GET", f"Authorization: {RIGHT}")
    response = client.response()
    assert (response.status, error_of(response)["code"]) == (404, "DENIED")
    assert "www-authenticate" not in response.fields
    assert {request.authorization for request in upstream.requests} == {None}


def test_blob_opens_carry_no_credentials_by_default(client: Client, filler: ScriptedFiller) -> None:
    client.ask(f"/v2/team/app/blobs/{HEX}", "GET", f"Authorization: {RIGHT}")
    client.response()
    assert "authorization" not in filler.messages("open")[0]


@pytest.fixture
def passing(filler: ScriptedFiller, upstream: ScriptedUpstream) -> Iterator[Client]:
    """A server that passes its clients' credentials on, and a connection."""
    upstream.access = BasicAccess("user", "secret")
    keys = keys_of(upstream, access="passthrough")
    with Serving(filler, {upstream.host: keys}) as server, server.client() as client:
        yield client


@pytest.mark.parametrize("tail", ["manifests/latest", "tags/list"])
def test_passthrough_challenges_whoever_sends_no_credentials(
    passing: Client, upstream: ScriptedUpstream, tail: str
) -> None:
    upstream.add_manifest("team/app", MANIFEST, tags=["latest"])
    response = passing.get(f"/v2/team/app/{tail}")
    assert (response.status, error_of(response)["code"]) == (401, "UNAUTHORIZED")
    assert response.fields["www-authenticate"] == f'Basic realm="{upstream.host}"'
    passing.ask(f"/v2/team/app/{tail}", "GET", f"Authorization: {RIGHT}")
    assert passing.response().status == 200
    passing.ask(f"/v2/team/app/{tail}", "GET", "Authorization: Basic d3Jvbmc6d3Jvbmc=")
    refused = passing.response()
    assert (refused.status, error_of(refused)["code"]) == (404, "DENIED")
    assert "www-authenticate" not in refused.fields


def test_passthrough_opens_blobs_for_each_client_by_itself(
    passing: Client, filler: ScriptedFiller
) -> None:
    digest = whole_blob(filler)
    for authorization in (RIGHT, RIGHT, "Basic b3RoZXI="):
        passing.ask(
            f"/v2/team/app/blobs/{digest}",
            "GET",
            "Range: bytes=0-0",
            f"Authorization: {authorization}",
        )
        assert passing.response().status == 206
    given = [message["authorization"] for message in filler.messages("open")]
    assert given == [RIGHT, "Basic b3RoZXI="]
    filler.refuse(digest, FillFailed("denied", "the upstream refuses it"))
    response = get(passing, digest)
    assert (response.status, error_of(response)["code"]) == (401, "UNAUTHORIZED")


def test_credentials_are_never_logged(
    passing: Client,
    upstream: ScriptedUpstream,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    passing.ask("/v2/team/app/manifests/absent", "GET", f"Authorization: {RIGHT}")
    assert passing.response().status == 404
    assert RIGHT.split()[1] not in caplog.text
