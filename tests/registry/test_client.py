"""Manifests, sizes, lists and streams from an upstream that is right or slightly wrong."""

import asyncio
import hashlib
import json
import time

import pytest

from headstart.content.digest import Digest
from headstart.registry.client import ManifestAnswer, ManifestHead, RegistryClient
from headstart.registry.errors import (
    RegistryError,
    UpstreamDeadline,
    UpstreamDenied,
    UpstreamMissing,
    UpstreamProtocol,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from headstart.registry.upstream import Deadlines
from tests.doubles.scripted_upstream import OCI_MANIFEST, Rule, ScriptedUpstream, captive_page
from tests.registry.upstreams import ACCEPT, REPOSITORY, upstream_of, use

PAYLOAD = bytes(range(256)) * 2000
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST}).encode()


def add_blob(double: ScriptedUpstream, payload: bytes = PAYLOAD) -> Digest:
    return Digest.parse(double.add_blob(REPOSITORY, payload))


async def read_all(client: RegistryClient, digest: Digest, start: int = 0) -> bytes:
    async with client.stream_blob(REPOSITORY, digest, start) as pieces:
        return b"".join([piece async for piece in pieces])


def test_a_manifest_comes_by_tag_and_by_digest_with_its_exact_bytes(
    double: ScriptedUpstream,
) -> None:
    digest = Digest.parse(double.add_manifest(REPOSITORY, MANIFEST, tags=["latest"]))

    async def work(client: RegistryClient) -> None:
        head = await client.head_manifest(REPOSITORY, "latest", ACCEPT)
        assert head == ManifestHead(digest, OCI_MANIFEST, len(MANIFEST))
        for reference in ("latest", str(digest)):
            answer = await client.get_manifest(REPOSITORY, reference, ACCEPT)
            assert answer == ManifestAnswer(MANIFEST, OCI_MANIFEST, digest)

    use(upstream_of(double), work)
    assert {request.headers["accept"] for request in double.requests} == {ACCEPT}
    assert {request.headers["accept-encoding"] for request in double.requests} == {"identity"}
    assert double.connections == 1


def test_an_upstream_without_head_or_digest_field_is_asked_for_the_bytes(
    double: ScriptedUpstream,
) -> None:
    digest = Digest.parse(double.add_manifest(REPOSITORY, MANIFEST, tags=["latest"]))
    double.add_rule(Rule(method="HEAD", status=405))
    double.add_rule(Rule(body=MANIFEST, headers={"Content-Type": OCI_MANIFEST + "; charset=utf-8"}))
    head = use(
        upstream_of(double), lambda client: client.head_manifest(REPOSITORY, "latest", ACCEPT)
    )
    assert head == ManifestHead(digest, OCI_MANIFEST, len(MANIFEST))


@pytest.mark.parametrize("reference", ["tag", "digest"])
def test_a_manifest_whose_bytes_do_not_have_the_digest_is_asked_again_then_refused(
    double: ScriptedUpstream, reference: str
) -> None:
    digest = double.add_manifest(REPOSITORY, MANIFEST, tags=["tag"])
    name = digest if reference == "digest" else reference
    wrong = Rule(body=MANIFEST[:-1] + b" ", times=1, headers={"Docker-Content-Digest": digest})
    double.add_rule(wrong)
    answer = use(upstream_of(double), lambda client: client.get_manifest(REPOSITORY, name, ACCEPT))
    assert answer.body == MANIFEST
    wrong.times = None
    with pytest.raises(UpstreamProtocol, match="do not have the digest"):
        use(upstream_of(double), lambda client: client.get_manifest(REPOSITORY, name, ACCEPT))


