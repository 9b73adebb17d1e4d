"""Faults 23 to 26: tags that move or vanish, upstreams that are down, clocks that are wrong."""

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.doubles.scripted_upstream import OCI_MANIFEST, Rule, ScriptedUpstream, TokenService
from tests.faults.setting import (
    MIB,
    REPOSITORY,
    Setting,
    make_manifest,
    new_content,
    of_blobs,
    pulls,
    running_setting,
)

SIZE = 2 * MIB + 12_345
DAY = 86_400
CLOCK = Path(__file__).parent / "clock"
"""A directory for PYTHONPATH, which shifts the clock of every Python that starts with it."""


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


# --- 23: the tag moves ---


def test_f23_tag_that_moves_during_a_pull_leaves_the_image_whole(setting: Setting) -> None:
    upstream = setting.upstream()
    layers = [new_content(SIZE) for _ in range(2)]
    old, new = (make_manifest(layer) for layer in layers)
    for layer in layers:
        upstream.add_blob(REPOSITORY, layer)
    upstream.add_manifest(REPOSITORY, old, tags=["1"])
    head = setting.manifest(upstream.host, "1", method="HEAD")
    assert head.fields["docker-content-digest"] == digest_of(old)
    upstream.add_manifest(REPOSITORY, new, tags=["1"])
    assert setting.manifest(upstream.host, digest_of(old)).body == old
    pulls(setting, upstream.host, digest_of(layers[0]), layers[0])
    assert setting.manifest(upstream.host, "1").body == new, "the next pull sees the move"
    pulls(setting, upstream.host, digest_of(layers[1]), layers[1])


def test_f23_no_answer_mixes_two_meanings_of_a_tag(setting: Setting) -> None:
    upstream = setting.upstream()
    meanings = [make_manifest() for _ in range(2)]
    for body in meanings:
        upstream.add_manifest(REPOSITORY, body, tags=["1"])
    with ThreadPoolExecutor(4) as clients:
        asked = []
        for number in range(60):
            upstream.add_manifest(REPOSITORY, meanings[number % 2], tags=["1"])
            asked.append(clients.submit(setting.manifest, upstream.host, "1"))
            time.sleep(0.005)
        for one in asked:
            reply = one.result()
            assert reply.status == 200
            assert reply.fields["docker-content-digest"] == digest_of(reply.body)


def test_f23_manifest_with_the_digest_of_another_is_refused(setting: Setting) -> None:
    upstream = setting.upstream()
    body, other = make_manifest(), make_manifest()
    digest = upstream.add_manifest(REPOSITORY, body, tags=["1"])
    upstream.add_rule(
        Rule(
            method="GET",
            path="/manifests/",
            status=200,
            body=other,
            headers={"Content-Type": OCI_MANIFEST},
        )
    )
    for reference in (digest, "1"):
        assert setting.manifest(upstream.host, reference).status == 502
    upstream.clear_rules()
    for reference in (digest, "1"):
        assert setting.manifest(upstream.host, reference).body == body


# --- 24, 25: the upstream is down, or says no ---


def test_f24_cached_tag_is_served_stale_with_a_warning_while_the_upstream_is_down(
    setting: Setting,
) -> None:
    upstream = setting.upstream()
    content = new_content(SIZE)
    body = make_manifest(content)
    layer = upstream.add_blob(REPOSITORY, content)
    digest = upstream.add_manifest(REPOSITORY, body, tags=["1"])
    fresh = setting.manifest(upstream.host, "1")
    assert fresh.body == body
    assert "warning" not in fresh.fields
    pulls(setting, upstream.host, layer, content)
    for make_down in (lambda: upstream.add_rule(Rule(status=503)), upstream.stop):
        make_down()
        for method, expected in (("GET", body), ("HEAD", b"")):
            stale = setting.manifest(upstream.host, "1", method=method)
            assert stale.status == 200, stale
            assert stale.body == expected
            assert stale.fields["warning"].startswith("299 - ")
            assert stale.fields["docker-content-digest"] == digest
        assert setting.manifest(upstream.host, digest).body == body
        pulls(setting, upstream.host, layer, content)
        assert setting.manifest(upstream.host, "2").status == 503


def test_f24_beyond_the_window_a_tag_is_an_error_and_a_digest_is_not(tmp_path: Path) -> None:
    with ScriptedUpstream() as upstream:
        body = make_manifest()
        digest = upstream.add_manifest(REPOSITORY, body, tags=["1"])
        hosts = {upstream.host: {"url": upstream.url, "allow_private": True}}
        settings = {"mirror": {"stale_window": "3s"}}
        with running_setting(tmp_path, more=hosts, settings=settings) as setting:
            assert setting.manifest(upstream.host, "1").body == body
            asked = time.monotonic()
            upstream.stop()
            stale = setting.manifest(upstream.host, "1")
            # A slow machine may be past the window already.
            assert stale.status == 200 or time.monotonic() - asked > 3
            time.sleep(max(0.0, asked + 3.5 - time.monotonic()))
            assert setting.manifest(upstream.host, "1").status == 503
            assert setting.manifest(upstream.host, digest).body == body


