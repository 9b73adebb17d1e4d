"""Which Locations are followed, which origins are one, and what is shown of a URL."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.registry.errors import RefusedTarget
from headstart.registry.redirect import check_redirect, origin, printable_url, same_origin

SOURCE = "https://registry.example.com/v2/a/blobs/x"


@pytest.mark.parametrize(
    ("location", "absolute"),
    [
        ("https://s3.example.net/o?X-Sig=a%2Fb&c=d", "https://s3.example.net/o?X-Sig=a%2Fb&c=d"),
        ("/other?q=1", "https://registry.example.com/other?q=1"),
        ("//cdn.example.net/x", "https://cdn.example.net/x"),
        ("https://s3.example.net/o#fragment", "https://s3.example.net/o"),
        ("https://[2001:db8::1]:8443/o", "https://[2001:db8::1]:8443/o"),
        ("https://s3.example.net/ä", "https://s3.example.net/%C3%A4"),
    ],
)
def test_locations_become_absolute_and_keep_their_query(location: str, absolute: str) -> None:
    assert check_redirect(SOURCE, location) == absolute


@pytest.mark.parametrize(
    "location",
    [
        "",
        "http://s3.example.net/o",
        "ftp://s3.example.net/o",
        "file:///etc/passwd",
        "gopher://s3.example.net/",
        "https://user:secret@s3.example.net/o",
        "https://good.example.com\\@evil.example.net/o",
        "https://s3.example.net/o\r\nAuthorization: x",
        "https://s3.example.net /o",
        "https://s3.example.net:99999/o",
        "https://s3.example.net:x/o",
        "https://[::1/o",
        "https://exämple.net/o",
    ],
)
def test_doubtful_locations_are_refused_without_being_repeated_in_full(location: str) -> None:
    with pytest.raises(RefusedTarget) as refusal:
        check_redirect(SOURCE, location)
    assert "secret" not in str(refusal.value)


def test_an_http_source_may_lead_to_http_and_https() -> None:
    source = "http://127.0.0.1:5000/v2/"
    assert check_redirect(source, "http://s3.example.net/o") == "http://s3.example.net/o"
    assert check_redirect(source, "https://s3.example.net/o") == "https://s3.example.net/o"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("https://a.example/x", "https://A.example:443/y", True),
        ("https://a.example/", "https://a.example:8443/", False),
        ("https://a.example/", "http://a.example/", False),
        ("https://a.example/", "https://b.example/", False),
        ("http://a.example/", "http://a.example:80/", True),
    ],
)
def test_origins_are_scheme_host_and_port(first: str, second: str, same: bool) -> None:
    assert same_origin(first, second) is same


def test_printable_urls_show_neither_query_nor_credentials() -> None:
    shown = printable_url(
        "https://user:secret@s3.example.net:8443/o/p?X-Amz-Signature=secret#secret"
    )
    assert shown == "https://s3.example.net:8443/o/p"


@given(st.text(max_size=80))
def test_any_location_gives_an_http_url_or_a_refusal(location: str) -> None:
    try:
        target = check_redirect(SOURCE, location)
    except RefusedTarget:
        return
    assert origin(target)[0] == "https"
    assert target.isascii()
