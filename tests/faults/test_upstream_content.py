"""Faults 9 to 14: bodies with other bytes than those that were asked for."""

from concurrent.futures import ThreadPoolExecutor

from tests.doubles.scripted_upstream import OCI_MANIFEST, Rule, captive_page
from tests.faults.reading import End
from tests.faults.setting import (
    MIB,
    REPOSITORY,
    Setting,
    new_content,
    of_blobs,
    pulls,
    pulls_soon,
    right_or_error,
    scripted,
)

SIZE = 3 * MIB + 12_345
WITHHELD = 64 * 1024
PATIENCE = 30.0


def cached_digests(setting: Setting) -> set[str]:
    """The blobs of which the cache has anything."""
    return {entry["digest"] for entry in setting.mirror.ask("/cache?limit=1000")["objects"]}


# --- 9, 10: flipped bits ---


def test_f09_flipped_bit_resets_the_client_and_is_fetched_anew(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content, of_blobs(times=1, flip=500_000))
    reply = setting.blob(upstream.host, digest, patience=PATIENCE)
    assert reply.status == 502 or reply.end is not End.CLEAN, reply
    assert digest not in cached_digests(setting), "it is in quarantine, nobody gets it"
    upstream.forget_requests()
    pulls(setting, upstream.host, digest, content)
    assert upstream.blob_bytes_sent() == SIZE, "nothing of what was there before is believed"


def test_f09_flipped_bit_each_time_is_fetched_anew_once(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content, of_blobs(flip=SIZE - 1))
    for _ in range(4):
        reply = setting.blob(upstream.host, digest, patience=PATIENCE)
        assert not right_or_error(reply, content), reply
    assert reply.status == 502
    assert upstream.blob_bytes_sent() <= 2 * SIZE


def test_f09_flipped_bit_reaches_no_waiter_of_many(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content, of_blobs(flip=2_000_000))
    upstream.connection_rate = 2 * MIB
    for reply in setting.blobs_at_once(8, upstream.host, digest):
        assert not right_or_error(reply, content)
    upstream.clear_rules()
    pulls(setting, upstream.host, digest, content)


def test_f10_flip_in_bytes_already_streamed_cannot_end_cleanly(setting: Setting) -> None:
    for bounds, start in ((None, 0), ("1000-", 1000), (f"{2 * MIB}-", 2 * MIB)):
        content = new_content(SIZE)
        upstream, digest = scripted(setting, content, of_blobs(flip=5))
        # Slowly, so that wrong bytes have left long before the digest can tell.
        upstream.connection_rate = 4 * MIB
        reply = setting.blob(upstream.host, digest, bounds, patience=PATIENCE)
        assert reply.end is not End.CLEAN or reply.status == 502, reply
        assert len(reply.body) <= SIZE - start - WITHHELD
        upstream.clear_rules()
        pulls(setting, upstream.host, digest, content)


def test_f10_closed_and_suffix_ranges_go_out_unverified_and_say_so(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content)
    for bounds, start, stop in (
        ("100-2000", 100, 2001),
        (f"-{WITHHELD}", SIZE - WITHHELD, SIZE),
        (f"0-{SIZE - 2}", 0, SIZE - 1),
    ):
        reply = setting.blob(upstream.host, digest, bounds)
        assert right_or_error(reply, content, start, stop), reply
        assert reply.fields.get("x-headstart-verified") == "false"
    pulls(setting, upstream.host, digest, content)
    assert "x-headstart-verified" not in setting.blob(upstream.host, digest, "100-2000").fields


def test_f10_a_stream_does_not_replace_bytes_that_have_been_read(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content)
    assert right_or_error(
        setting.blob(upstream.host, digest, f"0-{2 * MIB - 1}"), content, 0, 2 * MIB
    )
    # Hashed already; what now comes in their place is hashed by nobody.
    upstream.add_rule(of_blobs(ignore_range=True, flip=10))
    right_or_error(setting.blob(upstream.host, digest), content)
    pulls_soon(setting, upstream.host, digest, content)


# --- 11: too long ---


def test_f11_body_longer_than_declared_is_cut(setting: Setting) -> None:
    content = new_content(SIZE)
    for whole in (False, True):
        rule = of_blobs(chunked=True, ignore_range=whole, extra=64 * MIB)
        upstream, digest = scripted(setting, content, rule)
        reply = setting.blob(upstream.host, digest, patience=PATIENCE)
        assert right_or_error(reply, content) or reply.status in (200, 502)
        assert upstream.blob_bytes_sent() < 64 * MIB
        upstream.clear_rules()
        pulls(setting, upstream.host, digest, content)
        content = new_content(SIZE)


