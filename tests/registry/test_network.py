"""Redirects, addresses, TLS, proxies, deadlines, and what may be seen in a log."""

import logging
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.registry.client import RegistryClient
from headstart.registry.errors import (
    RefusedTarget,
    RegistryError,
    UpstreamDeadline,
    UpstreamUnavailable,
)
from headstart.registry.upstream import Credentials, Deadlines
from tests.doubles.black_hole import black_hole, refused_port
from tests.doubles.certificates import Authority
from tests.doubles.connect_proxy import ConnectProxy
from tests.doubles.scripted_upstream import Rule, ScriptedUpstream, TokenService
from tests.registry.upstreams import REPOSITORY, leaks, upstream_of, use, write

PAYLOAD = b"payload" * 1000


def add_blob(double: ScriptedUpstream) -> Digest:
    return Digest.parse(double.add_blob(REPOSITORY, PAYLOAD))


def ask(digest: Digest) -> Callable[[RegistryClient], Awaitable[bytes]]:
    async def work(client: RegistryClient) -> bytes:
        async with client.stream_blob(REPOSITORY, digest, 0) as pieces:
            return b"".join([piece async for piece in pieces])

    return work


class Names:
    """A resolver with its own answers, which are used up one after the other."""

    def __init__(self, **names: list[str] | list[list[str]]) -> None:
        self._names = names
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self._names[host.replace(".", "_")]
        if isinstance(answers[0], list):
            answer = answers[0]
            if len(answers) > 1:
                del answers[0]
            return answer
        return [str(address) for address in answers]


# --- redirects ---


def test_the_authorization_stays_at_its_origin(
    double: ScriptedUpstream, storage: ScriptedUpstream
) -> None:
    double.access = TokenService()
    double.redirect_blobs(storage)
    digest = add_blob(double)
    assert use(upstream_of(double), ask(digest)) == PAYLOAD
    assert any(request.authorization for request in double.requests)
    assert [request.authorization for request in storage.requests] == [None]


def test_nobody_leads_us_back_with_our_credentials(
    double: ScriptedUpstream, storage: ScriptedUpstream
) -> None:
    double.access = TokenService()
    digest = add_blob(double)
    double.add_rule(
        Rule(
            path="/blobs/",
            when=lambda request: request.authorization is not None,
            status=307,
            location=lambda _: storage.url + "/back",
        )
    )
    storage.add_rule(Rule(status=307, location=lambda _: double.url + "/v2/private/tags/list"))
    with pytest.raises(RegistryError):
        use(upstream_of(double), ask(digest))
    back = double.requests_to("private")
    assert back
    assert {request.authorization for request in back} == {None}


@pytest.mark.parametrize("expired_status", [400, 403])
def test_a_signed_url_that_has_expired_is_resolved_again(
    double: ScriptedUpstream, storage: ScriptedUpstream, expired_status: int
) -> None:
    double.redirect_blobs(storage, expired_status=expired_status)
    digest = add_blob(double)
    storage.add_rule(Rule(times=1, status=expired_status))
    assert use(upstream_of(double), ask(digest)) == PAYLOAD
    assert len(double.requests) == 2


def test_signed_urls_that_are_never_good_are_asked_for_a_few_times(
    double: ScriptedUpstream, storage: ScriptedUpstream
) -> None:
    double.redirect_blobs(storage, lifetime=0.0)
    digest = add_blob(double)
    with pytest.raises(UpstreamUnavailable, match="signed URL") as refusal:
        use(upstream_of(double), ask(digest))
    assert not leaks([str(refusal.value)])
    assert len(storage.requests) == 3


def test_a_signature_is_sent_byte_for_byte(
    double: ScriptedUpstream, storage: ScriptedUpstream
) -> None:
    query = "sig=a%2fb%2B+'(x)'[1]{2}|^`~:@!$*,;=?/%7e&e="
    double.add_rule(Rule(status=307, location=lambda _: f"{storage.url}/o//p/../q?{query}"))
    storage.add_rule(Rule(body=PAYLOAD))
    assert use(upstream_of(double), ask(Digest.of(PAYLOAD))) == PAYLOAD
    assert (storage.requests[0].path, storage.requests[0].query) == ("/o//p/../q", query)


def test_redirect_loops_are_bounded(double: ScriptedUpstream) -> None:
    double.add_rule(Rule(status=302, location=lambda request: f"{request.path}x"))
    with pytest.raises(RefusedTarget, match="redirects"):
        use(upstream_of(double), ask(Digest.of(b"")))
    assert len(double.requests) == 6


