"""Reading WWW-Authenticate, and which realms see credentials."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.registry.challenge import (
    Challenge,
    check_realm,
    parse_challenges,
    registrable_domain,
)
from headstart.registry.errors import RefusedTarget
from headstart.registry.upstream import Upstream

HUB = Upstream("docker.io", "https://registry-1.docker.io")


def test_a_bearer_challenge_is_read_with_its_parameters() -> None:
    value = (
        'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
        'scope="repository:library/alpine:pull,push"'
    )
    assert parse_challenges([value]) == [
        Challenge(
            "bearer",
            {
                "realm": "https://auth.docker.io/token",
                "service": "registry.docker.io",
                "scope": "repository:library/alpine:pull,push",
            },
        )
    ]


@pytest.mark.parametrize(
    ("values", "schemes"),
    [
        (['Bearer realm="a", service=b, Basic realm="c"'], ["bearer", "basic"]),
        (['basic realm="a"', "BEARER realm=b"], ["basic", "bearer"]),
        ([r'Basic realm="a \"quoted\", word"'], ["basic"]),
        (["Negotiate"], ["negotiate"]),
        ([""], []),
        (['="'], []),
    ],
)
def test_several_challenges_are_told_apart(values: list[str], schemes: list[str]) -> None:
    assert [challenge.scheme for challenge in parse_challenges(values)] == schemes


@given(st.text(max_size=200))
def test_any_field_is_read_without_an_error(value: str) -> None:
    for challenge in parse_challenges([value]):
        assert challenge.scheme == challenge.scheme.lower()


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("auth.docker.io", "docker.io"),
        ("docker.io", "docker.io"),
        ("registry.example.co.uk", "example.co.uk"),
        ("co.uk", None),
        ("localhost", None),
        ("10.0.0.1", None),
        ("::1", None),
        ("mine.azurecr.io", "mine.azurecr.io"),
        ("1.dkr.ecr.eu-west-1.amazonaws.com", "1.dkr.ecr.eu-west-1.amazonaws.com"),
    ],
)
def test_registrable_domains_end_where_owners_change(host: str, domain: str | None) -> None:
    assert registrable_domain(host) == domain


@pytest.mark.parametrize(
    ("upstream", "realm"),
    [
        (HUB, "https://auth.docker.io/token"),
        (HUB, "https://docker.io/token"),
        (Upstream("r.example.com", "https://r.example.com:5000"), "https://r.example.com/auth"),
        (Upstream("r", "http://10.0.0.1:5000"), "http://10.0.0.1:5001/auth"),
        (
            Upstream("lscr.io", "https://lscr.io", realm_hosts=("ghcr.io",)),
            "https://ghcr.io/token",
        ),
        (
            Upstream(
                "r.example.com", "https://r.example.com", realm_hosts=("sso.example.net:8443",)
            ),
            "https://sso.example.net:8443/token",
        ),
    ],
)
def test_credentials_go_to_own_related_and_listed_hosts(upstream: Upstream, realm: str) -> None:
    assert check_realm(upstream, realm, with_credentials=True) == realm


@pytest.mark.parametrize(
    ("upstream", "realm"),
    [
        (HUB, "https://auth.docker.io.evil.example/token"),
        (HUB, "https://evildocker.io/token"),
        (HUB, "https://evil.example/token"),
        (Upstream("lscr.io", "https://lscr.io"), "https://ghcr.io/token"),
        (Upstream("a.azurecr.io", "https://a.azurecr.io"), "https://b.azurecr.io/oauth2/token"),
        (
            Upstream("r.example.com", "https://r.example.com", realm_hosts=("sso.example.net:1",)),
            "https://sso.example.net/token",
        ),
    ],
)
def test_credentials_go_to_no_other_host_but_anonymous_questions_may(
    upstream: Upstream, realm: str
) -> None:
    with pytest.raises(RefusedTarget, match="realm_hosts"):
        check_realm(upstream, realm, with_credentials=True)
    assert check_realm(upstream, realm, with_credentials=False) == realm


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.docker.io/token",
        "https://user@auth.docker.io/token",
        "ftp://auth.docker.io/token",
        "auth.docker.io/token",
        "https://auth.docker.io/token\r\nX: y",
        "https://[::1/token",
        "",
    ],
)
def test_a_realm_that_is_no_https_url_is_refused_for_an_https_upstream(realm: str) -> None:
    with pytest.raises(RefusedTarget):
        check_realm(HUB, realm, with_credentials=False)
