"""Pushes that somebody has to be let in for, and those that a registry refuses."""

import json
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.registry.errors import (
    PushRefused,
    RefusedTarget,
    RegistryError,
    UpstreamMissing,
    UpstreamProtocol,
    UpstreamUnavailable,
)
from headstart.registry.pushing import RegistryPusher
from tests.doubles.scripted_upstream import (
    BasicAccess,
    Rule,
    ScriptedUpstream,
    TokenService,
)
from tests.registry.pushes import (
    CHUNK,
    LARGE,
    LOGIN,
    SMALL,
    Payload,
    arrived,
    push,
    push_blob,
    shared,
)
from tests.registry.upstreams import REPOSITORY, leaks, upstream_of

# --- authorization ---


def test_the_token_is_for_pushes(double: ScriptedUpstream, tmp_path: Path) -> None:
    service = double.access = TokenService(credentials=LOGIN)
    payload = Payload(LARGE)
    push_blob(shared(double, tmp_path), payload)
    assert arrived(double, payload)
    assert [token.scope for token in service.issued] == [f"repository:{REPOSITORY}:pull,push"]


def test_a_token_that_ends_in_mid_push_is_renewed(double: ScriptedUpstream, tmp_path: Path) -> None:
    service = double.access = TokenService(credentials=LOGIN, uses=3)
    payload = Payload(LARGE)
    push_blob(shared(double, tmp_path), payload)
    assert arrived(double, payload)
    assert len(service.issued) == 3
    refused = [request.method for request in double.requests if request.status == 401]
    assert refused == ["POST", "PATCH", "PATCH"]
    # The chunks that were refused are read once more.
    assert payload.opened == [0, 2 * CHUNK, 5 * CHUNK]


def test_a_location_on_another_origin_gets_no_authorization(
    double: ScriptedUpstream, storage: ScriptedUpstream, tmp_path: Path
) -> None:
    double.access = BasicAccess(*LOGIN)
    storage.uploads = double.uploads
    double.uploads.base = storage.url
    payload = Payload(LARGE)
    push_blob(shared(double, tmp_path), payload)
    assert arrived(double, payload)
    assert len(storage.requests) == 8
    assert {request.authorization for request in storage.requests} == {None}


def test_an_upload_that_was_led_away_gets_no_authorization_when_it_is_led_back(
    double: ScriptedUpstream, storage: ScriptedUpstream, tmp_path: Path
) -> None:
    double.access = BasicAccess(*LOGIN)
    double.uploads.base = storage.url
    storage.uploads = double.uploads
    back = {"Location": f"{double.url}/v2/{REPOSITORY}/blobs/uploads/1?state=1"}
    storage.add_rule(Rule(method="PATCH", headers=back))
    # Even where the registry takes it like that, and has been asked before.
    double.add_rule(Rule(method="PATCH", times=2, status=202))
    with pytest.raises(PushRefused, match=r"answers 401 .* leads uploads to another origin"):
        push_blob(shared(double, tmp_path), Payload(LARGE))
    led_back = double.requests_to("", "PATCH")
    assert [(request.status, request.authorization) for request in led_back] == [
        (202, None),
        (202, None),
        (401, None),
    ]


@pytest.mark.parametrize(
    "location", ["ftp://elsewhere/upload", "http://user@elsewhere/", "http://[bad/"]
)
def test_a_location_that_is_not_followed_is_an_error(
    double: ScriptedUpstream, location: str
) -> None:
    double.uploads.base = location
    with pytest.raises(RefusedTarget):
        push_blob(upstream_of(double), Payload(LARGE))
    assert len(double.requests) == 1


def test_wrong_credentials_are_refused_with_the_remedy(
    double: ScriptedUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    double.access = TokenService(credentials=("somebody", "else"))
    with pytest.raises(PushRefused) as refusal:
        push_blob(shared(double, tmp_path), Payload(SMALL))
    assert f"{double.host}/{REPOSITORY}" in str(refusal.value)
    assert f"give upstreams.{double.host} credentials" in str(refusal.value)
    assert leaks([str(refusal.value), *caplog.messages]) == []


# --- refusals ---


@pytest.mark.parametrize(
    ("status", "error", "remedy"),
    [
        (400, PushRefused, "the registry's log"),
        (403, PushRefused, "credentials that may push"),
        (404, UpstreamMissing, "make the repository there first"),
        (405, PushRefused, "not to a mirror"),
        (413, PushRefused, "raise the limit"),
        (500, UpstreamUnavailable, "try again later"),
    ],
)
def test_a_refusal_says_where_what_and_why_and_what_helps(
    double: ScriptedUpstream, status: int, error: type[RegistryError], remedy: str
) -> None:
    body = {"errors": [{"code": "DENIED", "message": "the quota\nof team\x1b[31m is used up" * 40}]}
    double.add_rule(Rule(method="POST", status=status, body=json.dumps(body).encode()))
    with pytest.raises(error) as refusal:
        push_blob(upstream_of(double), Payload(SMALL))
    text = str(refusal.value)
    assert f"to {double.host}/{REPOSITORY}: 127.0.0.1 answers {status} (DENIED: the quota" in text
    assert "of team [31m is used up" in text
    assert remedy in text
    assert text.isprintable()
    assert len(text) < 700


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"<html>", b'{"errors":[1,{}]}', b'{"errors":7}', b"\xff", b"[" * 100_000]
)
def test_a_refusal_without_readable_words_is_told_by_its_status(
    double: ScriptedUpstream, body: bytes
) -> None:
    double.add_rule(Rule(method="POST", status=400, body=body))
    with pytest.raises(PushRefused, match=r"answers 400; "):
        push_blob(upstream_of(double), Payload(SMALL))


def test_other_bytes_than_the_digest_says_are_refused(double: ScriptedUpstream) -> None:
    payload = Payload(SMALL)

    async def work(pusher: RegistryPusher) -> None:
        with pytest.raises(PushRefused, match="DIGEST_INVALID"):
            await pusher.push_blob(REPOSITORY, Digest.of(b"other"), len(SMALL), payload.open_at)

    push(upstream_of(double), work)


def test_a_registry_that_names_another_digest_is_not_believed(double: ScriptedUpstream) -> None:
    double.add_rule(Rule(method="PUT", headers={"Docker-Content-Digest": str(Digest.of(b""))}))
    with pytest.raises(UpstreamProtocol, match="calls it"):
        push_blob(upstream_of(double), Payload(SMALL))


def test_a_registry_that_has_more_than_was_sent_is_not_believed(double: ScriptedUpstream) -> None:
    double.add_rule(Rule(method="PATCH", headers={"Range": f"0-{5 * CHUNK}"}))
    with pytest.raises(UpstreamProtocol, match="bytes of"):
        push_blob(upstream_of(double), Payload(LARGE))