def test_https_is_not_left_for_http(authority: Authority, storage: ScriptedUpstream) -> None:
    with ScriptedUpstream(certificate=authority.issue()) as double:
        double.redirect_blobs(storage)
        digest = add_blob(double)
        with pytest.raises(RefusedTarget, match="https to http") as refusal:
            use(upstream_of(double, ca_file=authority.ca_file), ask(digest))
    assert not leaks([str(refusal.value)])
    assert storage.requests == []


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        "http://metadata.example/",
        "http://0/",
    ],
)
def test_redirects_into_the_machine_or_its_cloud_are_refused(
    double: ScriptedUpstream, location: str
) -> None:
    names = Names(**{"127_0_0_1": ["127.0.0.1"], "metadata_example": ["169.254.169.254"]})
    names._names["0"] = ["0.0.0.0"]
    double.add_rule(Rule(status=307, location=lambda _: location))
    with pytest.raises(RefusedTarget):
        use(upstream_of(double), ask(Digest.of(b"")), resolve_host=names)


# --- addresses ---


def test_the_checked_address_is_connected_to_and_host_and_server_name_are_kept(
    authority: Authority,
) -> None:
    certificate = authority.issue("registry.example")
    with ScriptedUpstream(certificate=certificate, name="registry.example") as double:
        digest = add_blob(double)
        names = Names(registry_example=[["127.0.0.1"], ["169.254.169.254"]])
        upstream = upstream_of(double, ca_file=authority.ca_file)
        assert use(upstream, ask(digest), resolve_host=names) == PAYLOAD
        assert names.asked == ["registry.example"]
        assert double.requests[0].headers["host"] == f"registry.example:{double.port}"
        assert double.requests[0].server_name == "registry.example"


def test_a_name_that_leads_to_loopback_is_refused_unless_it_is_allowed(
    double: ScriptedUpstream,
) -> None:
    digest = add_blob(double)
    for url in (f"http://registry.example:{double.port}", double.url):
        upstream = upstream_of(double, url=url, allow_private=False)
        names = Names(registry_example=["127.0.0.1"])
        with pytest.raises(RefusedTarget, match="allow_private"):
            use(upstream, ask(digest), resolve_host=names)
    assert double.connections == 0


def test_of_several_addresses_the_allowed_and_living_one_is_used(
    double: ScriptedUpstream,
) -> None:
    digest = add_blob(double)
    names = Names(registry_example=["169.254.169.254", "127.0.0.9", "::1", "127.0.0.1"])
    upstream = upstream_of(double, url=f"http://registry.example:{double.port}")
    assert use(upstream, ask(digest), resolve_host=names) == PAYLOAD


# --- nobody there ---


def test_a_refused_connection_and_an_unknown_name_fail_soon(double: ScriptedUpstream) -> None:
    for url in (f"http://127.0.0.1:{refused_port()}", "http://no-such-name.invalid"):
        started = time.monotonic()
        with pytest.raises(UpstreamUnavailable):
            use(upstream_of(double, url=url), ask(Digest.of(b"")))
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("deadlines", "key"),
    [
        (Deadlines(connect=0.3, first_byte=5, stall=5), "connect"),
        (Deadlines(connect=5, first_byte=0.3, stall=5), "first_byte"),
        (Deadlines(connect=5, first_byte=0.2, stall=0.2), "stall"),
    ],
)
def test_each_wait_has_a_deadline_of_its_own_name(
    double: ScriptedUpstream, deadlines: Deadlines, key: str
) -> None:
    if key == "stall":
        double.add_rule(Rule(delay=0.15, status=307, location=lambda request: request.path))
    else:
        double.add_rule(Rule(delay=float("inf")))
    with black_hole() as port:
        url = f"http://127.0.0.1:{port}" if key == "connect" else double.url
        upstream = upstream_of(double, url=url, deadlines=deadlines)
        started = time.monotonic()
        with pytest.raises(UpstreamDeadline) as refusal:
            use(upstream, lambda client: client.get_manifest(REPOSITORY, "latest", "*/*"))
    assert refusal.value.key == key
    assert refusal.value.value == getattr(deadlines, key)
    assert 0.25 < time.monotonic() - started < 2


def test_a_head_that_comes_in_drops_meets_a_deadline(double: ScriptedUpstream) -> None:
    digest = add_blob(double)
    double.add_rule(Rule(head_rate=50.0))
    deadlines = Deadlines(connect=0.1, first_byte=0.2, stall=5)
    with pytest.raises(UpstreamDeadline) as refusal:
        use(upstream_of(double, deadlines=deadlines), ask(digest))
    assert refusal.value.key == "first_byte"


# --- TLS ---


@pytest.mark.parametrize("flaw", ["untrusted", "expired", "name"])
def test_a_certificate_with_a_flaw_is_refused_at_once(
    authority: Authority, tmp_path: Path, flaw: str
) -> None:
    issuer = Authority(tmp_path) if flaw == "untrusted" else authority
    names = ["other.example"] if flaw == "name" else []
    certificate = issuer.issue(*names, expired=flaw == "expired")
    with ScriptedUpstream(certificate=certificate) as double:
        digest = add_blob(double)
        with pytest.raises(UpstreamUnavailable, match="certificate is refused"):
            use(upstream_of(double, ca_file=authority.ca_file), ask(digest))
        assert double.requests == []
        assert double.connections == 1


