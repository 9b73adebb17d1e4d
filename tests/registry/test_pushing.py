"""Pushes to a registry that is right, and to one that breaks, forgets, refuses or leads away."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.registry.errors import (
    PushRefused,
    RegistryError,
    UpstreamDeadline,
    UpstreamMissing,
    UpstreamUnavailable,
)
from headstart.registry.pushing import RegistryPusher
from headstart.registry.upstream import Credentials, Deadlines, Upstream
from tests.doubles.certificates import Authority
from tests.doubles.scripted_upstream import (
    OCI_MANIFEST,
    RecordedRequest,
    Rule,
    ScriptedUpstream,
    TokenService,
)
from tests.parts.fixtures import MakeRegistry
from tests.parts.registry import Registry
from tests.parts.token_server import TokenServer
from tests.registry.pushes import (
    CHUNK,
    LARGE,
    LOGIN,
    MANIFEST,
    OTHER,
    SMALL,
    Payload,
    arrived,
    push,
    push_blob,
    shared,
)
from tests.registry.upstreams import QUICK, REPOSITORY, upstream_of, write

# --- what is sent ---


def test_a_large_blob_goes_in_chunks_whose_ranges_follow_one_another(
    double: ScriptedUpstream,
) -> None:
    payload = Payload(LARGE)
    push_blob(upstream_of(double), payload)
    assert arrived(double, payload)
    assert [request.method for request in double.requests] == ["POST", *["PATCH"] * 7, "PUT"]
    ranges = [request.headers["content-range"] for request in double.requests_to("", "PATCH")]
    starts = range(0, len(LARGE), CHUNK)
    assert ranges == [f"{at}-{min(at + CHUNK, len(LARGE)) - 1}" for at in starts]
    assert payload.opened == [0]
    assert double.connections == 1


@pytest.mark.parametrize("content", [SMALL, b"x", b""], ids=["small", "one byte", "empty"])
def test_a_small_blob_goes_with_the_put_that_ends_its_upload(
    double: ScriptedUpstream, content: bytes
) -> None:
    payload = Payload(content)
    push_blob(upstream_of(double), payload)
    assert arrived(double, payload)
    assert [request.method for request in double.requests] == ["POST", "PUT"]


def test_chunks_are_as_long_as_the_registry_wants_them(double: ScriptedUpstream) -> None:
    double.uploads.least_chunk = 4 * CHUNK
    payload = Payload(LARGE)
    push_blob(upstream_of(double), payload)
    assert arrived(double, payload)
    assert len(double.requests_to("", "PATCH")) == 2


def test_a_blob_is_known_to_be_there_or_not(double: ScriptedUpstream) -> None:
    there = Digest.parse(double.add_blob(REPOSITORY, SMALL))

    async def work(pusher: RegistryPusher) -> None:
        assert await pusher.has_blob(REPOSITORY, there)
        assert not await pusher.has_blob(OTHER, there)

    push(upstream_of(double), work)
    assert {request.method for request in double.requests} == {"HEAD"}


def test_a_blob_that_an_object_storage_has_is_there_though_its_url_takes_no_head(
    double: ScriptedUpstream, storage: ScriptedUpstream
) -> None:
    there = Digest.parse(double.add_blob(REPOSITORY, SMALL))
    double.redirect_blobs(storage)
    assert push(upstream_of(double), lambda pusher: pusher.has_blob(REPOSITORY, there))


def test_memory_does_not_grow_with_the_blob(double: ScriptedUpstream) -> None:
    """The double reads a chunk at a time, and its rules keep none."""
    size = 64 * CHUNK
    piece = bytes(CHUNK)
    double.add_rule(Rule(method="PATCH", status=202))
    double.add_rule(Rule(method="PUT", status=201))

    @asynccontextmanager
    async def open_at(start: int) -> AsyncIterator[AsyncIterator[bytes]]:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(start, size, CHUNK):
                yield piece

        yield pieces()

    async def work(pusher: RegistryPusher) -> int:
        tracemalloc.start()
        try:
            await pusher.push_blob(REPOSITORY, Digest.of(b""), size, open_at)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert push(upstream_of(double), work, chunk_size=2 * CHUNK) < 16 * CHUNK


# --- mounts ---


def test_a_blob_of_another_repository_is_mounted_without_its_bytes(
    double: ScriptedUpstream,
) -> None:
    double.add_blob(OTHER, LARGE)
    payload = Payload(LARGE)
    push_blob(upstream_of(double), payload, source=OTHER)
    assert arrived(double, payload)
    assert payload.opened == []
    assert [request.method for request in double.requests] == ["POST"]


def test_a_mount_asks_for_a_token_for_both_repositories(
    double: ScriptedUpstream, tmp_path: Path
) -> None:
    double.access = TokenService(credentials=LOGIN)
    double.add_blob(OTHER, LARGE)
    push_blob(shared(double, tmp_path), Payload(LARGE), source=OTHER)
    (asked,) = double.requests_to("^/token")
    assert f"scope=repository%3A{REPOSITORY.replace('/', '%2F')}%3Apull%2Cpush" in asked.query
    assert f"scope=repository%3A{OTHER.replace('/', '%2F')}%3Apull" in asked.query


@pytest.mark.parametrize("answer", ["upload begun", "denied", "method unknown"])
def test_what_is_not_mounted_is_uploaded(double: ScriptedUpstream, answer: str) -> None:
    double.add_blob(OTHER, LARGE)
    double.uploads.mounts = False
    if answer != "upload begun":
        status = {"denied": 403, "method unknown": 405}[answer]
        double.add_rule(Rule(status=status, when=lambda request: "mount=" in request.query))
    payload = Payload(LARGE)
    push_blob(upstream_of(double), payload, source=OTHER)
    assert arrived(double, payload)
    assert len(double.requests_to("/uploads/$", "POST")) == (1 if answer == "upload begun" else 2)


# --- breaks ---


@pytest.mark.parametrize("kept", [0, 1, 300_000, CHUNK - 1])
def test_an_upload_that_breaks_goes_on_with_what_the_registry_does_not_have(
    double: ScriptedUpstream, kept: int
) -> None:
    double.add_rule(Rule(method="PATCH", skip=2, times=1, receive_only=kept))
    payload = Payload(LARGE)
    push_blob(upstream_of(double), payload)
    assert arrived(double, payload)
    (asked,) = double.requests_to("/uploads/", "GET")
    assert asked.status == 204
    again = double.requests_to("", "PATCH")[3]
    assert again.headers["content-range"].startswith(f"{2 * CHUNK + kept}-")
    assert len(double.requests_to("/uploads/$", "POST")) == 1
    assert payload.opened[0] == 0
    assert payload.opened[1:] in ([], [2 * CHUNK + kept])


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_chunk_that_fails_by_the_servers_fault_is_sent_again(
    double: ScriptedUpstream, status: int
) -> None:
    double.add_rule(Rule(method="PATCH", skip=1, times=2, status=status))
    payload = Payload(LARGE)
    push_blob(upstream_of(double), payload)
    assert arrived(double, payload)


def test_a_pause_that_the_registry_asks_for_is_kept(double: ScriptedUpstream) -> None:
    double.add_rule(Rule(method="PATCH", times=1, status=429, headers={"Retry-After": "1"}))
    payload = Payload(LARGE)
    push_blob(upstream_of(double), payload)
    assert arrived(double, payload)
    refused = double.requests_to("", "PATCH")[0]
    (asked,) = double.requests_to("/uploads/", "GET")
    assert refused.finished is not None
    assert asked.started - refused.finished >= 0.9


def test_a_registry_that_breaks_again_and_again_is_given_up(double: ScriptedUpstream) -> None:
    double.add_rule(Rule(method="PATCH", skip=1, receive_only=0))
    with pytest.raises(UpstreamUnavailable, match="the connection broke"):
        push_blob(upstream_of(double), Payload(LARGE))
    assert len(double.requests_to("", "PATCH")) == 5


def test_breaks_with_progress_between_them_are_no_reason_to_give_up(
    double: ScriptedUpstream,
) -> None:
    double.add_rule(Rule(method="PATCH", receive_only=400_000, times=8))
    payload = Payload(LARGE)
    push_blob(upstream_of(double), payload)
    assert arrived(double, payload)


def test_a_registry_that_loses_the_upload_gets_it_from_the_first_byte(
    double: ScriptedUpstream,
) -> None:
    def lose(request: RecordedRequest) -> bool:
        if request.path.endswith("/1") and request.query == "state=3":
            double.uploads.lose_all()
            return True
        return False

    double.add_rule(Rule(method="PATCH", times=1, when=lose, status=404))
    payload = Payload(LARGE)
    push_blob(upstream_of(double), payload)
    assert arrived(double, payload)
    assert payload.opened == [0, 0]
    assert len(double.requests_to("/uploads/$", "POST")) == 2


def test_a_registry_that_loses_every_upload_is_given_up(double: ScriptedUpstream) -> None:
    double.add_rule(Rule(method="PATCH", status=404))
    with pytest.raises(UpstreamMissing, match=f"{REPOSITORY}: .*404.* loses uploads"):
        push_blob(upstream_of(double), Payload(LARGE))
    assert len(double.requests_to("/uploads/$", "POST")) == 4


def test_an_upload_whose_last_answer_was_lost_is_not_repeated(double: ScriptedUpstream) -> None:
    payload = Payload(LARGE)

    def finish(_: object) -> bool:
        double.add_blob(REPOSITORY, LARGE)
        double.uploads.lose_all()
        return True

    double.add_rule(Rule(method="PUT", times=1, when=finish, close_before_answer=True))
    push_blob(upstream_of(double), payload)
    assert payload.opened == [0]
    assert len(double.requests_to("/uploads/$", "POST")) == 1


def test_a_chunk_that_does_not_fit_makes_us_ask_what_the_registry_has(
    double: ScriptedUpstream,
) -> None:
    double.add_rule(Rule(method="PATCH", skip=1, times=1, status=416))
    payload = Payload(LARGE)
    push_blob(upstream_of(double), payload)
    assert arrived(double, payload)
    assert len(double.requests_to("/uploads/", "GET")) == 1


def test_a_source_that_fails_ends_the_push_with_its_own_error(double: ScriptedUpstream) -> None:
    class Broken(Exception):
        pass

    @asynccontextmanager
    async def open_at(start: int) -> AsyncIterator[AsyncIterator[bytes]]:
        async def pieces() -> AsyncIterator[bytes]:
            yield bytes(CHUNK + 1)
            raise Broken("the disk")

        yield pieces()

    async def work(pusher: RegistryPusher) -> None:
        with pytest.raises(Broken, match="the disk"):
            await pusher.push_blob(REPOSITORY, Digest.of(b""), 8 * CHUNK, open_at)

    push(upstream_of(double), work)
    assert (double.uploads.cancelled, double.uploads.under_way()) == (1, 0)


def test_a_source_whose_registry_fails_is_not_mistaken_for_the_target(
    double: ScriptedUpstream,
) -> None:
    def open_at(start: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        raise UpstreamUnavailable("the source's registry is away")

    async def work(pusher: RegistryPusher) -> None:
        with pytest.raises(UpstreamUnavailable, match="the source's registry"):
            await pusher.push_blob(REPOSITORY, Digest.of(b""), 8 * CHUNK, open_at)

    push(upstream_of(double), work)
    assert double.requests_to("/uploads/", "GET") == []


# --- manifests ---


@pytest.mark.parametrize("reference", ["latest", str(Digest.of(MANIFEST))], ids=["tag", "digest"])
def test_a_manifest_is_put_with_its_exact_bytes_and_media_type(
    double: ScriptedUpstream, reference: str
) -> None:
    digest = push(
        upstream_of(double),
        lambda pusher: pusher.push_manifest(REPOSITORY, reference, MANIFEST, OCI_MANIFEST),
    )
    assert digest == Digest.of(MANIFEST)
    assert double.manifest(REPOSITORY, reference) == (MANIFEST, OCI_MANIFEST)


def test_a_manifest_that_is_refused_says_why(double: ScriptedUpstream) -> None:
    body = {"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown"}]}
    double.add_rule(Rule(method="PUT", status=404, body=json.dumps(body).encode()))
    with pytest.raises(UpstreamMissing, match=r"latest to .* \(MANIFEST_BLOB_UNKNOWN: blob"):
        push(
            upstream_of(double),
            lambda pusher: pusher.push_manifest(REPOSITORY, "latest", MANIFEST, OCI_MANIFEST),
        )


# --- deadlines ---


async def _takes_slowly(
    deadlines: Deadlines, bytes_a_second: float, payload: Payload
) -> RegistryError:
    """Push to a server that reads an upload at a rate, after it has begun it at once."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 202 Accepted\r\nLocation: /upload\r\nContent-Length: 0\r\n\r\n")
        try:
            await reader.readuntil(b"\r\n\r\n")
            while bytes_a_second:
                await asyncio.sleep(64 * 1024 / bytes_a_second)
                if not await reader.read(64 * 1024):
                    break
            await ended.wait()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    ended = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=64 * 1024)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    upstream = Upstream(host, f"http://{host}", allow_private=True, deadlines=deadlines)
    pusher = RegistryPusher(upstream, chunk_size=64 * CHUNK)
    try:
        with pytest.raises(RegistryError) as raised:
            await pusher.push_blob(
                REPOSITORY, payload.digest, len(payload.content), payload.open_at
            )
        return raised.value
    finally:
        await pusher.aclose()
        ended.set()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(("rate", "key"), [(0.0, "stall"), (2.0 * CHUNK, "stall_rate")])
