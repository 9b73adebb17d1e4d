"""Faults 15 to 19: tokens and signatures that expire, refusals, throttling, server errors."""

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest

from tests.doubles.scripted_upstream import Rule, ScriptedUpstream, TokenService
from tests.faults.reading import Reply
from tests.faults.setting import (
    MIB,
    REPOSITORY,
    Setting,
    make_manifest,
    new_content,
    of_blobs,
    pulls,
    right_or_error,
    scripted,
)

SIZE = 3 * MIB + 12_345
PATIENCE = 40.0


# --- 15, 16: what was given ends in mid-pull ---


def test_f15_token_that_ends_in_mid_pull_is_renewed_once_for_all(setting: Setting) -> None:
    content = new_content(12 * MIB)
    upstream, digest = scripted(setting, content)
    upstream.access = service = TokenService()
    upstream.connection_rate = 2 * MIB

    def end_it() -> None:
        deadline = time.monotonic() + PATIENCE
        while upstream.blob_bytes_sent() < 2 * MIB and time.monotonic() < deadline:
            time.sleep(0.01)
        service.revoke()

    ending = threading.Thread(target=end_it)
    ending.start()
    replies = setting.blobs_at_once(4, upstream.host, digest)
    ending.join()
    for reply in replies:
        assert right_or_error(reply, content), reply
    refused = [request for request in upstream.blob_requests() if request.status == 401]
    assert len(refused) >= 2, "the first one, and at least one in mid-pull"
    assert service.made == 2


def test_f15_tokens_for_two_requests_each_still_bring_the_blob(setting: Setting) -> None:
    content = new_content(8 * MIB)
    upstream, digest = scripted(setting, content)
    upstream.access = TokenService(uses=2)
    pulls(setting, upstream.host, digest, content)


@pytest.mark.parametrize("status", [403, 400])
def test_f16_expired_signed_url_is_resolved_again(setting: Setting, status: int) -> None:
    content = new_content(8 * MIB)
    upstream, digest = scripted(setting, content)
    storage = setting.upstream()
    upstream.redirect_blobs(storage, uses=3, expired_status=status)
    pulls(setting, upstream.host, digest, content)
    given = [request for request in upstream.blob_requests() if request.status == 307]
    good = [request for request in storage.blob_requests() if request.status == 206]
    assert 2 <= len(given) < len(good), "one URL is used for several ranges"
    assert sum(request.bytes_sent for request in good) == len(content)


@pytest.mark.parametrize("status", [403, 400])
def test_f16_signed_urls_that_are_never_good_are_given_up(setting: Setting, status: int) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content)
    storage = setting.upstream()
    upstream.redirect_blobs(storage, uses=0, expired_status=status)
    reply = setting.blob(upstream.host, digest, patience=PATIENCE)
    assert reply.status == 503, reply
    assert b"for a signed URL" in reply.body
    assert len(storage.blob_requests()) <= 20
    upstream.redirect_blobs(storage)
    pulls(setting, upstream.host, digest, content)


# --- 17: refusals ---


def refuse_every_token(upstream: ScriptedUpstream) -> None:
    upstream.access = TokenService(uses=0)


def refuse_without_a_challenge(upstream: ScriptedUpstream) -> None:
    upstream.add_rule(Rule(status=401))


def refuse_with_a_strange_challenge(upstream: ScriptedUpstream) -> None:
    upstream.add_rule(Rule(status=401, headers={"WWW-Authenticate": 'Negotiate x="y"'}))


@pytest.mark.parametrize(
    "refuse", [refuse_every_token, refuse_without_a_challenge, refuse_with_a_strange_challenge]
)
def test_f17_loop_of_401_ends_in_an_error_without_a_challenge(
    setting: Setting, refuse: Callable[[ScriptedUpstream], None]
) -> None:
    upstream, digest = scripted(setting, new_content(SIZE))
    manifest = upstream.add_manifest(REPOSITORY, make_manifest(), tags=["1"])
    refuse(upstream)
    replies = [
        setting.blob(upstream.host, digest, patience=PATIENCE),
        setting.blob(upstream.host, digest, method="HEAD", patience=PATIENCE),
        setting.manifest(upstream.host, "1"),
        setting.manifest(upstream.host, manifest),
    ]
    for reply in replies:
        assert reply.status == 404, reply
        assert "www-authenticate" not in reply.fields
    assert len(upstream.requests) <= 40
    if isinstance(upstream.access, TokenService):
        assert upstream.access.made <= 8, "both processes believe in a loop for a while"


# --- 18: throttling ---


def seconds_between_first_two(upstream: ScriptedUpstream) -> float:
    first, second = upstream.blob_requests()[:2]
    return second.started - first.started