@pytest.mark.parametrize(
    "rule",
    [
        captive_page(),
        Rule(body=b"", headers={"Content-Type": OCI_MANIFEST}),
        Rule(body=b" " * (4 * 1024 * 1024 + 1)),
        Rule(gzip=True),
        Rule(headers={"Docker-Content-Digest": "sha256:short"}),
        Rule(status=206, body=MANIFEST),
        Rule(status=418),
    ],
    ids=["captive page", "empty", "too long", "coded", "malformed digest", "206", "418"],
)
def test_answers_that_are_no_manifest_are_protocol_errors(
    double: ScriptedUpstream, rule: Rule
) -> None:
    double.add_manifest(REPOSITORY, MANIFEST, tags=["latest"])
    double.add_rule(rule)
    with pytest.raises(UpstreamProtocol):
        use(upstream_of(double), lambda client: client.get_manifest(REPOSITORY, "latest", ACCEPT))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, UpstreamMissing),
        (403, UpstreamDenied),
        (500, UpstreamUnavailable),
        (504, UpstreamUnavailable),
    ],
)
def test_statuses_become_errors_that_name_them(
    double: ScriptedUpstream, status: int, error: type[RegistryError]
) -> None:
    double.add_rule(Rule(status=status))
    with pytest.raises(error, match=str(status)):
        use(upstream_of(double), lambda client: client.head_manifest(REPOSITORY, "x", ACCEPT))
    assert len(double.requests) == (4 if status >= 500 else 1)


# --- retries and pauses ---


@pytest.mark.parametrize(
    "rule",
    [
        Rule(times=3, status=502),
        Rule(times=3, close_before_answer=True),
        Rule(times=3, close_before_answer=True, reset=True),
        Rule(times=3, method="GET", close_after=10),
    ],
    ids=["502", "closed", "reset", "cut"],
)
def test_what_fails_three_times_is_asked_a_fourth(double: ScriptedUpstream, rule: Rule) -> None:
    double.add_manifest(REPOSITORY, MANIFEST, tags=["latest"])
    double.add_rule(rule)
    answer = use(
        upstream_of(double), lambda client: client.get_manifest(REPOSITORY, "latest", ACCEPT)
    )
    assert answer.body == MANIFEST


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "1"},
        {
            "Retry-After": "Wed, 21 Oct 2015 07:28:01 GMT",
            "Date": "Wed, 21 Oct 2015 07:28:00 GMT",
        },
    ],
    ids=["seconds", "date"],
)
def test_a_pause_that_the_upstream_asks_for_is_kept_by_all(
    double: ScriptedUpstream, headers: dict[str, str]
) -> None:
    digest = add_blob(double)
    double.add_rule(Rule(times=1, status=429, headers=headers))

    async def work(client: RegistryClient) -> None:
        first = asyncio.create_task(client.head_blob(REPOSITORY, digest))
        await asyncio.sleep(0.2)
        await asyncio.gather(first, *(client.head_blob(REPOSITORY, digest) for _ in range(4)))

    use(upstream_of(double), work)
    started = [request.started for request in double.requests]
    assert len(started) == 6
    assert min(started[1:]) - started[0] >= 0.99


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_that_is_too_long_is_an_error_at_once(
    double: ScriptedUpstream, status: int
) -> None:
    digest = add_blob(double)
    double.add_rule(Rule(status=status, headers={"Retry-After": "1000000000"}))

    async def work(client: RegistryClient) -> None:
        for _ in range(2):
            with pytest.raises(UpstreamThrottled) as refusal:
                await client.head_blob(REPOSITORY, digest)
            assert 30 < refusal.value.retry_after <= 300

    started = time.monotonic()
    use(upstream_of(double), work)
    assert time.monotonic() - started < 1
    assert len(double.requests) == 1


# --- sizes of blobs ---


@pytest.mark.parametrize("payload", [PAYLOAD, b"", b"x"], ids=["some", "empty", "one byte"])
@pytest.mark.parametrize("stored", ["here", "elsewhere"])
def test_the_size_of_a_blob_is_told_wherever_it_is_stored(
    double: ScriptedUpstream, storage: ScriptedUpstream, payload: bytes, stored: str
) -> None:
    digest = add_blob(double, payload)
    if stored == "elsewhere":
        double.redirect_blobs(storage)
    size = use(upstream_of(double), lambda client: client.head_blob(REPOSITORY, digest))
    assert size == len(payload)
    assert sum(request.bytes_sent for request in storage.requests) <= 200


