"""Inline xattrs: what is written, left out and refused."""

import struct

import pytest

from headstart.content.erofs.errors import Inexpressible
from headstart.content.erofs.xattrs import inline_xattrs, xattr_count


def read(body: bytes) -> dict[tuple[int, bytes], bytes]:
    """(prefix number, rest of the name) -> value."""
    found = {}
    at = 12
    assert body[:at] == bytes(at)
    while at < len(body):
        name_length, prefix, value_length = struct.unpack_from("<BBH", body, at)
        start = at + 4 + name_length
        found[prefix, body[at + 4 : start]] = body[start : start + value_length]
        at = start + value_length
        at += -at % 4
    return found


def test_prefixes_become_numbers() -> None:
    body = inline_xattrs(
        {
            b"user.a": b"1",
            b"trusted.overlay.opaque": b"y",
            b"security.capability": b"\0\1\2",
            b"system.posix_acl_access": b"access",
            b"system.posix_acl_default": b"",
        }
    )
    assert read(body) == {
        (1, b"a"): b"1",
        (4, b"overlay.opaque"): b"y",
        (6, b"capability"): b"\0\1\2",
        (2, b""): b"access",
        (3, b""): b"",
    }


def test_the_order_of_setting_does_not_show() -> None:
    xattrs = {b"user.b": b"1", b"user.a": b"2", b"security.c": b"3"}
    assert inline_xattrs(xattrs) == inline_xattrs(dict(reversed(xattrs.items())))


@pytest.mark.parametrize("size", range(9))
def test_the_count_says_the_length_in_units_of_four(size: int) -> None:
    body = inline_xattrs({b"user.a": bytes(size)})
    assert len(body) == 12 + 4 * (xattr_count(body) - 1)


def test_names_that_linux_has_no_namespace_for_are_left_out() -> None:
    foreign: dict[bytes, bytes] = {
        b"com.apple.quarantine": b"x",
        b"system.nfs4_acl": b"x",
        b"plain": b"x",
        b"n" * 300: b"x",
    }
    assert inline_xattrs(foreign) == b""
    assert xattr_count(b"") == 0
    assert read(inline_xattrs({**foreign, b"user.a": b"1"})) == {(1, b"a"): b"1"}


@pytest.mark.parametrize(
    ("xattrs", "reason"),
    [
        ({b"user.": b""}, "no name after user."),
        ({b"user." + b"n" * 251: b""}, "256 bytes"),
        ({b"user.a\0b": b""}, "zero"),
        ({b"user.a": bytes(1 << 16)}, "65536 bytes"),
        ({b"user.%d" % number: bytes(65000) for number in range(5)}, "too many"),
    ],
)
def test_what_cannot_be_written_is_refused(xattrs: dict[bytes, bytes], reason: str) -> None:
    with pytest.raises(Inexpressible, match=reason):
        inline_xattrs(xattrs)


def test_the_longest_that_can_be_written() -> None:
    name = b"user." + b"n" * 250
    body = inline_xattrs({name: bytes((1 << 16) - 1)})
    assert read(body) == {(1, name[5:]): bytes((1 << 16) - 1)}
