"""A real mirror in front of scripted upstreams, with deadlines short enough for tests.

One mirror serves a whole session of tests; what a fault makes it remember of an upstream must not
reach the next test, so each test takes an upstream of its own.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.doubles.scripted_upstream import OCI_MANIFEST, Rule, ScriptedUpstream
from tests.faults.reading import Reply, read
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.pattern import Pattern

MIB = 1024 * 1024
REPOSITORY = "team/app"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

CONNECT_SECONDS, FIRST_BYTE_SECONDS, STALL_SECONDS = 1.0, 2.0, 2.0

FETCH: dict[str, object] = {
    "request_size": "1MiB",
    "max_connections": 4,
    "reissue": "disabled",
    "deadlines": {
        "connect": f"{CONNECT_SECONDS:g}s",
        "first_byte": f"{FIRST_BYTE_SECONDS:g}s",
        "stall": f"{STALL_SECONDS:g}s",
    },
}
"""Several ranges even of a small blob, and waits that a test can afford."""

PATIENT: dict[str, object] = {
    "deadlines": {"connect": "10s", "first_byte": "20s", "stall": "20s"},
}
"""For tests of other things than deadlines: however busy the machine is, none passes."""


_seeds = itertools.count()


def new_content(size: int) -> bytes:
    """The bytes of a blob that no mirror has seen; no two runs of 4 KiB are equal."""
    return Pattern(size, next(_seeds)).read(0, size)


def make_manifest(*layers: bytes) -> bytes:
    """An image's manifest that no mirror has seen; of its config nobody has the bytes."""
    config = new_content(1024)
    described = [
        {
            "mediaType": media_type,
            "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
            "size": len(content),
        }
        for media_type, content in [(OCI_CONFIG, config), *((OCI_LAYER, one) for one in layers)]
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described[0],
        "layers": described[1:],
    }
    return json.dumps(manifest).encode()


class Setting:
    """A mirror that runs, and upstreams that no test has had yet."""

    def __init__(self, mirror: Mirror, fresh: list[ScriptedUpstream]) -> None:
        self.mirror = mirror
        self._fresh = fresh

    def upstream(self) -> ScriptedUpstream:
        """An upstream of which the mirror knows nothing; it behaves."""
        return self._fresh.pop()

    def blob(
        self,
        host: str,
        digest: str,
        bounds: str | None = None,
        *,
        repository: str = REPOSITORY,
        method: str = "GET",
        leave_after: int | None = None,
        patience: float = 60.0,
    ) -> Reply:
        """Ask for a blob of the upstream ``host``; ``bounds`` as in ``Range: bytes=BOUNDS``."""
        path = f"/v2/{repository}/blobs/{digest}?ns={host}"
        fields = {} if bounds is None else {"Range": f"bytes={bounds}"}
        return read(
            self.mirror.port,
            path,
            method=method,
            fields=fields,
            leave_after=leave_after,
            patience=patience,
        )

    def manifest(
        self, host: str, reference: str, *, repository: str = REPOSITORY, method: str = "GET"
    ) -> Reply:
        """Ask for a manifest by tag or digest."""
        accept = "application/vnd.oci.image.manifest.v1+json"
        path = f"/v2/{repository}/manifests/{reference}?ns={host}"
        return read(self.mirror.port, path, method=method, fields={"Accept": accept})

    def blobs_at_once(self, count: int, host: str, digest: str) -> list[Reply]:
        """So many clients that ask for a blob at the same time."""
        with ThreadPoolExecutor(count) as clients:
            asked = [clients.submit(self.blob, host, digest) for _ in range(count)]
            return [reply.result() for reply in asked]


def right_or_error(reply: Reply, content: bytes, start: int = 0, stop: int | None = None) -> bool:
    """The invariant of every fault: the true bytes, or an explicit error; whether all came.

    ``content`` is the whole blob, ``start`` and ``stop`` what was asked for.
    """
    wanted = content[start:stop]
    if reply.complete:
        assert reply.body == wanted, f"wrong bytes that look right: {reply}"
        return True
    assert reply.status >= 400 or len(reply.body) < len(wanted), f"no error to be seen: {reply}"
    return False


def pulls(setting: Setting, host: str, digest: str, content: bytes) -> None:
    """A pull from an upstream that behaves (again) gives the right bytes."""
    reply = setting.blob(host, digest)
    assert right_or_error(reply, content), reply
    assert reply.fields["docker-content-digest"] == digest


def pulls_soon(setting: Setting, host: str, digest: str, content: bytes) -> None:
    """A pull that gives the right bytes, at the second try at the latest."""
    if not right_or_error(setting.blob(host, digest), content):
        pulls(setting, host, digest, content)


def of_blobs(**what: Any) -> Rule:
    """A rule for GET of blobs."""
    return Rule(method="GET", path="/blobs/|^/signed/", **what)


def scripted(setting: Setting, content: bytes, *rules: Rule) -> tuple[ScriptedUpstream, str]:
    """A fresh upstream that has ``content`` and behaves as the rules say; and the digest."""
    upstream = setting.upstream()
    digest = upstream.add_blob(REPOSITORY, content)
    for rule in rules:
        upstream.add_rule(rule)
    return upstream, digest


@contextlib.contextmanager
def running_setting(
    directory: Path,
    *,
    fresh: int = 0,
    more: Mapping[str, Mapping[str, object]] | None = None,
    fetch: Mapping[str, object] | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    environment: Mapping[str, str] | None = None,
    stripes: Sequence[Path] = (),
) -> Iterator[Setting]:
    """A mirror of ``fresh`` upstreams and of ``more`` (host to keys of the configuration).

    ``fetch`` replaces keys of :data:`FETCH`, ``settings`` adds sections; ``stripes`` as in Mirror.
    """
    with contextlib.ExitStack() as stack:
        upstreams = [stack.enter_context(ScriptedUpstream()) for _ in range(fresh)]
        hosts = {upstream.host: upstream_at(upstream.url) for upstream in upstreams}
        mirror = Mirror(
            directory,
            {**hosts, **(more or {})},
            settings={**(settings or {}), "fetch": {**FETCH, **(fetch or {})}},
            environment=environment,
            stripes=stripes,
        )
        stack.enter_context(mirror)
        yield Setting(mirror, upstreams)