@pytest.mark.parametrize(
    "rule",
    [
        Rule(method="HEAD", close_delimited=True),
        Rule(method="GET", without_range_support=True),
    ],
    ids=["no length", "no ranges"],
)
def test_a_size_is_found_where_head_or_ranges_are_missing(
    double: ScriptedUpstream, rule: Rule
) -> None:
    digest = add_blob(double)
    double.add_rule(rule)
    size = use(upstream_of(double), lambda client: client.head_blob(REPOSITORY, digest))
    assert size == len(PAYLOAD)


@pytest.mark.parametrize(
    "rule",
    [
        captive_page(),
        Rule(headers={"Docker-Content-Digest": "sha256:" + "0" * 64}),
        Rule(close_delimited=True, without_range_support=True),
    ],
    ids=["captive page", "other digest", "never a length"],
)
def test_a_size_that_cannot_be_right_is_refused(double: ScriptedUpstream, rule: Rule) -> None:
    digest = add_blob(double)
    double.add_rule(rule)
    with pytest.raises(UpstreamProtocol):
        use(upstream_of(double), lambda client: client.head_blob(REPOSITORY, digest))


def test_a_missing_blob_is_missing(double: ScriptedUpstream) -> None:
    digest = Digest.of(b"nothing")
    with pytest.raises(UpstreamMissing):
        use(upstream_of(double), lambda client: client.head_blob(REPOSITORY, digest))


# --- lists ---


@pytest.mark.parametrize(
    ("link", "passed"),
    [
        ("</v2/team/app/tags/list?n=2&last=b>; rel=next", "</v2/team/app/tags/list?n=2&last=b>"),
        ('<{url}/v2/team/app/tags/list?last=b>; rel="next"', "</v2/team/app/tags/list?last=b>"),
        ("<https://evil.example/v2/team/app/tags/list>; rel=next", None),
        ("</elsewhere>; rel=next", None),
        ("nonsense", None),
    ],
)
def test_lists_are_passed_on_with_a_link_below_v2_only(
    double: ScriptedUpstream, link: str, passed: str | None
) -> None:
    double.add_manifest(REPOSITORY, MANIFEST, tags=["a", "b"])
    headers = {"Link": link.format(url=double.url), "Set-Cookie": "a=b", "X-Own": "x"}
    double.add_rule(Rule(headers=headers))
    path = f"/v2/{REPOSITORY}/tags/list"
    answer = use(upstream_of(double), lambda client: client.passthrough(path, "n=2&last=a", None))
    assert (answer.status, json.loads(answer.body)["tags"]) == (200, ["a", "b"])
    assert double.requests[0].query == "n=2&last=a"
    expected = {"content-type": "application/json"}
    if passed is not None:
        expected["link"] = f'{passed}; rel="next"'
    assert answer.headers == expected


def test_referrers_keep_their_type_and_filter(double: ScriptedUpstream) -> None:
    digest = double.add_manifest(REPOSITORY, MANIFEST)
    double.add_rule(Rule(headers={"OCI-Filters-Applied": "artifactType"}))
    path = f"/v2/{REPOSITORY}/referrers/{digest}"
    answer = use(upstream_of(double), lambda client: client.passthrough(path, "", ACCEPT))
    assert json.loads(answer.body)["manifests"] == []
    assert answer.headers == {
        "content-type": "application/vnd.oci.image.index.v1+json",
        "oci-filters-applied": "artifactType",
    }


