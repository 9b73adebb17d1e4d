"""Which proxy a request goes through: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY."""

import ipaddress
from urllib.parse import urlsplit
from urllib.request import getproxies_environment


class ProxySettings:
    """The proxies of the environment as it was when this object was made."""

    def __init__(self) -> None:
        """Read the environment."""
        self._proxies: dict[str, str] = dict(getproxies_environment())

    def proxy_for(self, url: str) -> str | None:
        """The URL of the proxy for ``url``, or None for a direct connection."""
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        proxy = self._proxies.get(parts.scheme) or self._proxies.get("all")
        if not proxy or self._bypassed(host, parts.port):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"

    def _bypassed(self, host: str, port: int | None) -> bool:
        entries = [entry.strip().lower() for entry in self._proxies.get("no", "").split(",")]
        names = {host, f"{host}:{port}", f"[{host}]", f"[{host}]:{port}"}
        if "*" in entries or names.intersection(entries):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            domains = [entry.removeprefix("*").removeprefix(".") for entry in entries]
            return any(domain and f".{host}".endswith(f".{domain}") for domain in domains)
        return any(address in network for network in _networks(entries))


def _networks(entries: list[str]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    found = []
    for entry in entries:
        try:
            found.append(ipaddress.ip_network(entry.strip("[]"), strict=False))
        except ValueError:
            continue  # a name
    return found
