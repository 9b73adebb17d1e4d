"""Control calls to a running mirror: health, metrics, pulls, the cache, warm jobs, problems."""

import os
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.control.calls import Caller, assert_problem
from tests.control.node import HOST, MIB, Node, add_image
from tests.doubles.rules import Rule


def until(look: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What ``look`` returns as soon as it is true."""
    ends = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < ends, "did not happen in time"
        time.sleep(0.05)
    return found


def warm(node: Node, **asked: object) -> Any:
    """A job that has begun."""
    answer = node.caller.call("/warm", "POST", {"platform": "linux/amd64", **asked})
    assert answer.status == 202, answer.body
    assert answer.fields["location"] == f"/warm/{answer.json['id']}"
    return answer.json


def follow(node: Node, id: str) -> Any:
    """The job as it ended."""
    return list(node.caller.events(f"/warm/{id}/events"))[-1]


def pull(node: Node, repository: str, tag: str, digests: list[str]) -> None:
    """What a client does."""
    fields = {"User-Agent": "containerd/2.0", "Authorization": "Basic c2VjcmV0OnNlY3JldA=="}
    answer = node.caller.call(f"/v2/{repository}/manifests/{tag}?ns={HOST}", fields=fields)
    assert answer.status == 200
    for digest in digests:
        path = f"/v2/{repository}/blobs/{digest}?ns={HOST}"
        assert node.caller.call(path, fields=fields).status == 200


def test_health(node: Node) -> None:
    assert node.caller.call("/healthz").status == 200
    ready = node.caller.call("/readyz")
    assert (ready.status, ready.json) == (200, {"ready": True, "reasons": []})
    assert node.upstream.requests_to("/readyz") == []


def test_a_pull_is_shown_counted_and_logged_with_its_verdict(node: Node) -> None:
    digests = add_image(node.upstream, "team/pulled", "1", 2 * MIB, MIB)
    pull(node, "team/pulled", "1", digests)
    image = f"{HOST}/team/pulled:1"
    running = node.caller.call("/pulls").json["running"]
    assert image in [each["image"] for each in running]

    def ended() -> list[Any]:
        recent = node.caller.call("/pulls").json["recent"]
        return [each for each in recent if each["image"] == image]

    (first,) = until(ended)
    assert first["bytes"] == 3 * MIB + len(b"{}team/pulled:1") == first["bytes_wanted"]
    assert first["client"] == "127.0.0.1"
    assert first["verdict"] in ("network-bound", "cpu-bound", "client-bound", "disk-bound")
    pull(node, "team/pulled", "1", digests)
    second = until(lambda: ended() if len(ended()) == 2 else None)[0]
    assert (second["hit_ratio"], second["verdict"]) == (1.0, "cache")

    lines = [line for line in node.log().splitlines() if f"pull image={image}" in line]
    assert len(lines) == 2
    assert "verdict=cache" in lines[1]
    assert "hit_ratio=1.00" in lines[1]
    assert "c2VjcmV0" not in node.log()

    text = node.caller.call("/metrics").body.decode()
    assert 'headstart_pulls_total{verdict="cache"} ' in text
    samples = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")
    )
    assert float(samples['headstart_sent_bytes_total{cache="hit"}']) >= 3 * MIB
    assert float(samples['headstart_requests_total{kind="blob",status="2xx"}']) >= 6
    assert float(samples[f'headstart_upstream_received_bytes_total{{upstream="{HOST}"}}']) > 0
    assert float(samples["headstart_filler_up"]) == 1
    assert float(samples["headstart_cache_allocated_bytes"]) > 0
    assert any(name.startswith("headstart_stripe_written_bytes_total{") for name in samples)


def ended_pull(node: Node, image: str) -> Any:
    """The pull of an image, as soon as it has ended."""

    def look() -> Any:
        recent = node.caller.call("/pulls").json["recent"]
        return next((each for each in recent if each["image"] == image), None)

    return until(look)


def test_a_slow_registry_is_named_with_its_rate_and_connections(node: Node) -> None:
    digests = add_image(node.upstream, "team/far", "1", 4 * MIB)
    node.upstream.add_rule(Rule(path="team/far/blobs", method="GET", rate=2 * MIB))
    pull(node, "team/far", "1", digests)
    node.upstream.clear_rules()
    ended = ended_pull(node, f"{HOST}/team/far:1")
    assert ended["verdict"] == "network-bound"
    assert re.match(
        rf"\d+ [MK]B/s from {re.escape(HOST)} over \d connections?, ", ended["evidence"]
    )
    assert ended["waited_for_filler_seconds"] > 0.5


def test_a_slow_client_is_told_from_a_slow_registry(node: Node) -> None:
    _, digest = add_image(node.upstream, "team/leisure", "1", 24 * MIB)
    connection = node.caller.connection()
    connection.request("GET", f"/v2/team/leisure/blobs/{digest}?ns={HOST}")
    answer = connection.getresponse()
    while answer.read(2 * MIB):
        time.sleep(0.2)
    connection.close()
    ended = ended_pull(node, f"{HOST}/team/leisure")
    assert ended["verdict"] == "client-bound"
    assert ended["waited_for_client_seconds"] > ended["waited_for_filler_seconds"]


def test_metrics_have_units_and_their_own_content_type(node: Node) -> None:
    answer = node.caller.call("/metrics")
    assert answer.fields["content-type"].startswith("text/plain; version=")
    names = [line.split()[2] for line in answer.body.decode().splitlines() if "# TYPE" in line]
    assert all(name.startswith("headstart_") for name in names)
    assert len(names) == len(set(names))


def test_the_cache_is_listed_pinned_and_evicted(node: Node) -> None:
    digests = add_image(node.upstream, "team/kept", "1", MIB)
    assert follow(node, warm(node, image=f"{HOST}/team/kept:1")["id"])["state"] == "done"

    def listed() -> dict[str, Any]:
        found: dict[str, Any] = {}
        after: str | None = ""
        while after is not None:
            page = node.caller.call(f"/cache?limit=2&after={after}").json
            assert len(page["objects"]) <= 2
            found |= {each["digest"]: each for each in page["objects"]}
            after = page["next"]
        return found

    layer = digests[1]
    until(lambda: listed()[layer]["verified"] and not listed()[layer]["busy"])
    assert set(digests) <= set(listed())
    assert list(listed()) == sorted(listed())
    assert listed()[layer]["size"] == MIB
    pinned = node.caller.call(f"/cache/{layer}/pin", "PUT")
    assert (pinned.status, pinned.json) == (200, {"digest": layer, "pinned": True})
    assert listed()[layer]["pinned"]
    assert_problem(node.caller.call(f"/cache/{layer}", "DELETE"), 409, detail="pinned")
    assert node.caller.call(f"/cache/{layer}/pin", "DELETE").json["pinned"] is False
    assert node.caller.call(f"/cache/{layer}", "DELETE").status == 204
    assert layer not in listed()
    assert_problem(node.caller.call(f"/cache/{layer}", "DELETE"), 404, detail="is not in the cache")


def test_a_job_brings_an_image_which_then_needs_no_upstream(node: Node) -> None:
    digests = add_image(node.upstream, "team/warm", "1", 3 * MIB, 2 * MIB)
    begun = warm(node, image=f"{HOST}/team/warm:1")
    seen = list(node.caller.events(f"/warm/{begun['id']}/events"))
    job = seen[-1]
    assert job["state"] == "done"
    assert job["bytes_done"] == job["bytes_wanted"] == 5 * MIB + len(b"{}team/warm:1")
    (image,) = job["images"]
    assert [layer["digest"] for layer in image["layers"]] == digests
    assert {layer["state"] for layer in image["layers"]} == {"done"}
    assert node.caller.call(f"/warm/{begun['id']}").json == job
    listed = node.caller.call("/warm").json["jobs"]
    assert begun["id"] in [each["id"] for each in listed]
    node.upstream.forget_requests()
    for digest in digests:
        answer = node.caller.call(f"/v2/team/warm/blobs/{digest}?ns={HOST}")
        assert (answer.status, answer.fields["x-headstart-cache"]) == (200, "hit")
    assert node.upstream.blob_requests() == []


def test_the_same_work_joins_and_a_cancelled_job_leaves_the_fill_to_others(node: Node) -> None:
    digests = add_image(node.upstream, "team/slow", "1", 4 * MIB)
    node.upstream.add_rule(Rule(path="team/slow/blobs", method="GET", rate=2 * MIB))
    job = warm(node, image=f"{HOST}/team/slow:1", priority="background")
    assert warm(node, image=f"{HOST}/team/slow:1")["id"] == job["id"]
    until(lambda: node.caller.call(f"/warm/{job['id']}").json["bytes_done"] > 0)
    cancelled = node.caller.call(f"/warm/{job['id']}", "DELETE")
    assert (cancelled.status, cancelled.json["state"]) == (200, "cancelled")
    again = warm(node, image=f"{HOST}/team/slow:1")
    assert again["id"] != job["id"]
    ended = follow(node, again["id"])
    assert ended["state"] == "done"
    node.upstream.clear_rules()
    sent = sum(each.bytes_sent for each in node.upstream.requests_to(digests[1], "GET"))
    assert sent < 6 * MIB


def test_a_job_fails_by_name(node: Node) -> None:
    missing = follow(node, warm(node, image=f"{HOST}/team/absent:1")["id"])
    assert missing["state"] == "failed"
    assert missing["failure"]["code"] == "missing"
    digests = add_image(node.upstream, "team/torn", "1", MIB)
    node.upstream.remove_blob("team/torn", digests[1])
    torn = follow(node, warm(node, image=f"{HOST}/team/torn:1")["id"])
    assert (torn["state"], torn["failure"]["code"]) == ("failed", "missing")


def test_events_come_at_most_four_times_a_second(node: Node) -> None:
    add_image(node.upstream, "team/events", "1", 3 * MIB)
    node.upstream.add_rule(Rule(path="team/events/blobs", method="GET", rate=2 * MIB))
    job = warm(node, image=f"{HOST}/team/events:1")
    times = [time.monotonic() for _ in node.caller.events(f"/warm/{job['id']}/events")]
    node.upstream.clear_rules()
    assert len(times) >= 4
    assert (times[-1] - times[0]) / (len(times) - 1) >= 0.24


def test_a_job_survives_the_death_of_the_mirror(node: Node) -> None:
    digests = add_image(node.upstream, "team/survivor", "1", 6 * MIB)
    node.upstream.add_rule(Rule(path="team/survivor/blobs", method="GET", rate=2 * MIB))
    job = warm(node, image=f"{HOST}/team/survivor:1")
    until(lambda: node.caller.call(f"/warm/{job['id']}").json["bytes_done"] > 0)
    os.kill(node.mirror.process_id("proxy.mirror"), signal.SIGKILL)
    until(node.mirror.ready)
    node.upstream.clear_rules()
    assert follow(node, job["id"])["state"] == "done"
    for digest in digests:
        answer = node.caller.call(f"/v2/team/survivor/blobs/{digest}?ns={HOST}")
        assert answer.fields["x-headstart-cache"] == "hit"


@pytest.mark.parametrize(
    ("content", "status", "members"),
    [
        (b"{", 400, {"type": "not-json", "detail": "send a JSON object"}),
        (b"[" * 5000, 400, {"type": "not-json"}),
        (b"\xff", 400, {"type": "not-json"}),
        (b" " * 70_000, 413, {"type": "too-large"}),
        ({}, 422, {"field": "image", "detail": "is missing; write image"}),
        ({"image": "Bad"}, 422, {"field": "image", "value": "'Bad'"}),
        ({"image": "a", "platfrom": "x"}, 422, {"field": "platfrom", "detail": "did you mean pla"}),
        (
            {"image": "other.example/a"},
            422,
            {"field": "image", "detail": "not among the upstreams"},
        ),
    ],
)
def test_a_bad_body_is_a_problem(
    node: Node, content: object, status: int, members: dict[str, str]
) -> None:
    assert_problem(node.caller.call("/warm", "POST", content), status, **members)


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/nothing", "GET", 404),
        ("/ui", "GET", 404),
        ("/warm/", "GET", 404),
        ("/landmarks/sha256:" + "a" * 64, "POST", 405),
        ("/warm/unknown", "GET", 404),
        ("/warm/unknown/events", "GET", 404),
        ("/warm/unknown", "DELETE", 404),
        ("/pulls", "DELETE", 405),
        ("/cache/sha256:1", "DELETE", 422),
        ("/cache/..%2f..%2fetc/pin", "PUT", 404),
        ("/cache?limit=0", "GET", 422),
        ("/cache?limit=1e3", "GET", 422),
        ("/cache?after=x", "GET", 422),
    ],
)
def test_a_call_that_is_none_is_a_problem(node: Node, path: str, method: str, status: int) -> None:
    assert_problem(node.caller.call(path, method), status)


def test_the_control_socket_answers_the_same(node: Node) -> None:
    assert node.socket.stat().st_mode & 0o777 == 0o660
    over_socket = Caller(node.socket)
    assert over_socket.call("/readyz").status == 200
    assert over_socket.call("/warm").json == node.caller.call("/warm").json


def test_the_node_goes_on_telling_while_the_filler_is_away(node: Node) -> None:
    stopped = node.mirror.process_id("proxy.fill.process")
    os.kill(stopped, signal.SIGSTOP)
    try:
        until(lambda: b"headstart_filler_up 0.0" in node.caller.call("/metrics").body)
        started = time.monotonic()
        assert b"headstart_requests_total{" in node.caller.call("/metrics").body
        assert node.caller.call("/pulls").status == 200
        assert time.monotonic() - started < 5
    finally:
        os.kill(stopped, signal.SIGCONT)
    os.kill(stopped, signal.SIGKILL)
    not_ready = until(lambda: (a := node.caller.call("/readyz")).status == 503 and a, 5)
    assert not_ready.json["ready"] is False
    assert "the filler has not greeted" in not_ready.json["reasons"][0]
    assert node.caller.call("/healthz").status == 200
    until(node.mirror.ready)