def remove(upstream: ScriptedUpstream) -> None:
    upstream.remove_tag(REPOSITORY, "1")


def deny(upstream: ScriptedUpstream) -> None:
    upstream.add_rule(Rule(status=403))


def want_credentials(upstream: ScriptedUpstream) -> None:
    upstream.access = TokenService(credentials=("alice", "wonderland"))


@pytest.mark.parametrize("take_away", [remove, deny, want_credentials])
def test_f25_tag_that_the_upstream_takes_away_is_not_served_stale(
    setting: Setting, take_away: Callable[[ScriptedUpstream], None]
) -> None:
    upstream = setting.upstream()
    body = make_manifest()
    upstream.add_manifest(REPOSITORY, body, tags=["1"])
    assert setting.manifest(upstream.host, "1").body == body
    take_away(upstream)
    assert setting.manifest(upstream.host, "1").status == 404
    upstream.stop()
    assert setting.manifest(upstream.host, "1").status in (404, 503), "nor when it is down later"


def test_f25_blob_that_the_upstream_takes_away_is_missing_until_it_is_back(
    setting: Setting,
) -> None:
    upstream = setting.upstream()
    content = new_content(SIZE)
    digest = upstream.add_blob(REPOSITORY, content)
    assert setting.blob(upstream.host, digest, "0-9").body == content[:10]
    upstream.remove_blob(REPOSITORY, digest)
    for _ in range(3):
        reply = setting.blob(upstream.host, digest, "2000000-2000009", patience=20)
        assert reply.status == 404
    assert setting.blob(upstream.host, digest, "0-9").body == content[:10], "what is here is here"
    upstream.add_blob(REPOSITORY, content)
    pulls(setting, upstream.host, digest, content)


# --- 26: the clock ---


@pytest.mark.parametrize("shift", [DAY, -DAY])
def test_f26_clock_that_is_off_by_a_day_changes_no_wait_and_no_answer(
    tmp_path: Path, shift: int
) -> None:
    content = new_content(SIZE)
    with ScriptedUpstream() as upstream:
        upstream.access = TokenService(lifetime=300)
        digest = upstream.add_blob(REPOSITORY, content)
        body = make_manifest(content)
        upstream.add_manifest(REPOSITORY, body, tags=["1"])
        now = time.time()
        headers = {
            "Date": formatdate(now, usegmt=True),
            "Retry-After": formatdate(now + 2, usegmt=True),
        }
        upstream.add_rule(of_blobs(times=1, status=429, headers=headers))
        # The next one meets a challenge; the stall is for the one after it.
        upstream.add_rule(of_blobs(skip=1, times=1, stall_after=300_001))
        with running_setting(tmp_path, more=_hosts(upstream), environment=_clock(shift)) as setting:
            assert setting.manifest(upstream.host, "1").body == body
            began = time.monotonic()
            pulls(setting, upstream.host, digest, content)
            waited = time.monotonic() - began
            assert 3.5 < waited < 25, "the pause and the deadline, neither longer nor shorter"
            assert setting.manifest(upstream.host, "1").body == body
            assert upstream.access.made == 2, "each process has one, good for as long as it said"


def test_f26_what_was_checked_in_the_future_is_not_believed(tmp_path: Path) -> None:
    """A tag is kept for an hour; the clock was a day ahead when it was looked up."""
    with ScriptedUpstream() as upstream:
        old, new = make_manifest(), make_manifest()
        upstream.add_manifest(REPOSITORY, old, tags=["1"])
        settings = {"mirror": {"tag_ttl": "1h"}}
        environment = _clock(DAY)
        with running_setting(
            tmp_path, more=_hosts(upstream), settings=settings, environment=environment
        ) as setting:
            assert setting.manifest(upstream.host, "1").body == old
            upstream.add_manifest(REPOSITORY, new, tags=["1"])
            assert setting.manifest(upstream.host, "1").body == old, "within its hour"
            setting.mirror.stop()
            environment["HEADSTART_TEST_CLOCK"] = "0"
            setting.mirror.start()
            assert setting.manifest(upstream.host, "1").body == new
            upstream.add_manifest(REPOSITORY, old, tags=["1"])
            setting.mirror.stop()
            environment["HEADSTART_TEST_CLOCK"] = str(2 * 3600)
            setting.mirror.start()
            assert setting.manifest(upstream.host, "1").body == old, "its hour is over"


def _hosts(upstream: ScriptedUpstream) -> dict[str, dict[str, object]]:
    return {upstream.host: {"url": upstream.url, "allow_private": True}}


def _clock(shift: int) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(CLOCK), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "HEADSTART_TEST_CLOCK": str(shift)}
