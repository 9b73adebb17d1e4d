"""Faults 20 to 22: upstreams that cannot be reached, that hang, or that lead elsewhere."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.doubles.black_hole import black_hole, refused_port
from tests.doubles.certificates import Authority
from tests.doubles.scripted_upstream import RecordedRequest, Rule, ScriptedUpstream, TokenService
from tests.faults.setting import (
    FIRST_BYTE_SECONDS,
    MIB,
    REPOSITORY,
    Setting,
    make_manifest,
    new_content,
    of_blobs,
    pulls,
    right_or_error,
    running_setting,
    scripted,
)
from tests.faults.watching import eventually
from tests.parts.mirror import upstream_at

SIZE = 3 * MIB + 12_345
PATIENCE = 60.0
NO_DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A mirror of upstreams that cannot be reached, by the reason, and of one over TLS."""

    setting: Setting
    hosts: dict[str, str]
    secure: ScriptedUpstream


@pytest.fixture(scope="module")
def unreachable(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[Unreachable]:
    with ExitStack() as stack:
        hole = stack.enter_context(black_hole())
        expired, foreign, secure = (
            stack.enter_context(ScriptedUpstream(certificate=certificate))
            for certificate in (
                authority.issue(expired=True),
                authority.issue("elsewhere.test"),
                authority.issue(),
            )
        )
        no_tls = stack.enter_context(ScriptedUpstream())
        hosts = {
            "its name does not resolve": "registry.invalid",
            "refused": f"127.0.0.1:{refused_port()}",
            "packets dropped": f"127.0.0.1:{hole}",
            "certificate expired": expired.host,
            "certificate of another name": foreign.host,
            "no TLS": no_tls.host,
        }
        tls = {"ca_file": str(authority.ca_file)}
        more = {
            hosts["its name does not resolve"]: upstream_at("http://registry.invalid"),
            hosts["refused"]: upstream_at(f"http://{hosts['refused']}"),
            hosts["packets dropped"]: upstream_at(f"http://{hosts['packets dropped']}"),
            hosts["no TLS"]: upstream_at(f"https://{no_tls.host}", **tls),
            **{one.host: upstream_at(one.url, **tls) for one in (expired, foreign, secure)},
        }
        directory = tmp_path_factory.mktemp("unreachable")
        with running_setting(directory, more=more) as setting:
            yield Unreachable(setting, hosts, secure)


# --- 20: not to be reached ---


def test_f20_upstream_that_cannot_be_reached_is_an_error_in_time(unreachable: Unreachable) -> None:
    setting = unreachable.setting

    def ask(host: str) -> list[tuple[int, bool]]:
        # A digest for each: upstreams that are asked for the same one stand in for each other.
        digest = f"sha256:{hashlib.sha256(host.encode()).hexdigest()}"
        replies = [
            setting.blob(host, digest, patience=PATIENCE),
            setting.blob(host, digest, method="HEAD", patience=PATIENCE),
            setting.manifest(host, "1"),
        ]
        return [(reply.status, reply.seconds < 20) for reply in replies]

    with ThreadPoolExecutor(len(unreachable.hosts)) as clients:
        asked = {why: clients.submit(ask, host) for why, host in unreachable.hosts.items()}
        outcomes = {why: one.result() for why, one in asked.items()}
    assert outcomes == {why: [(503, True)] * 3 for why in unreachable.hosts}
    hole = unreachable.hosts["packets dropped"]
    reply = setting.blob(hole, NO_DIGEST, patience=PATIENCE)
    assert b"fetch.deadlines.connect" in reply.body, reply.body


def test_f20_good_certificate_is_believed(unreachable: Unreachable) -> None:
    content = new_content(SIZE)
    digest = unreachable.secure.add_blob(REPOSITORY, content)
    pulls(unreachable.setting, unreachable.secure.host, digest, content)


def test_f20_silent_upstream_meets_the_first_byte_deadline(setting: Setting) -> None:
    upstream, digest = scripted(setting, new_content(SIZE), Rule(delay=float("inf")))
    reply = setting.blob(upstream.host, digest, patience=PATIENCE)
    assert reply.status == 503, reply
    assert FIRST_BYTE_SECONDS <= reply.seconds < 15
    assert b"fetch.deadlines.first_byte" in reply.body


def test_f20_digests_in_the_cache_are_served_while_the_upstream_is_gone(tmp_path: Path) -> None:
    content, body = new_content(SIZE), make_manifest()
    with running_setting(tmp_path, fresh=1) as setting:
        upstream, digest = scripted(setting, content)
        manifest = upstream.add_manifest(REPOSITORY, body)
        pulls(setting, upstream.host, digest, content)
        assert setting.manifest(upstream.host, manifest).body == body
        upstream.stop()
        for restarted in (False, True):
            if restarted:
                # What it remembers of its upstreams has to be on disk.
                setting.mirror.stop()
                setting.mirror.start()
            pulls(setting, upstream.host, digest, content)
            assert setting.manifest(upstream.host, manifest).body == body
            assert setting.blob(upstream.host, digest, "5-9").body == content[5:10]
            assert setting.blob(upstream.host, NO_DIGEST, patience=PATIENCE).status == 503


def test_f20_upstream_that_is_given_up_does_not_take_the_clients_of_another_along(
    setting: Setting,
) -> None:
    content = new_content(SIZE)
    silent, digest = scripted(setting, content, of_blobs(delay=float("inf")))
    good, _ = scripted(setting, content)
    with ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(setting.blob, silent.host, digest)
        eventually(lambda: silent.requests, PATIENCE, "the silent upstream is asked")
        pulls(setting, good.host, digest, content)
        # It may have it as soon as its own upstream owns to the blob; this one's HEAD does.
        assert right_or_error(waiting.result(), content)


# --- 21: slow ---


def test_f21_drops_of_a_body_are_cut_and_the_rest_is_asked_for_elsewhere(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content, of_blobs(times=1, rate=1))
    pulls(setting, upstream.host, digest, content)
    first, *others = upstream.blob_requests()
    assert first.client_left
    resumed = [request for request in others if request.range and request.range[1] == MIB - 1]
    assert [request.range for request in resumed] == [(first.bytes_sent, MIB - 1)]


def test_f21_stall_in_mid_range_goes_on_at_the_last_byte(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content, of_blobs(times=1, stall_after=300_001))
    pulls(setting, upstream.host, digest, content)
    starts = {request.range[0] for request in upstream.blob_requests() if request.range}
    assert 300_001 in starts
    assert upstream.blob_bytes_sent() == SIZE


def test_f21_upstream_that_is_slow_for_ever_is_an_error(setting: Setting) -> None:
    slow = [
        scripted(setting, new_content(SIZE), Rule(path="/blobs/|/manifests/", head_rate=4)),
        scripted(setting, new_content(SIZE), of_blobs(rate=1)),
        scripted(setting, new_content(SIZE), of_blobs(stall_after=0)),
    ]
    with ThreadPoolExecutor(len(slow) + 1) as clients:
        asked = [
            clients.submit(setting.blob, upstream.host, digest, patience=PATIENCE)
            for upstream, digest in slow
        ]
        manifest = clients.submit(setting.manifest, slow[0][0].host, "1")
        replies = [one.result() for one in asked]
        assert manifest.result().status == 503
    assert replies[0].status == 503
    assert b"fetch.deadlines.first_byte" in replies[0].body
    for reply in replies[1:]:
        assert not reply.complete
        assert reply.seconds < 50


# --- 22: led elsewhere ---


def in_circles(upstream: ScriptedUpstream, other: ScriptedUpstream) -> Rule:
    return Rule(status=307, location=lambda asked: upstream.url + asked.path)


def from_host_to_host(upstream: ScriptedUpstream, other: ScriptedUpstream) -> Rule:
    def location(asked: RecordedRequest) -> str:
        return f"{other.url}{asked.path}?{len(asked.query) * 'n'}n"

    rule = Rule(status=302, location=location)
    other.add_rule(Rule(status=302, location=lambda asked: f"{upstream.url}{asked.path}"))
    return rule


def nowhere(upstream: ScriptedUpstream, other: ScriptedUpstream) -> Rule:
    return Rule(status=307)


def to_another_scheme(upstream: ScriptedUpstream, other: ScriptedUpstream) -> Rule:
    return Rule(status=307, location=lambda asked: "file:///etc/passwd")


@pytest.mark.parametrize(
    ("lead", "most_requests"),
    [(in_circles, 12), (from_host_to_host, 12), (nowhere, 2), (to_another_scheme, 2)],
)
def test_f22_redirects_without_end_or_goal_are_502(
    setting: Setting,
    lead: Callable[[ScriptedUpstream, ScriptedUpstream], Rule],
    most_requests: int,
) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content)
    body = make_manifest()
    manifest = upstream.add_manifest(REPOSITORY, body)
    other = setting.upstream()
    upstream.add_rule(lead(upstream, other))
    assert setting.blob(upstream.host, digest, patience=PATIENCE).status == 502
    assert setting.manifest(upstream.host, manifest).status == 502
    assert len(upstream.requests) + len(other.requests) <= most_requests
    upstream.clear_rules()
    pulls(setting, upstream.host, digest, content)
    assert setting.manifest(upstream.host, manifest).body == body