def test_a_server_that_speaks_no_tls_is_unavailable(double: ScriptedUpstream) -> None:
    upstream = upstream_of(double, url=f"https://127.0.0.1:{double.port}")
    with pytest.raises(UpstreamUnavailable):
        use(upstream, ask(Digest.of(b"")))


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_ca_file_that_is_none_is_named(
    double: ScriptedUpstream, tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        write(path, text)
    with pytest.raises(UpstreamUnavailable, match=r"ca\.pem"):
        use(upstream_of(double, ca_file=path), ask(Digest.of(b"")))


# --- proxies ---


def test_http_goes_through_the_proxy_which_resolves_the_name(
    double: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{double.port}")
    digest = add_blob(double)
    upstream = upstream_of(double, url="http://registry.example", allow_private=False)
    names = Names()
    assert use(upstream, ask(digest), resolve_host=names) == PAYLOAD
    assert names.asked == []
    assert double.requests[0].headers["host"] == "registry.example"
    assert "proxy-authorization" in double.requests[0].headers


def test_https_is_tunnelled_and_the_certificate_is_the_upstreams(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = authority.issue("registry.example")
    with (
        ScriptedUpstream(certificate=certificate, name="registry.example") as double,
        ConnectProxy({double.host: double.port}) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{proxy.port}")
        double.access = TokenService()
        digest = add_blob(double)
        upstream = upstream_of(double, ca_file=authority.ca_file)
        assert use(upstream, ask(digest)) == PAYLOAD
        assert double.requests[0].server_name == "registry.example"
        assert all("\r\nproxy-authorization: " in head.lower() for head in proxy.heads)
        assert "Bearer" not in "".join(proxy.heads)
        monkeypatch.setenv("NO_PROXY", "registry.example")
        names = Names(registry_example=["127.0.0.1"])
        heads = len(proxy.heads)
        assert use(upstream, ask(digest), resolve_host=names) == PAYLOAD
        assert len(proxy.heads) == heads


def test_a_proxy_that_refuses_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, double: ScriptedUpstream
) -> None:
    with ConnectProxy({}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{proxy.port}")
        upstream = upstream_of(double, url="https://registry.example")
        with pytest.raises(UpstreamUnavailable, match=r"proxy 127\.0\.0\.1") as refusal:
            use(upstream, ask(Digest.of(b"")))
    assert not leaks([str(refusal.value)])


@pytest.mark.parametrize("url", ["http://169.254.169.254", "http://127.0.0.1:1"])
def test_literal_addresses_are_checked_in_front_of_a_proxy_too(
    double: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("http_proxy", double.url)
    with pytest.raises(RefusedTarget):
        use(upstream_of(double, url=url, allow_private=False), ask(Digest.of(b"")))
    assert double.requests == []


# --- logs ---


def test_no_log_and_no_traceback_shows_a_token_or_a_signature(
    double: ScriptedUpstream,
    storage: ScriptedUpstream,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "httpcore.http11", "httpcore.connection"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    double.access = TokenService(credentials=("robot", "secret-password"))
    double.redirect_blobs(storage)
    digest = add_blob(double)
    upstream = upstream_of(
        double,
        access="shared",
        credentials=Credentials(file=write(tmp_path / "login", "robot:secret-password")),
    )
    shown: list[str] = []
    failing = [
        Rule(times=1, close_after=10),
        Rule(times=9, status=403),
        Rule(times=9, range_shift=3, status=307, headers={"Location": "http://0.0.0.0/?secret"}),
        Rule(times=9, close_before_answer=True),
    ]

    async def work(client: RegistryClient) -> None:
        for rule in [None, *failing]:
            storage.clear_rules()
            if rule is not None:
                storage.add_rule(rule)
            try:
                await ask(digest)(client)
            except RegistryError as error:
                shown.extend(traceback.format_exception(error))
        storage.clear_rules()
        assert await client.head_blob(REPOSITORY, digest) == len(PAYLOAD)

    try:
        use(upstream, work)
    finally:
        for name in ("httpx", "httpcore", "httpcore.http11", "httpcore.connection"):
            logging.getLogger(name).setLevel(logging.NOTSET)
    assert any("RefusedTarget" in line for line in shown)
    records = [record.getMessage() for record in caplog.records]
    assert any("/blobs/" in line for line in records)
    assert not leaks(line for line in records if not line.startswith("Using selector"))
    assert not leaks(line for line in shown if not line.lstrip().startswith("File"))
