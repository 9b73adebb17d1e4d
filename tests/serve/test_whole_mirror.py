"""``headstart serve`` as users run it: launcher, filler and mirror on a scripted upstream."""

import concurrent.futures
import hashlib
import json
import os
import random
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from headstart.content.manifest import OCI_MANIFEST
from tests.doubles.scripted_upstream import Rule, ScriptedUpstream
from tests.parts.mirror import Mirror, upstream_at
from tests.serve.running_server import MIB, wait_until

PAYLOAD = random.Random(3).randbytes(MIB) * 40
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture
def mirror(tmp_path: Path, upstream: ScriptedUpstream) -> Iterator[Mirror]:
    with Mirror(tmp_path, {upstream.host: upstream_at(upstream.url)}) as running:
        yield running


def fetch(mirror: Mirror, path: str, byte_range: str | None = None) -> tuple[dict[str, str], bytes]:
    """Header fields (names in lower case) and body."""
    fields = {} if byte_range is None else {"Range": byte_range}
    request = urllib.request.Request(f"{mirror.url}/v2/team/app/{path}", headers=fields)
    with _direct.open(request, timeout=60) as answer:
        return {name.lower(): value for name, value in answer.headers.items()}, answer.read()


def test_second_pull_needs_no_upstream(mirror: Mirror, upstream: ScriptedUpstream) -> None:
    digest = upstream.add_blob("team/app", PAYLOAD)
    layer = {"mediaType": "application/x", "digest": digest, "size": len(PAYLOAD)}
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": layer, "layers": [layer]}
    ).encode()
    upstream.add_manifest("team/app", manifest, tags=["latest"])
    for expected in ("miss", "hit"):
        fields, body = fetch(mirror, "manifests/latest")
        assert body == manifest
        assert ("warning" in fields) == (expected == "hit")
        fields, body = fetch(mirror, f"blobs/{digest}")
        assert hashlib.sha256(body).hexdigest() == digest.removeprefix("sha256:")
        assert fields["x-headstart-cache"] == expected
        upstream.stop()


def test_many_cold_clients_share_one_fill(mirror: Mirror, upstream: ScriptedUpstream) -> None:
    digest = upstream.add_blob("team/app", PAYLOAD)
    with concurrent.futures.ThreadPoolExecutor(16) as clients:
        bodies = clients.map(lambda _: fetch(mirror, f"blobs/{digest}")[1], range(16))
        assert all(body == PAYLOAD for body in bodies)
    assert upstream.blob_bytes_sent() <= 1.02 * len(PAYLOAD)


def test_deep_range_of_a_cold_blob_is_fetched_alone(
    mirror: Mirror, upstream: ScriptedUpstream
) -> None:
    digest = upstream.add_blob("team/app", PAYLOAD)
    start = 25 * MIB + 77
    fields, body = fetch(mirror, f"blobs/{digest}", f"bytes={start}-{start + 999}")
    assert body == PAYLOAD[start : start + 1000]
    assert fields["x-headstart-verified"] == "false"
    assert upstream.blob_bytes_sent() <= MIB


def test_f09_flipped_bit_never_ends_cleanly_and_the_next_pull_is_right(
    mirror: Mirror, upstream: ScriptedUpstream
) -> None:
    digest = upstream.add_blob("team/app", PAYLOAD)
    upstream.add_rule(Rule(path="/blobs/", method="GET", flip=20 * MIB, times=8))
    with pytest.raises((ConnectionError, urllib.error.URLError)):
        fetch(mirror, f"blobs/{digest}")
    upstream.clear_rules()
    assert fetch(mirror, f"blobs/{digest}")[1] == PAYLOAD


def test_f31_filler_killed_in_mid_pull(tmp_path: Path) -> None:
    with ScriptedUpstream(connection_rate=4 * MIB) as upstream:
        digest = upstream.add_blob("team/app", PAYLOAD)
        with Mirror(tmp_path, {upstream.host: upstream_at(upstream.url)}) as mirror:
            request = urllib.request.Request(f"{mirror.url}/v2/team/app/blobs/{digest}")
            with _direct.open(request, timeout=60) as answer:
                first = answer.read(MIB)
                os.kill(mirror.process_id("proxy.fill.process"), signal.SIGKILL)
                assert first + answer.read() == PAYLOAD
            assert upstream.blob_bytes_sent() < 1.5 * len(PAYLOAD)


def test_metrics_and_pulls_know_what_was_served(mirror: Mirror, upstream: ScriptedUpstream) -> None:
    digest = upstream.add_blob("team/app", PAYLOAD)
    fetch(mirror, f"blobs/{digest}")
    fetch(mirror, f"blobs/{digest}")
    wait_until(lambda: pull_of(mirror)["bytes"] == 2 * len(PAYLOAD))
    assert pull_of(mirror)["bytes_from_cache"] == len(PAYLOAD)


def pull_of(mirror: Mirror) -> dict[str, int]:
    """The one pull, which may have ended by now."""
    pulls = mirror.ask("/pulls")
    (pull,) = pulls["running"] + pulls["recent"]
    return dict(pull)
