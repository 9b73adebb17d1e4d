"""The servers that benchmarks compare, and the upstream of all of them.

The upstream is nginx over the blob files of a docker-registry (:class:`Origin`), by sendfile, so
that it never is what limits a pull, and counts what it is asked for.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.measure import MIB
from tests.doubles.certificates import Authority, ServerCertificate
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.nginx import Front, SlicedCache
from tests.parts.pattern import Pattern
from tests.parts.registry import Registry

REPOSITORY = "bench/app"


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob of the upstream; ``target`` is its path at every registry and mirror."""

    digest: str
    size: int

    @property
    def target(self) -> str:
        return f"/v2/{REPOSITORY}/blobs/{self.digest}"


class Origin:
    """The upstream: leaving its block ends the registry and everything that it entered."""

    def __init__(self, directory: Path, *, tls: bool = False) -> None:
        self.directory = directory
        self._stack = ExitStack()
        self._registry = Registry(directory / "registry")
        self._numbers = itertools.count(1)
        directory.mkdir(parents=True, exist_ok=True)
        self._authority = Authority(directory) if tls else None

    def __enter__(self) -> Self:
        self._stack.enter_context(self._registry)
        self._blobs.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def ca_file(self) -> Path:
        """Whom clients of a TLS front have to trust."""
        if self._authority is None:
            raise RuntimeError("an origin without TLS has no authority")
        return self._authority.ca_file

    @property
    def certificate(self) -> ServerCertificate:
        """A new certificate for 127.0.0.1."""
        if self._authority is None:
            raise RuntimeError("an origin without TLS has no certificate")
        return self._authority.issue()

    def file(self, blob: Blob) -> Path:
        """Where its bytes are."""
        return self._registry.blob_file(blob.digest)

    def add(self, size: int, seed: int = 0) -> Blob:
        """Serve ``size`` incompressible bytes."""
        waiting = self.directory / "new-blob"
        digester = hashlib.sha256()
        with waiting.open("wb") as file:
            for piece in Pattern(size, seed).pieces():
                digester.update(piece)
                file.write(piece)
        return self._placed(waiting, Blob(f"sha256:{digester.hexdigest()}", size))

    def add_sparse(self, size: int, seed: int = 0) -> Blob:
        """Serve ``size`` bytes, zeros but for the first ones: they take no room."""
        waiting = self.directory / "new-blob"
        first = f"seed {seed}".encode()
        with waiting.open("wb") as file:
            file.write(first)
            file.truncate(size)
        zeros = bytes(MIB)
        digester = hashlib.sha256(first)
        for start in range(len(first), size, MIB):
            digester.update(memoryview(zeros)[: size - start])
        return self._placed(waiting, Blob(f"sha256:{digester.hexdigest()}", size))

    def front(self, *, limit_rate: int | None = None, tls: bool = False) -> Front:
        """A running face of it; ``limit_rate`` in bytes a second for each connection."""
        return self._stack.enter_context(
            Front(
                self.directory / f"front-{next(self._numbers)}",
                self._registry.url,
                blobs=self._blobs,
                limit_rate=limit_rate,
                tls=self.certificate if tls else None,
            )
        )

    @property
    def _blobs(self) -> Path:
        return self._registry.directory / "storage/docker/registry/v2/blobs"

    def _placed(self, waiting: Path, blob: Blob) -> Blob:
        place = self.file(blob)
        place.parent.mkdir(parents=True, exist_ok=True)
        waiting.rename(place)
        return blob


class ProxyRegistry(Registry):
    """docker-registry as a pull-through proxy, which trusts ``ca_file`` besides."""

    def __init__(self, directory: Path, remote: str, ca_file: Path | None = None) -> None:
        super().__init__(directory, remote=remote)
        self._ca_file = ca_file

    def environment(self) -> Mapping[str, str]:
        return {"SSL_CERT_FILE": str(self._ca_file)} if self._ca_file else {}


def headstart(
    directory: Path,
    front: Front,
    *,
    ca_file: Path | None = None,
    fetch: Mapping[str, object] | None = None,
    stripes: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
) -> Mirror:
    """Headstart with ``front`` as its upstream; ``fetch`` are keys of that section."""
    more = {"ca_file": str(ca_file)} if ca_file else {}
    return Mirror(
        directory,
        {front.host: upstream_at(front.url, **more)},
        settings={"fetch": fetch} if fetch else None,
        stripes=stripes,
        environment=environment,
    )


def sliced_cache(directory: Path, front: Front, ca_file: Path | None = None) -> SlicedCache:
    """nginx with proxy_cache and slices of 1 MiB."""
    return SlicedCache(directory, front.url, ca_file=ca_file)