def test_a_bad_request_is_passed_on_and_a_missing_list_is_missing(
    double: ScriptedUpstream,
) -> None:
    double.add_rule(Rule(status=400, times=1, body=b"{}"))
    double.add_rule(Rule(status=404))
    path = f"/v2/{REPOSITORY}/tags/list"

    async def work(client: RegistryClient) -> None:
        assert (await client.passthrough(path, "n=x", None)).status == 400
        with pytest.raises(UpstreamMissing):
            await client.passthrough(path, "", None)
        with pytest.raises(ValueError, match="neither"):
            await client.passthrough("/v2/_catalog", "", None)

    use(upstream_of(double), work)


def test_cookies_are_not_carried_from_one_call_to_the_next(double: ScriptedUpstream) -> None:
    digest = add_blob(double)
    double.add_rule(Rule(headers={"Set-Cookie": "session=1; Path=/"}))

    async def work(client: RegistryClient) -> None:
        await client.head_blob(REPOSITORY, digest)
        await client.head_blob(REPOSITORY, digest)

    use(upstream_of(double), work)
    assert ["cookie" in request.headers for request in double.requests] == [False, False]


# --- streams ---


@pytest.mark.parametrize("start", [0, 1, 70_000, len(PAYLOAD) - 1])
@pytest.mark.parametrize(
    "rule",
    [
        Rule(),
        Rule(without_range_support=True),
        Rule(chunked=True),
        Rule(times=3, close_after=100_000),
        Rule(times=3, close_after=0, reset=True),
    ],
    ids=["ranges", "no ranges", "chunked", "cut", "reset"],
)
def test_a_stream_gives_the_bytes_from_where_it_was_asked(
    double: ScriptedUpstream, start: int, rule: Rule
) -> None:
    digest = add_blob(double)
    rule.used = rule.seen = 0
    double.add_rule(rule)
    body = use(upstream_of(double), lambda client: read_all(client, digest, start))
    assert hashlib.sha256(PAYLOAD[:start] + body).hexdigest() == digest.hex


@pytest.mark.parametrize(
    "rule",
    [
        Rule(range_shift=1),
        Rule(range_total=len(PAYLOAD) + 1),
        Rule(without_content_range=True),
        Rule(gzip=True),
        captive_page(),
    ],
    ids=["wrong start", "wrong total", "no content-range", "coded", "captive page"],
)
def test_a_stream_of_other_bytes_than_asked_for_is_refused(
    double: ScriptedUpstream, rule: Rule
) -> None:
    digest = add_blob(double)
    double.add_rule(rule)
    with pytest.raises(UpstreamProtocol):
        use(upstream_of(double), lambda client: read_all(client, digest, 1000))


def test_a_stream_that_never_gets_further_ends(double: ScriptedUpstream) -> None:
    digest = add_blob(double)
    double.add_rule(Rule(close_after=0))
    with pytest.raises(UpstreamUnavailable):
        use(upstream_of(double), lambda client: read_all(client, digest))
    assert len(double.requests) <= 8


def test_a_stream_may_be_left_early(double: ScriptedUpstream) -> None:
    digest = add_blob(double)
    double.add_rule(Rule(stall_after=200_000))

    async def work(client: RegistryClient) -> None:
        async with client.stream_blob(REPOSITORY, digest, 0) as pieces:
            async for piece in pieces:
                assert PAYLOAD.startswith(piece)
                break

    use(upstream_of(double), work)


@pytest.mark.parametrize(
    ("rule", "key"), [(Rule(stall_after=1000), "stall"), (Rule(rate=2000.0), "stall_rate")]
)
def test_a_stream_without_progress_ends_with_the_deadline_that_it_broke(
    double: ScriptedUpstream, rule: Rule, key: str
) -> None:
    digest = add_blob(double)
    double.add_rule(rule)
    deadlines = Deadlines(connect=1, first_byte=1, stall=0.3, stall_rate=100_000)
    started = time.monotonic()
    with pytest.raises(UpstreamDeadline) as refusal:
        use(upstream_of(double, deadlines=deadlines), lambda client: read_all(client, digest))
    assert refusal.value.key == key
    assert f"deadlines.{key}" in str(refusal.value)
    assert time.monotonic() - started < 2