def test_f18_retry_after_in_seconds_is_honoured_and_shared(setting: Setting) -> None:
    contents = [new_content(SIZE) for _ in range(4)]
    rule = of_blobs(times=1, status=429, headers={"Retry-After": "2"})
    upstream, _ = scripted(setting, contents[0], rule)
    digests = [upstream.add_blob(REPOSITORY, content) for content in contents]

    def ask(digest: str, delay: float) -> Reply:
        time.sleep(delay)
        return setting.blob(upstream.host, digest, patience=PATIENCE)

    with ThreadPoolExecutor(4) as clients:
        # The first one meets the throttle; the others come while it waits.
        asked = [
            clients.submit(ask, digest, 0.0 if number == 0 else 0.7)
            for number, digest in enumerate(digests)
        ]
        for one, content in zip(asked, contents, strict=True):
            assert right_or_error(one.result(), content)
    requests = upstream.blob_requests()
    assert requests[0].status == 429
    assert min(request.started for request in requests[1:]) >= requests[0].started + 1.9


def test_f18_retry_after_as_a_date_is_measured_by_the_upstreams_own_clock(
    setting: Setting,
) -> None:
    content = new_content(SIZE)
    wrong_clock = time.time() - 86_400
    headers = {
        "Date": formatdate(wrong_clock, usegmt=True),
        "Retry-After": formatdate(wrong_clock + 2, usegmt=True),
    }
    upstream, digest = scripted(setting, content, of_blobs(times=1, status=503, headers=headers))
    pulls(setting, upstream.host, digest, content)
    assert 1.9 <= seconds_between_first_two(upstream) < 15


def test_f18_retry_after_of_years_is_capped_and_answered_at_once(setting: Setting) -> None:
    cached, content = new_content(SIZE), new_content(SIZE)
    upstream, kept = scripted(setting, cached)
    pulls(setting, upstream.host, kept, cached)
    digest = upstream.add_blob(REPOSITORY, content)
    upstream.forget_requests()
    upstream.add_rule(of_blobs(status=429, headers={"Retry-After": "1000000000"}))
    for _ in range(3):
        reply = setting.blob(upstream.host, digest, patience=PATIENCE)
        assert reply.status == 503, reply
        assert reply.seconds < 10
        assert 0 < int(reply.fields["retry-after"]) <= 300
    assert len(upstream.blob_requests()) == 1, "who comes later waits too, or is told at once"
    pulls(setting, upstream.host, kept, cached)


def test_f18_throttled_manifests_wait_or_are_told_at_once(setting: Setting) -> None:
    upstream = setting.upstream()
    body = make_manifest()
    upstream.add_manifest(REPOSITORY, body, tags=["1"])
    upstream.add_rule(Rule(path="/manifests/", times=1, status=429, headers={"Retry-After": "1"}))
    assert setting.manifest(upstream.host, "1").body == body
    upstream.add_manifest(REPOSITORY, make_manifest(), tags=["2"])
    upstream.add_rule(Rule(path="/manifests/2", status=429, headers={"Retry-After": "1000000000"}))
    reply = setting.manifest(upstream.host, "2")
    assert reply.status == 503
    assert 0 < int(reply.fields["retry-after"]) <= 300


# --- 19: server errors ---


def test_f19_burst_of_server_errors_is_sat_out(setting: Setting) -> None:
    content = new_content(SIZE)
    burst = [of_blobs(times=1, status=status) for status in (500, 502, 503, 504)]
    upstream, digest = scripted(setting, content, *burst)
    pulls(setting, upstream.host, digest, content)
    body = make_manifest()
    upstream.add_manifest(REPOSITORY, body, tags=["1"])
    for status in (500, 502, 504):
        upstream.add_rule(Rule(path="/manifests/", times=1, status=status))
    assert setting.manifest(upstream.host, "1").body == body


def test_f19_server_errors_without_end_back_off_and_are_answered_soon(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content, Rule(status=502))
    upstream.add_manifest(REPOSITORY, make_manifest(), tags=["1"])
    reply = setting.blob(upstream.host, digest, patience=PATIENCE)
    assert reply.status in (502, 503)
    assert reply.seconds < 20
    asked = [request.started for request in upstream.blob_requests()]
    assert 3 <= len(asked) <= 6
    gaps = [after - before for before, after in itertools.pairwise(asked)]
    assert gaps[-1] > 2 * gaps[0], "each wait is longer than the one before"
    reply = setting.manifest(upstream.host, "1")
    assert reply.status in (502, 503)
    assert reply.seconds < 20
    upstream.clear_rules()
    pulls(setting, upstream.host, digest, content)
