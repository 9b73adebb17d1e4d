"""Bearer, Basic and anonymous access against a real token service on a real socket."""

import asyncio
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.registry.client import RegistryClient
from headstart.registry.errors import RefusedTarget, UpstreamDenied, UpstreamProtocol
from headstart.registry.upstream import Credentials
from tests.doubles.certificates import Authority
from tests.doubles.scripted_upstream import (
    BasicAccess,
    Rule,
    ScriptedUpstream,
    TokenService,
    basic_authorization,
)
from tests.registry.upstreams import REPOSITORY, authorizations, leaks, upstream_of, use, write

PAYLOAD = b"payload" * 1000
LOGIN = ("robot", "secret-password")


def add_blob(double: ScriptedUpstream, repository: str = REPOSITORY) -> Digest:
    return Digest.parse(double.add_blob(repository, PAYLOAD))


def login_file(directory: Path, password: str = LOGIN[1]) -> Credentials:
    return Credentials(file=write(directory / "login", f"{LOGIN[0]}:{password}\n"))


def challenge(double: ScriptedUpstream) -> list[str]:
    assert double.access is not None
    return [double.access.challenge(double.url, REPOSITORY)]


def test_an_anonymous_token_is_fetched_once_and_kept(double: ScriptedUpstream) -> None:
    service = double.access = TokenService()
    digest = add_blob(double)

    async def work(client: RegistryClient) -> None:
        assert await client.blob_authorization(REPOSITORY) is None
        for _ in range(3):
            assert await client.head_blob(REPOSITORY, digest) == len(PAYLOAD)
        assert await client.blob_authorization(REPOSITORY) == f"Bearer {service.issued[0].text}"

    use(upstream_of(double), work)
    assert len(service.issued) == 1
    assert service.issued[0].scope == f"repository:{REPOSITORY}:pull"
    assert [request.status for request in double.requests_to("/blobs/")] == [401, 200, 200, 200]
    assert authorizations(double, "^/token") == {None}


def test_the_next_repository_gets_its_token_without_a_refusal(double: ScriptedUpstream) -> None:
    double.access = TokenService()
    first, second = add_blob(double), add_blob(double, "other/app")

    async def work(client: RegistryClient) -> None:
        await client.head_blob(REPOSITORY, first)
        await client.head_blob("other/app", second)

    use(upstream_of(double), work)
    assert [request.status for request in double.requests_to("/blobs/")] == [401, 200, 200]


def test_fifty_callers_share_one_renewal(double: ScriptedUpstream) -> None:
    service = double.access = TokenService()
    double.add_rule(Rule(path="^/token", delay=0.05))

    async def work(client: RegistryClient) -> None:
        values = await asyncio.gather(
            *(client.blob_challenged(REPOSITORY, challenge(double), None) for _ in range(50))
        )
        assert set(values) == {f"Bearer {service.issued[0].text}"}
        assert len(service.issued) == 1
        service.revoke()
        again = await asyncio.gather(
            *(client.blob_challenged(REPOSITORY, challenge(double), values[0]) for _ in range(50))
        )
        assert set(again) == {f"Bearer {service.issued[1].text}"}

    use(upstream_of(double), work)
    assert len(service.issued) == 2


def test_who_leaves_does_not_take_the_token_from_others(double: ScriptedUpstream) -> None:
    service = double.access = TokenService()
    double.add_rule(Rule(path="^/token", delay=0.1))

    async def work(client: RegistryClient) -> None:
        tasks = [
            asyncio.create_task(client.blob_challenged(REPOSITORY, challenge(double), None))
            for _ in range(3)
        ]
        await asyncio.sleep(0.02)
        tasks[0].cancel()
        assert await tasks[1] == await tasks[2] == f"Bearer {service.issued[0].text}"
        assert tasks[0].cancelled()

    use(upstream_of(double), work)
    assert len(service.issued) == 1


@pytest.mark.parametrize("name", ["token", "access_token"])
def test_a_token_is_renewed_before_its_announced_end_and_after_an_early_one(
    double: ScriptedUpstream, name: str
) -> None:
    service = double.access = TokenService(field_name=name, announced_lifetime=0.05)
    digest = add_blob(double)

    async def work(client: RegistryClient) -> None:
        await client.head_blob(REPOSITORY, digest)
        await asyncio.sleep(0.06)
        await client.head_blob(REPOSITORY, digest)
        assert [request.status for request in double.requests_to("/blobs/")] == [401, 200, 200]
        service.announced_lifetime = 300
        await asyncio.sleep(0.06)
        await client.head_blob(REPOSITORY, digest)
        service.revoke()
        await client.head_blob(REPOSITORY, digest)

    use(upstream_of(double), work)
    assert len(service.issued) == 4


