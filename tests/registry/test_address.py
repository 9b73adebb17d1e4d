"""Which addresses may be connected to."""

import asyncio

import pytest

from headstart.registry.address import AddressPolicy, resolve
from headstart.registry.errors import RefusedTarget, UpstreamUnavailable

ALWAYS_REFUSED = [
    "169.254.169.254",
    "169.254.1.1",
    "fd00:ec2::254",
    "168.63.129.16",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "224.0.0.1",
    "ff02::1",
    "fe80::1",
    "fe80::1%eth0",
    "255.255.255.255",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "no address",
]
LOOPBACK = ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"]
ALLOWED = ["10.1.2.3", "172.16.0.1", "192.168.1.1", "fd12:3456::1", "1.1.1.1", "2606:4700::1111"]


@pytest.mark.parametrize("allow_private", [False, True])
@pytest.mark.parametrize("ip", ALWAYS_REFUSED)
def test_link_local_metadata_and_unreal_addresses_are_always_refused(
    ip: str, allow_private: bool
) -> None:
    with pytest.raises(RefusedTarget):
        AddressPolicy(allow_private).check(ip)


@pytest.mark.parametrize("ip", LOOPBACK)
def test_loopback_is_refused_unless_it_is_allowed(ip: str) -> None:
    AddressPolicy(allow_private=True).check(ip)
    with pytest.raises(RefusedTarget, match="this machine"):
        AddressPolicy(allow_private=False).check(ip)


@pytest.mark.parametrize("ip", ALLOWED)
def test_public_and_private_networks_are_allowed(ip: str) -> None:
    policy = AddressPolicy(allow_private=False)
    policy.check(ip)
    with pytest.raises(RefusedTarget):
        policy.check("169.254.0.1")


def test_only_literal_addresses_are_checked_before_dns() -> None:
    policy = AddressPolicy(allow_private=False)
    policy.check_host("localhost")
    with pytest.raises(RefusedTarget):
        policy.check_host("127.0.0.1")


def test_a_name_that_does_not_resolve_is_an_unavailable_upstream() -> None:
    with pytest.raises(UpstreamUnavailable, match="does not resolve"):
        asyncio.run(resolve("no-such-name.invalid", 443))
