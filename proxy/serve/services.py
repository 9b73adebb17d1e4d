"""What the parts of the mirror process share, and what serving asks of the book of pulls."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, Self

from headstart.command.configuration import Configuration
from headstart.content.manifest import Index, Manifest
from headstart.registry.client import RegistryClient
from headstart.registry.upstream import Upstream
from headstart.store.fill_client import FillClient
from proxy.serve.blobs import Blobs
from proxy.serve.chains import Chains
from proxy.serve.manifests import Manifests
from proxy.serve.records import AsyncIndex

VIA_CONTROL_SOCKET = "headstart.control_socket"
"""Key of an ASGI scope: True when the request came over the control socket."""


class BlobWatch(Protocol):
    """Watches one answer with bytes of a blob; a context manager around all of it."""

    def __enter__(self) -> Self:
        """The answer begins."""

    def __exit__(self, *_: object) -> bool | None:
        """The answer has ended, well or by an exception."""

    def sent(self, count: int, from_cache: bool) -> None:
        """``count`` bytes have left; ``from_cache`` when they were here before they were asked."""

    def waited_for_filler(self, seconds: float) -> None:
        """The answer stood still until bytes arrived."""

    def waited_for_client(self, seconds: float) -> None:
        """The answer was being sent: time in which the client (or the disk) set the pace."""

    def failed(self, reason: str) -> None:
        """The answer could not be ended; the client has got an error or a reset."""


class PullWatcher(Protocol):
    """Is told what clients pull. Its methods are called on the event loop and must not wait."""

    def manifest_served(
        self,
        client: str,
        user_agent: str,
        upstream: str,
        repository: str,
        reference: str,
        digest: str,
        manifest: Manifest | Index | None,
    ) -> None:
        """A client was given a manifest; ``reference`` is the tag or digest that it asked for.

        ``manifest`` is None for kinds of documents that are only passed through.
        """

    def blob(
        self, client: str, upstream: str, repository: str, digest: str, size: int
    ) -> BlobWatch:
        """A client is about to get bytes of a blob of ``size`` bytes."""


class _Unwatched(AbstractContextManager["_Unwatched", None]):
    def __exit__(self, *_: object) -> None:
        return None

    def sent(self, count: int, from_cache: bool) -> None:
        return None

    def waited_for_filler(self, seconds: float) -> None:
        return None

    def waited_for_client(self, seconds: float) -> None:
        return None

    def failed(self, reason: str) -> None:
        return None


class Unwatched:
    """A :class:`PullWatcher` that forgets everything."""

    _watch = _Unwatched()

    def manifest_served(self, *_: Any) -> None:
        """Forget it."""

    def blob(self, *_: Any) -> BlobWatch:
        """A watch that forgets."""
        return self._watch


@dataclass(frozen=True)
class Services:
    """What the mirror process has; made once, by :mod:`proxy.mirror`, and closed by it.

    ``upstreams`` and ``clients`` have the same keys: the hosts of the allowlist.
    """

    configuration: Configuration
    upstreams: dict[str, Upstream]
    clients: dict[str, RegistryClient]
    filler: FillClient
    index: AsyncIndex
    manifests: Manifests
    blobs: Blobs
    chains: Chains
    pulls: PullWatcher