def test_tokens_of_one_use_each_are_renewed_for_as_long_as_they_work(
    double: ScriptedUpstream,
) -> None:
    double.access = TokenService(uses=1)
    digest = add_blob(double)

    async def work(client: RegistryClient) -> None:
        for _ in range(8):
            assert await client.head_blob(REPOSITORY, digest) == len(PAYLOAD)

    use(upstream_of(double), work)


def test_a_loop_of_401_is_bounded_and_says_nothing_secret(double: ScriptedUpstream) -> None:
    service = double.access = TokenService(uses=0)
    digest = add_blob(double)

    async def work(client: RegistryClient) -> None:
        with pytest.raises(UpstreamDenied) as refusal:
            await client.head_blob(REPOSITORY, digest)
        assert not leaks([str(refusal.value)])
        assert "WWW-Authenticate" not in str(refusal.value)

    use(upstream_of(double), work)
    assert 1 <= len(service.issued) <= 4


def test_a_loop_of_slow_refusals_is_bounded_too(
    double: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.registry.authorization.FRESH_SECONDS", 0.0)
    service = double.access = TokenService(uses=0)
    digest = add_blob(double)
    with pytest.raises(UpstreamDenied):
        use(upstream_of(double), lambda client: client.head_blob(REPOSITORY, digest))
    assert len(service.issued) == 3


def test_whoever_fetches_blobs_elsewhere_is_stopped_in_a_loop_too(double: ScriptedUpstream) -> None:
    service = double.access = TokenService()

    async def work(client: RegistryClient) -> None:
        used: str | None = None
        with pytest.raises(UpstreamDenied):
            for _ in range(10):
                used = await client.blob_challenged(REPOSITORY, challenge(double), used)

    use(upstream_of(double), work)
    assert len(service.issued) <= 4


def test_credentials_are_shown_to_the_realm_and_the_token_to_the_registry(
    double: ScriptedUpstream, tmp_path: Path
) -> None:
    service = double.access = TokenService(credentials=LOGIN)
    digest = add_blob(double)
    upstream = upstream_of(double, credentials=login_file(tmp_path), access="shared")
    size = use(upstream, lambda client: client.head_blob(REPOSITORY, digest))
    assert size == len(PAYLOAD)
    assert authorizations(double, "^/token") == {basic_authorization(*LOGIN)}
    assert authorizations(double, "^/v2/") == {None, f"Bearer {service.issued[0].text}"}


def test_configured_credentials_stay_unused_without_shared_access(
    double: ScriptedUpstream, tmp_path: Path
) -> None:
    double.access = TokenService(credentials=LOGIN)
    digest = add_blob(double)
    upstream = upstream_of(double, credentials=login_file(tmp_path), access="anonymous")
    with pytest.raises(UpstreamDenied):
        use(upstream, lambda client: client.head_blob(REPOSITORY, digest))
    assert authorizations(double) == {None}


def test_an_identity_token_is_exchanged_by_post(double: ScriptedUpstream, tmp_path: Path) -> None:
    double.access = TokenService(credentials=("x", "y"), refresh_token="secret-identity")
    digest = add_blob(double)
    config = f'{{"auths": {{"{double.host}": {{"identitytoken": "secret-identity"}}}}}}'
    credentials = Credentials(docker_config=write(tmp_path / "config.json", config))
    upstream = upstream_of(double, credentials=credentials, access="shared")
    assert use(upstream, lambda client: client.head_blob(REPOSITORY, digest)) == len(PAYLOAD)
    assert [request.method for request in double.requests_to("^/token")] == ["POST"]
    assert double.requests_to("^/token")[0].query == ""


def test_basic_is_sent_only_once_it_is_asked_for(double: ScriptedUpstream, tmp_path: Path) -> None:
    double.access = BasicAccess(*LOGIN)
    digest = add_blob(double)
    upstream = upstream_of(double, credentials=login_file(tmp_path), access="shared")

    async def work(client: RegistryClient) -> None:
        assert await client.blob_authorization(REPOSITORY) is None
        await client.head_blob(REPOSITORY, digest)
        assert await client.blob_authorization("other/app") == basic_authorization(*LOGIN)

    use(upstream, work)
    sent = [request.authorization for request in double.requests]
    assert sent == [None, basic_authorization(*LOGIN)]


def test_wrong_basic_credentials_are_tried_once(double: ScriptedUpstream, tmp_path: Path) -> None:
    double.access = BasicAccess(*LOGIN)
    digest = add_blob(double)
    credentials = login_file(tmp_path, "wrong-secret")
    upstream = upstream_of(double, credentials=credentials, access="shared")
    with pytest.raises(UpstreamDenied) as refusal:
        use(upstream, lambda client: client.head_blob(REPOSITORY, digest))
    assert not leaks([str(refusal.value)])
    assert len(double.requests) == 2


def test_a_rotated_password_is_read_again(double: ScriptedUpstream, tmp_path: Path) -> None:
    double.access = BasicAccess(*LOGIN)
    digest = add_blob(double)
    upstream = upstream_of(double, credentials=login_file(tmp_path), access="shared")

    async def work(client: RegistryClient) -> None:
        await client.head_blob(REPOSITORY, digest)
        double.access = BasicAccess(LOGIN[0], "rotated")
        login_file(tmp_path, "rotated")
        await client.head_blob(REPOSITORY, digest)

    use(upstream, work)
    assert double.requests[-1].status == 200


def test_each_client_passes_through_with_its_own_credentials(double: ScriptedUpstream) -> None:
    double.access = TokenService(credentials=LOGIN)
    digest = add_blob(double)
    good, bad = basic_authorization(*LOGIN), basic_authorization("robot", "wrong")

    async def work(client: RegistryClient) -> None:
        assert await client.head_blob(REPOSITORY, digest, good) == len(PAYLOAD)
        for refused in (bad, None):
            with pytest.raises(UpstreamDenied):
                await client.head_blob(REPOSITORY, digest, refused)
        assert await client.blob_authorization(REPOSITORY, good) is not None
        assert await client.blob_authorization(REPOSITORY, "Bearer own") == "Bearer own"
        with pytest.raises(UpstreamDenied):
            await client.blob_challenged(REPOSITORY, challenge(double), "Bearer own", "Bearer own")
        with pytest.raises(UpstreamDenied):
            await client.head_blob(REPOSITORY, digest, "Basic a\r\nX-Injected: y")

    use(upstream_of(double, access="passthrough"), work)
    assert not [request for request in double.requests if "x-injected" in request.headers]


@pytest.mark.parametrize(
    ("realm", "error"),
    [
        ("http://realm.example/token", RefusedTarget),
        ("https://realm.example/token", RefusedTarget),
        ("https://169.254.169.254/token", RefusedTarget),
    ],
)
def test_credentials_do_not_leave_for_a_foreign_realm(
    authority: Authority, tmp_path: Path, realm: str, error: type[Exception]
) -> None:
    with ScriptedUpstream(certificate=authority.issue()) as double:
        double.access = TokenService(realm=realm)
        digest = add_blob(double)
        upstream = upstream_of(
            double,
            ca_file=authority.ca_file,
            credentials=login_file(tmp_path),
            access="shared",
        )
        with pytest.raises(error):
            use(upstream, lambda client: client.head_blob(REPOSITORY, digest))
        assert authorizations(double) == {None}


def test_an_anonymous_question_to_a_realm_on_a_metadata_address_is_refused(
    double: ScriptedUpstream,
) -> None:
    double.access = TokenService(realm="http://169.254.169.254/token")
    digest = add_blob(double)
    with pytest.raises(RefusedTarget, match="metadata"):
        use(upstream_of(double), lambda client: client.head_blob(REPOSITORY, digest))


def test_a_realm_that_redirects_gets_no_second_request(
    double: ScriptedUpstream, storage: ScriptedUpstream, tmp_path: Path
) -> None:
    double.access = TokenService(credentials=LOGIN)
    digest = add_blob(double)
    double.add_rule(Rule(path="^/token", status=307, location=lambda _: storage.url + "/token"))
    upstream = upstream_of(double, credentials=login_file(tmp_path), access="shared")
    with pytest.raises(RefusedTarget):
        use(upstream, lambda client: client.head_blob(REPOSITORY, digest))
    assert storage.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"token": 7}',
        b'{"token": "secret\\r\\nX-Injected: y"}',
        b'{"token": ""}',
        b"[" * 100_000,
    ],
    ids=lambda body: body[:12].decode(),
)
def test_a_realm_that_answers_nonsense_is_a_protocol_error(
    double: ScriptedUpstream, body: bytes
) -> None:
    double.access = TokenService()
    digest = add_blob(double)
    double.add_rule(Rule(path="^/token", status=200, body=body))
    with pytest.raises(UpstreamProtocol) as refusal:
        use(upstream_of(double), lambda client: client.head_blob(REPOSITORY, digest))
    assert not leaks([str(refusal.value)])


def test_a_401_without_a_challenge_is_a_denial(double: ScriptedUpstream) -> None:
    digest = add_blob(double)
    double.add_rule(Rule(status=401))
    with pytest.raises(UpstreamDenied):
        use(upstream_of(double), lambda client: client.head_blob(REPOSITORY, digest))
    assert len(double.requests) == 1


def test_a_realm_that_is_down_for_a_moment_is_asked_again(double: ScriptedUpstream) -> None:
    double.access = TokenService()
    digest = add_blob(double)
    double.add_rule(Rule(path="^/token", status=503, times=2))
    size = use(upstream_of(double), lambda client: client.head_blob(REPOSITORY, digest))
    assert size == len(PAYLOAD)