def test_a_registry_that_takes_too_little_is_given_up_by_the_deadlines_name(
    rate: float, key: str
) -> None:
    deadlines = Deadlines(connect=2.0, first_byte=60.0, stall=1.0, stall_rate=8 * CHUNK)
    error = asyncio.run(_takes_slowly(deadlines, rate, Payload(bytes(48 * CHUNK))))
    assert isinstance(error, UpstreamDeadline)
    assert error.key == key
    assert "took" in str(error)


def test_a_source_that_is_slow_is_no_stall_of_the_registry(double: ScriptedUpstream) -> None:
    payload = Payload(SMALL)

    @asynccontextmanager
    async def open_at(start: int) -> AsyncIterator[AsyncIterator[bytes]]:
        async def pieces() -> AsyncIterator[bytes]:
            await asyncio.sleep(1.0)
            yield SMALL

        yield pieces()

    deadlines = Deadlines(connect=0.2, first_byte=0.2, stall=0.3, stall_rate=1024)

    async def work(pusher: RegistryPusher) -> None:
        await pusher.push_blob(REPOSITORY, payload.digest, len(SMALL), open_at)

    push(upstream_of(double, deadlines=deadlines), work)
    assert arrived(double, payload)


def test_a_registry_may_take_long_to_put_a_large_blob_in_its_place(
    double: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.registry.upload.COMMIT_RATE", 2 * CHUNK)
    double.add_rule(Rule(method="PUT", delay=1.5))
    deadlines = Deadlines(connect=0.2, first_byte=0.2, stall=0.3, stall_rate=1024)
    payload = Payload(LARGE)
    push_blob(upstream_of(double, deadlines=deadlines), payload)
    assert arrived(double, payload)
    small = Payload(SMALL)
    with pytest.raises(UpstreamDeadline, match=r"deadlines\.first_byte"):
        push_blob(upstream_of(double, deadlines=deadlines), small)


def test_a_blob_goes_over_tls_as_it_goes_without(authority: Authority) -> None:
    with ScriptedUpstream(certificate=authority.issue("localhost"), name="localhost") as double:
        payload = Payload(LARGE)
        push_blob(upstream_of(double, ca_file=authority.ca_file), payload)
        assert arrived(double, payload)
        double.add_rule(Rule(method="PATCH", skip=1, times=1, receive_only=300_000))
        payload = Payload(LARGE[1:])
        push_blob(upstream_of(double, ca_file=authority.ca_file), payload)
        assert arrived(double, payload)


# --- a real registry ---


def real(registry: Registry, directory: Path) -> Upstream:
    login = None
    if registry.account is not None:
        login = Credentials(file=write(directory / "login", str(registry.account)))
    return Upstream(
        registry.host,
        registry.url,
        credentials=login,
        access="shared" if login else "anonymous",
        allow_private=True,
        # An object storage that has just been started takes its time for the first blob.
        deadlines=Deadlines(first_byte=30.0),
        realm_hosts=("127.0.0.1",) if isinstance(registry.access, TokenServer) else (),
    )


def test_docker_registry_takes_blobs_and_manifests(any_registry: Registry, tmp_path: Path) -> None:
    large, small = Payload(LARGE), Payload(b"{}")
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(small, "application/vnd.oci.image.config.v1+json"),
            "layers": [_descriptor(large, "application/vnd.oci.image.layer.v1.tar")],
        }
    ).encode()

    async def work(pusher: RegistryPusher) -> None:
        for repository, source in ((OTHER, None), (REPOSITORY, OTHER)):
            for payload in (large, small):
                assert not await pusher.has_blob(repository, payload.digest)
                await pusher.push_blob(
                    repository,
                    payload.digest,
                    len(payload.content),
                    payload.open_at,
                    source=source,
                )
                assert await pusher.has_blob(repository, payload.digest)
            digest = await pusher.push_manifest(repository, "latest", manifest, OCI_MANIFEST)
            assert digest == Digest.of(manifest)

    push(real(any_registry, tmp_path), work)
    # From the second repository on both were mounted.
    assert (large.opened, small.opened) == ([0], [0])


def test_docker_registry_without_our_account_takes_nothing(
    make_registry: MakeRegistry, tmp_path: Path
) -> None:
    registry = make_registry("htpasswd")
    upstream = Upstream(registry.host, registry.url, allow_private=True, deadlines=QUICK)
    with pytest.raises(PushRefused, match=f"give upstreams.{registry.host} credentials"):
        push_blob(upstream, Payload(SMALL))


def _descriptor(payload: Payload, media_type: str) -> dict[str, object]:
    return {
        "mediaType": media_type,
        "digest": str(payload.digest),
        "size": len(payload.content),
    }