def test_f22_https_to_http_is_502(unreachable: Unreachable) -> None:
    content = new_content(SIZE)
    secure = unreachable.secure
    digest = secure.add_blob(REPOSITORY, content)
    manifest = secure.add_manifest(REPOSITORY, make_manifest())
    with ScriptedUpstream() as plain:
        plain.add_blob(REPOSITORY, content)
        secure.add_rule(Rule(status=307, location=lambda asked: plain.url + asked.path))
        assert unreachable.setting.blob(secure.host, digest, patience=PATIENCE).status == 502
        assert unreachable.setting.manifest(secure.host, manifest).status == 502
        assert plain.requests == []
    secure.clear_rules()
    pulls(unreachable.setting, secure.host, digest, content)


def test_f22_authorization_stays_at_its_origin(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content)
    upstream.access = TokenService()
    storage, back = setting.upstream(), setting.upstream()
    upstream.redirect_blobs(storage)
    pulls(setting, upstream.host, digest, content)
    assert {request.authorization for request in storage.requests} == {None}
    assert any(request.authorization for request in upstream.requests)
    # Led back to the origin by another host it is not sent either.
    body = make_manifest()
    manifest = upstream.add_manifest(REPOSITORY, body)
    assert setting.manifest(upstream.host, manifest).body == body
    upstream.forget_requests()
    away = make_manifest()
    moved = upstream.add_manifest(REPOSITORY, away)
    upstream.add_rule(
        Rule(path=moved, times=1, status=307, location=lambda asked: back.url + asked.path)
    )
    back.add_rule(Rule(status=307, location=lambda asked: f"{upstream.url}{asked.path}?back"))
    right_or_error(setting.manifest(upstream.host, moved), away)
    assert {request.authorization for request in back.requests} == {None}
    led_back = [request for request in upstream.requests if request.query == "back"]
    assert led_back and {request.authorization for request in led_back} == {None}
