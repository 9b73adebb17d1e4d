"""nginx in the roles that tests and benchmarks need, all with an access log that can be read.

* :class:`Front`: before a registry; counts ranges, limits the rate of a connection, does TLS.
* :class:`Files`: static files by sendfile.
* :class:`SlicedCache`: ``proxy_cache`` with ``slice``, the peer that Headstart is compared with.
"""

import abc
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.doubles.certificates import ServerCertificate
from tests.parts.server import TcpServer

_FORMAT = {
    "ended": "$msec",
    "seconds": "$request_time",
    "connection": "$connection",
    "method": "$request_method",
    "target": "$request_uri",
    "range": "$http_range",
    "status": "$status",
    "body_bytes": "$body_bytes_sent",
    "content_range": "$sent_http_content_range",
}


@dataclass(frozen=True, slots=True)
class Access:
    """A request that ended: ``ended`` in Unix seconds, ``body_bytes`` as sent, without headers."""

    ended: float
    seconds: float
    connection: int
    method: str
    target: str
    range: str | None
    status: int
    body_bytes: int
    content_range: str | None

    @property
    def started(self) -> float:
        return self.ended - self.seconds

    @property
    def first(self) -> int | None:
        """The first byte that ``range`` asks for; None without a range or with a suffix one."""
        found = re.match(r"bytes=(\d+)-", self.range or "")
        return int(found[1]) if found else None

    @property
    def of_blob(self) -> bool:
        """Whether it is a GET of a blob."""
        return self.method == "GET" and "/blobs/sha256:" in self.target


class Nginx(TcpServer):
    """An nginx with one server; subclasses say what it does."""

    def __init__(
        self,
        directory: Path,
        *,
        limit_rate: int | None = None,
        tls: ServerCertificate | None = None,
        workers: int = 1,
    ) -> None:
        """``limit_rate``: bytes a second for each request, which is: for each busy connection."""
        super().__init__(directory, "nginx", "http" if tls is None else "https")
        self.limit_rate = limit_rate
        self._tls = tls
        self._workers = workers
        self._access_log = directory / "access.log"
        self._cleared = 0

    @abc.abstractmethod
    def locations(self) -> str:
        """The body of the server block; ``self.directory`` is the working directory."""

    def http_settings(self) -> str:
        """Directives beside the server block."""
        return ""

    def arguments(self) -> Sequence[str | Path]:
        configuration = self.directory / "nginx.conf"
        configuration.write_text(self._configuration())
        temporary = self.directory / "temporary"
        temporary.mkdir(exist_ok=True)
        # Without -e it tries its compiled-in log first.
        return ["nginx", "-e", "stderr", "-p", self.directory, "-c", configuration]

    def stored(self) -> Sequence[Path]:
        return [Path("temporary")]

    def accesses(self) -> list[Access]:
        """The requests that ended since the last :meth:`clear`, in that order."""
        if not self._access_log.exists():
            return []
        with self._access_log.open("rb") as log:
            log.seek(self._cleared)
            # A line without its end is still being written.
            lines = [line for line in log if line.endswith(b"\n")]
        return [_access(line) for line in lines]

    def wait_for_accesses(self, count: int, deadline: float = 5.0) -> list[Access]:
        """At least ``count`` of them: a line is written a moment after its last byte was sent."""
        end = time.monotonic() + deadline
        while len(accesses := self.accesses()) < count:
            if time.monotonic() > end:
                raise TimeoutError(f"{len(accesses)} requests of {count} after {deadline} s")
            time.sleep(0.02)
        return accesses

    def blob_ranges(self) -> list[Access]:
        """The blob GETs among them that asked for a range."""
        return [access for access in self.accesses() if access.of_blob and access.range]

    def clear(self) -> None:
        """Start counting anew."""
        if self._access_log.exists():
            self._cleared = self._access_log.stat().st_size

    def _configuration(self) -> str:
        listen = f"listen {self.host}{' ssl' if self._tls else ''};"
        tls = ""
        if self._tls is not None:
            tls = (
                f"ssl_certificate {self._tls.certificate};\n"
                f"ssl_certificate_key {self._tls.key};\n"
                "ssl_session_cache shared:tls:1m;\n"
            )
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path temporary/{kind};\n" for kind in kinds)
        limit = f"limit_rate {self.limit_rate};\n" if self.limit_rate else ""
        # The workers of a root nginx become nobody, who may not read a test's directories.
        user = "user root;\n" if os.geteuid() == 0 else ""
        return (
            f"{user}daemon off;\n"
            f"worker_processes {self._workers};\n"
            "pid nginx.pid;\n"
            "error_log stderr warn;\n"
            "events { worker_connections 2048; }\n"
            "http {\n"
            f"log_format parsed escape=json '{json.dumps(_FORMAT)}';\n"
            f"access_log {self._access_log} parsed;\n"
            f"{paths}"
            "default_type application/octet-stream;\n"
            "sendfile on;\n"
            "tcp_nopush on;\n"
            # What is sent at once is never limited: smaller pieces make the limit smoother.
            f"sendfile_max_chunk {'256k' if limit else '2m'};\n"
            "keepalive_requests 100000;\n"
            f"{self.http_settings()}"
            "server {\n"
            f"{listen}\n{tls}{limit}"
            "client_max_body_size 0;\n"
            f"{self.locations()}"
            "}\n"
            "}\n"
        )