def test_f11_bytes_beyond_the_declared_range_are_not_taken(setting: Setting) -> None:
    content = new_content(SIZE)
    declared = {"Content-Range": f"bytes 0-{MIB - 100_000}/{SIZE}"}
    rule = of_blobs(times=1, chunked=True, headers=declared, flip=MIB - 5)
    upstream, digest = scripted(setting, content, rule)
    pulls(setting, upstream.host, digest, content)


def test_f11_length_that_contradicts_the_range_is_502(setting: Setting) -> None:
    content = new_content(SIZE)
    rule = of_blobs(declared_length=2 * MIB, extra=2 * MIB)
    upstream, digest = scripted(setting, content, rule)
    assert setting.blob(upstream.host, digest, patience=PATIENCE).status == 502
    upstream.clear_rules()
    pulls(setting, upstream.host, digest, content)


# --- 12: the content changes ---


def test_f12_content_that_changes_between_ranges_restarts_the_blob(setting: Setting) -> None:
    content, other = new_content(12 * MIB), new_content(12 * MIB)
    upstream, digest = scripted(
        setting, content, of_blobs(times=1, etag='"old"', payload=other), of_blobs(etag='"new"')
    )
    upstream.connection_rate = 8 * MIB
    reply = setting.blob(upstream.host, digest, patience=PATIENCE)
    assert not right_or_error(reply, content)
    assert len(upstream.blob_requests()) < 9, "it is not read to its end first"
    pulls(setting, upstream.host, digest, content)


def test_f12_replicas_with_their_own_entity_tags_are_believed_at_the_second_try(
    setting: Setting,
) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(
        setting,
        content,
        of_blobs(when=lambda asked: asked.range is not None and asked.range[0] == 0, etag='"a"'),
        of_blobs(etag='"b"'),
    )
    pulls_soon(setting, upstream.host, digest, content)


# --- 13, 14: not the blob at all ---


def test_f13_gzip_is_not_asked_for_and_refused(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content, of_blobs(gzip=True))
    reply = setting.blob(upstream.host, digest, patience=PATIENCE)
    assert reply.status == 502, reply
    asked = [request.headers.get("accept-encoding") for request in upstream.blob_requests()]
    assert set(asked) == {"identity"}
    assert digest not in cached_digests(setting)
    upstream.clear_rules()
    pulls(setting, upstream.host, digest, content)


def test_f13_encoded_body_of_the_right_size_is_refused(setting: Setting) -> None:
    content = new_content(SIZE)
    rule = of_blobs(times=1, headers={"Content-Encoding": "gzip"})
    upstream, digest = scripted(setting, content, rule)
    pulls(setting, upstream.host, digest, content)
    assert [request.range for request in upstream.blob_requests()[:2]] == [(0, MIB - 1)] * 2


def test_f14_captive_page_or_empty_answer_is_never_cached(setting: Setting) -> None:
    rules = (
        captive_page(path="/blobs/"),
        Rule(path="/blobs/", status=200, body=b"please sign in"),
        Rule(path="/blobs/", status=200, body=b""),
        Rule(path="/blobs/", status=206, body=b"", headers={"Content-Range": "bytes */0"}),
    )
    tries = [scripted(setting, new_content(SIZE), rule) for rule in rules]

    def ask(host: str, digest: str) -> list[int]:
        return [setting.blob(host, digest, patience=PATIENCE).status for _ in range(2)]

    with ThreadPoolExecutor(len(tries)) as clients:
        asked = [clients.submit(ask, upstream.host, digest) for upstream, digest in tries]
        assert [one.result() for one in asked] == [[502, 502]] * len(tries)
    assert not cached_digests(setting) & {digest for _, digest in tries}


def test_f14_captive_page_once_is_asked_past(setting: Setting) -> None:
    content = new_content(SIZE)
    upstream, digest = scripted(setting, content, captive_page(path="/blobs/", times=2))
    pulls(setting, upstream.host, digest, content)


def test_f14_captive_page_for_a_manifest_is_never_cached(setting: Setting) -> None:
    upstream = setting.upstream()
    body = b'{"schemaVersion":2,"mediaType":"%s","layers":[]}' % OCI_MANIFEST.encode()
    digest = upstream.add_manifest(REPOSITORY, body, tags=["1"])
    upstream.add_rule(captive_page())
    for reference in ("1", digest):
        assert setting.manifest(upstream.host, reference).status == 502
    for nothing in (b"", b"please sign in"):
        upstream.clear_rules()
        upstream.add_rule(Rule(path="/manifests/", status=200, body=nothing))
        for reference in ("1", digest):
            assert setting.manifest(upstream.host, reference).status == 502
    upstream.clear_rules()
    for reference in ("1", digest):
        assert setting.manifest(upstream.host, reference).body == body
