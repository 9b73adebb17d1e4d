"""Headstart itself: `headstart serve` with a configuration of its own, as users run it."""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.doubles.certificates import ServerCertificate
from tests.parts.processes import tree
from tests.parts.server import TcpServer

# Whether the certificate is the right one is for the clients to say.
_any_certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_any_certificate.check_hostname = False
_any_certificate.verify_mode = ssl.CERT_NONE
_direct = urllib.request.build_opener(
    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=_any_certificate)
)


def upstream_at(url: str, **more: object) -> dict[str, object]:
    """What the configuration says of an upstream on this machine."""
    return {"url": url, "allow_private": True, **more}


class Mirror(TcpServer):
    """A mirror of ``upstreams`` (registry host to keys); stopped and started, it keeps its cache.

    ``stripes`` are directories of the cache (one below ``directory`` unless given), ``settings``
    further sections of the configuration: ``{"fetch": {"max_connections": 4}}``.
    """

    stop_grace = 40.0

    def __init__(
        self,
        directory: Path,
        upstreams: Mapping[str, Mapping[str, object]],
        *,
        stripes: Sequence[Path] = (),
        settings: Mapping[str, Mapping[str, object]] | None = None,
        environment: Mapping[str, str] | None = None,
        tls: ServerCertificate | None = None,
    ) -> None:
        super().__init__(directory, "headstart", "http" if tls is None else "https")
        self.upstreams = upstreams
        self.stripes = tuple(stripes) or (directory / "cache",)
        self.settings = settings or {}
        self._environment = environment or {}
        self._tls = tls

    def configuration(self) -> dict[str, Any]:
        """The sections of the configuration file."""
        sections: dict[str, Any] = {name: dict(keys) for name, keys in self.settings.items()}
        first = next(iter(self.upstreams))
        sections["mirror"] = {
            "listen": self.host,
            "default_upstream": first,
            **sections.get("mirror", {}),
        }
        if self._tls is not None:
            keys = {"certificate": str(self._tls.certificate), "key": str(self._tls.key)}
            sections["mirror"]["tls"] = keys
        sections["cache"] = {
            "stripes": [{"path": str(path)} for path in self.stripes],
            **sections.get("cache", {}),
        }
        sections["upstreams"] = {host: dict(keys) for host, keys in self.upstreams.items()}
        return sections

    def arguments(self) -> Sequence[str | Path]:
        file = self.directory / "config.yaml"
        file.write_text(yaml.safe_dump(self.configuration(), sort_keys=False))
        return ["headstart", "--config", file, "serve"]

    def environment(self) -> Mapping[str, str]:
        return self._environment

    def ready(self) -> bool:
        try:
            with _direct.open(f"{self.url}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stored(self) -> Sequence[Path]:
        return self.stripes

    def process_id(self, module: str) -> int:
        """Process id of a child: ``proxy.mirror`` or ``proxy.fill.process``."""
        for pid in tree(self.running.pid):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if module.encode() in words:
                return pid
        raise ProcessLookupError(f"{self.name} has no process {module}")

    def ask(self, path: str, method: str = "GET", content: object = None) -> Any:
        """A control call's answer as JSON; urllib's HTTPError for a status of 400 or more."""
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            self.url + path, body, {"Content-Type": "application/json"}, method=method
        )
        with _direct.open(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")