class Front(Nginx):
    """A registry's face: passes everything on and keeps count.

    ``blobs`` is the directory ``docker/registry/v2/blobs`` of a docker-registry with file system
    storage: GETs of blobs are then answered by nginx itself, by sendfile.
    """

    def __init__(
        self,
        directory: Path,
        upstream_url: str,
        *,
        blobs: Path | None = None,
        limit_rate: int | None = None,
        tls: ServerCertificate | None = None,
        workers: int = 1,
    ) -> None:
        super().__init__(directory, limit_rate=limit_rate, tls=tls, workers=workers)
        self.upstream_url = upstream_url
        self._blobs = blobs

    def http_settings(self) -> str:
        return _upstream(self.upstream_url)

    def locations(self) -> str:
        # limit_rate lets the first second's share of what is passed on through at once.
        limit = f"proxy_limit_rate {self.limit_rate};\n" if self.limit_rate else ""
        return self._blob_location() + (
            "location / {\n"
            f"{_PASS}{limit}"
            "proxy_request_buffering off;\n"
            # limit_rate does nothing without buffering; the file would hold what is not sent yet.
            "proxy_buffering on;\n"
            "proxy_max_temp_file_size 0;\n"
            "}\n"
        )

    def _blob_location(self) -> str:
        if self._blobs is None:
            return ""
        return (
            'location ~ "^/v2/.+/blobs/sha256:(?<start>[0-9a-f]{2})(?<rest>[0-9a-f]{62})$" {\n'
            f"alias {self._blobs}/sha256/$start/$start$rest/data;\n"
            "limit_except GET HEAD { deny all; }\n"
            'add_header Docker-Content-Digest "sha256:$start$rest";\n'
            "}\n"
        )


class Files(Nginx):
    """The files of a directory; ``peer.url + "/name"``."""

    def __init__(
        self,
        directory: Path,
        root: Path,
        *,
        limit_rate: int | None = None,
        tls: ServerCertificate | None = None,
        workers: int = 1,
    ) -> None:
        super().__init__(directory, limit_rate=limit_rate, tls=tls, workers=workers)
        self._root = root

    def locations(self) -> str:
        return f"location / {{ root {self._root}; }}\n"


class SlicedCache(Nginx):
    """A caching proxy as nginx offers it: blobs in slices, each cached by its own."""

    def __init__(
        self,
        directory: Path,
        upstream_url: str,
        *,
        slice_size: str = "1m",
        max_size: str = "20g",
        ca_file: Path | None = None,
        tls: ServerCertificate | None = None,
        workers: int = 1,
    ) -> None:
        """``ca_file``: whom to trust where ``upstream_url`` is https."""
        super().__init__(directory, tls=tls, workers=workers)
        self.upstream_url = upstream_url
        self._slice_size = slice_size
        self._max_size = max_size
        self._ca_file = ca_file

    def http_settings(self) -> str:
        return (
            f"{_upstream(self.upstream_url)}"
            "proxy_cache_path cache levels=1:2 keys_zone=blobs:32m inactive=1d use_temp_path=off\n"
            f"max_size={self._max_size};\n"
        )

    def locations(self) -> str:
        trust = ""
        if self._ca_file is not None:
            trust = (
                f"proxy_ssl_trusted_certificate {self._ca_file};\n"
                "proxy_ssl_verify on;\n"
                # It compares DNS names only.
                "proxy_ssl_name localhost;\n"
            )
        scheme = self.upstream_url.partition("://")[0]
        passed = _PASS.replace("http://upstream", f"{scheme}://upstream")
        return (
            f"location / {{\n{passed}{trust}}}\n"
            "location ~ /blobs/ {\n"
            f"{passed}{trust}"
            f"slice {self._slice_size};\n"
            "proxy_set_header Range $slice_range;\n"
            "proxy_cache blobs;\n"
            "proxy_cache_key $uri$slice_range;\n"
            "proxy_cache_valid 200 206 1d;\n"
            "proxy_cache_lock on;\n"
            "}\n"
        )

    def stored(self) -> Sequence[Path]:
        return [*super().stored(), Path("cache")]


_PASS = (
    "proxy_pass http://upstream;\n"
    "proxy_http_version 1.1;\n"
    'proxy_set_header Connection "";\n'
    "proxy_set_header Host $http_host;\n"
    "proxy_set_header X-Forwarded-Proto $scheme;\n"
    "proxy_read_timeout 300s;\n"
)


def _upstream(url: str) -> str:
    host = url.partition("://")[2]
    return f"upstream upstream {{ server {host}; keepalive 64; }}\n"


def _access(line: bytes) -> Access:
    fields = json.loads(line)
    return Access(
        float(fields["ended"]),
        float(fields["seconds"]),
        int(fields["connection"]),
        fields["method"],
        fields["target"],
        fields["range"] or None,
        int(fields["status"]),
        int(fields["body_bytes"]),
        fields["content_range"] or None,
    )
