"""Who has to do with a fill: wants, sources, listeners, and the filler around it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from proxy.fill.blob_files import BlobFiles

if TYPE_CHECKING:
    from proxy.fill.fill import Fill


@dataclass(slots=True, eq=False)
class Want:
    """Bytes ``offset`` to ``stop`` that a client of fill.sock waits for.

    ``stop`` is None for "to the end" while the size is unknown. ``settle`` is called once, with
    None when all is here, or with the reason.
    """

    offset: int
    stop: int | None
    priority: int
    bulk: bool
    order: int
    settle: Callable[[FillFailed | None], None]
    reach: int = 0
    """Bytes beyond the read that sequential reads have earned (on-demand wants)."""
    reached: int = 0
    """All bytes from ``offset`` up to here are known to be here."""


@dataclass(frozen=True, slots=True)
class BlobSource:
    """A repository that may have the blob, with the client's own credentials if it passed any."""

    upstream: str
    repository: str
    authorization: str | None = field(default=None, repr=False)


class Listener(Protocol):
    """A client of fill.sock that has the blob open."""

    def notify_files(self, fill: "Fill") -> None:
        """The size is known and the files are there."""

    def notify_arrived(self, fill: "Fill") -> None:
        """Bytes have come, or the digest has passed."""

    def notify_refused(self, fill: "Fill", failure: FillFailed) -> None:
        """The object is withdrawn: readers must not finish cleanly."""

    def notify_evicted(self, fill: "Fill") -> None:
        """The object was evicted: open readers finish, new ones open it again."""


class Surroundings(Protocol):
    """What a fill needs of the filler around it."""

    def create_files(self, digest: Digest, size: int) -> BlobFiles:
        """Make the files of a blob; called from a connection's thread."""

    def reserve(self, digest: Digest, files: BlobFiles, extent: int) -> None:
        """Count and reserve an extent's space; called from a connection's thread."""

    def wrote(self, files: BlobFiles, stripe: int, offset: int, length: int) -> None:
        """Count and pace a write; called from a connection's thread."""

    def in_thread(self, work: Callable[[], object], done: Callable[[object], None]) -> None:
        """Run ``work`` in a thread; ``done`` gets its result, or the exception, on the loop."""

    def pump(self) -> None:
        """Something may be startable now."""

    def occupied(self, fill: "Fill", change: int) -> None:
        """A fill has become busy (+1) or idle (-1)."""

    def vouched(self, fill: "Fill", source: BlobSource) -> None:
        """The upstream of this source has delivered bytes of the blob."""

    def verified(self, fill: "Fill") -> None:
        """The digest has passed."""

    def suspect(self, fill: "Fill") -> None:
        """Bytes that should be here cannot be read: check everything at the next open."""

    def quarantine(self, fill: "Fill", failure: FillFailed) -> None:
        """Remove the blob's files and end the fill."""

    def restart(self, fill: "Fill", failure: FillFailed) -> None:
        """Drop what has come of a blob whose content changed; the next open starts afresh."""
