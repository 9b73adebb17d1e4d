"""Which addresses may be connected to, whatever a registry, a redirect or DNS says."""

import asyncio
import ipaddress
import socket
from dataclasses import dataclass

from headstart.registry.errors import RefusedTarget, UpstreamUnavailable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Credentials of the machine can be had from these without asking: AWS, Google and OpenStack share
# the first, which is link-local too; then AWS by IPv6, Azure's agent, Alibaba, Oracle.
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",
        "fd00:ec2::254",
        "fd20:ce::254",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
    )
)
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")  # Linux takes 0.0.0.0 for loopback
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Refuses addresses that lead into this machine or its cloud.

    Link-local, metadata, unspecified, multicast and reserved addresses are always refused,
    loopback unless ``allow_private``. Private networks (RFC 1918, unique local) are allowed:
    registries live there.
    """

    allow_private: bool

    def check(self, ip: str) -> None:
        """Raise RefusedTarget when the literal address ``ip`` may not be connected to."""
        try:
            address = ipaddress.ip_address(ip.partition("%")[0])
        except ValueError:
            raise RefusedTarget(f"{ip!r} is no IP address") from None
        for meant in _meanings(address):
            reason = self._reason(meant)
            if reason is not None:
                raise RefusedTarget(f"{address} is {reason}")

    def check_host(self, host: str) -> None:
        """Check ``host`` when it is a literal address; a name is checked once it is resolved."""
        try:
            ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return
        self.check(host)

    def _reason(self, address: Address) -> str | None:
        if address in _METADATA:
            return "a metadata service"
        if address.is_loopback:
            return None if self.allow_private else "this machine (allow_private: true allows it)"
        if address.is_link_local:
            return "a link-local address"
        if address.is_multicast:
            return "a multicast address"
        if address.is_unspecified or (address.version == 4 and address in _THIS_NETWORK):
            return "an unspecified address"
        if address.version == 4 and address.is_reserved:
            return "a reserved address"
        return None


def _meanings(address: Address) -> list[Address]:
    """The address and the IPv4 addresses that it may be translated to on its way."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    found: list[Address] = [address]
    if address.ipv4_mapped is not None:
        found = [address.ipv4_mapped]
    elif address.sixtofour is not None:
        found.append(address.sixtofour)
    elif address in _NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return found


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of ``host`` in the system's order. Raises UpstreamUnavailable."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UpstreamUnavailable(f"{host}: the name does not resolve") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
