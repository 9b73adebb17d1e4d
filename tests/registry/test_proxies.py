"""HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY."""

import pytest

from headstart.registry.proxies import ProxySettings


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "https://r.example.com/v2/", None),
        ({"HTTPS_PROXY": "http://p:3128"}, "https://r.example.com/v2/", "http://p:3128"),
        ({"HTTPS_PROXY": "p:3128"}, "https://r.example.com/v2/", "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:3128"}, "http://r.example.com/v2/", None),
        ({"http_proxy": "http://p:3128"}, "http://r.example.com/v2/", "http://p:3128"),
        ({"ALL_PROXY": "http://p:3128"}, "http://r.example.com/v2/", "http://p:3128"),
    ],
)
def test_the_proxy_is_the_one_of_the_scheme(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, proxy: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ProxySettings().proxy_for(url) == proxy


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("*", "http://r.example.com/", True),
        ("example.com", "http://r.example.com/", True),
        (".example.com", "http://r.example.com/", True),
        ("*.example.com", "http://r.example.com/", True),
        ("example.com", "http://notexample.com/", False),
        ("other.com, r.example.com:5000", "http://r.example.com:5000/", True),
        ("r.example.com:5000", "http://r.example.com:5001/", False),
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://11.1.2.3/", False),
        ("0.0.1", "http://127.0.0.1/", False),
        ("127.0.0.1", "http://127.0.0.1:5000/", True),
        ("::1", "http://[::1]:5000/", True),
        ("", "http://r.example.com/", False),
    ],
)
def test_no_proxy_names_hosts_domains_and_networks(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str, direct: bool
) -> None:
    monkeypatch.setenv("http_proxy", "http://p:3128")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert (ProxySettings().proxy_for(url) is None) is direct
