"""Blobs opened at the filler, kept open for a while: a hit asks nobody for anything.

Handles are lent and given back; the idle ones are few and are closed after some seconds. Who may
see a blob is decided by the filler at ``open``; here a handle is found again only by those for
whom the same decision would be made.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from headstart.content.digest import Digest
from headstart.content.manifest import Index, Manifest
from headstart.content.reference import qualified_repository
from headstart.registry.upstream import Upstream
from headstart.store.fill_client import FillClient
from headstart.store.open_blob import OpenBlob
from proxy.serve.grants import GRANT_SECONDS, Grants

OPEN_SECONDS = 25.0
"""How long an ``open`` may take; containerd gives up waiting for headers after 30 s."""

MOST_IDLE = 256
IDLE_SECONDS = 5.0
TOUCH_SECONDS = 60.0
INTACT_SECONDS = 0.02
MOST_SIZES = 16384


@dataclass(slots=True, eq=False)
class LentBlob:
    """A handle and who uses it; give it back with :meth:`Blobs.give_back`."""

    handle: OpenBlob
    key: Hashable
    expires: float | None
    users: int = 0
    idle_since: float = 0.0
    intact_at: float = 0.0


class Blobs:
    """The open handles of the mirror. Belongs to one event loop."""

    def __init__(
        self,
        filler: FillClient,
        grants: Grants,
        *,
        idle_seconds: float = IDLE_SECONDS,
        most_idle: int = MOST_IDLE,
    ) -> None:
        """Nothing is open yet."""
        self._filler = filler
        self._grants = grants
        self._idle_seconds = idle_seconds
        self._most_idle = most_idle
        self._lent: dict[Hashable, LentBlob] = {}
        self._idle: OrderedDict[LentBlob, None] = OrderedDict()
        self._sweep: asyncio.TimerHandle | None = None
        self._touched: OrderedDict[str, float] = OrderedDict()
        self._sizes: OrderedDict[tuple[str, str, Digest], int] = OrderedDict()

    @property
    def open_handles(self) -> int:
        """How many handles are kept, lent ones included."""
        return len(self._lent)

    def expect(self, host: str, repository: str, document: Manifest | Index) -> None:
        """Remember the sizes that a document gives its blobs: opening them needs no HEAD then."""
        if isinstance(document, Index):
            return
        config = (document.config,) if document.config is not None else ()
        for descriptor in (*config, *document.layers):
            self._sizes[host, repository, descriptor.digest] = descriptor.size
            self._sizes.move_to_end((host, repository, descriptor.digest))
        while len(self._sizes) > MOST_SIZES:
            self._sizes.popitem(last=False)

    def at_hand(
        self, upstream: Upstream, repository: str, digest: Digest, authorization: str | None
    ) -> LentBlob | None:
        """Borrow a handle that is open already; None without one."""
        key = self._key(upstream, repository, digest, authorization)
        lent = self._lent.get(key)
        if lent is None:
            return None
        now = asyncio.get_running_loop().time()
        expired = lent.expires is not None and now >= lent.expires
        if lent.handle.stale or expired or not self._intact(lent, now):
            self._retire(lent)
            return None
        return self._borrow(lent, digest, now)

    async def borrow(
        self,
        upstream: Upstream,
        repository: str,
        digest: Digest,
        *,
        first: tuple[int, int | None] | None = None,
        authorization: str | None = None,
        timeout_seconds: float = OPEN_SECONDS,
    ) -> LentBlob:
        """Borrow a handle, opened if need be.

        ``authorization`` is the client's own field; it is used for ``access: passthrough`` only.
        ``first`` is as in :meth:`FillClient.open`. Raises FillFailed or FillerUnreachable.
        """
        lent = self.at_hand(upstream, repository, digest, authorization)
        if lent is not None:
            return lent
        passthrough = upstream.access == "passthrough"
        qualified = qualified_repository(upstream.host, repository)
        handle = await self._filler.open(
            upstream=upstream.host,
            repository=qualified,
            digest=digest,
            size=self._sizes.get((upstream.host, qualified, digest)),
            first=first,
            authorization=authorization if passthrough else None,
            timeout_seconds=timeout_seconds,
        )
        # Somebody else may have opened it meanwhile.
        lent = self.at_hand(upstream, repository, digest, authorization)
        if lent is not None:
            self._filler.close(handle)
            return lent
        now = asyncio.get_running_loop().time()
        key = self._key(upstream, repository, digest, authorization)
        lent = LentBlob(handle, key, now + GRANT_SECONDS if passthrough else None)
        self._lent[key] = lent
        handle.on_stale = lambda: self._retire(lent)
        return self._borrow(lent, digest, now)

    def give_back(self, lent: LentBlob) -> None:
        """End a use; the handle stays open for a while unless it has become useless."""
        lent.users -= 1
        if lent.users:
            return
        if self._lent.get(lent.key) is not lent:
            self._filler.close(lent.handle)
            return
        if lent.handle.stale:
            self._retire(lent)
            return
        lent.idle_since = asyncio.get_running_loop().time()
        self._idle[lent] = None
        if len(self._idle) > self._most_idle:
            self._retire(next(iter(self._idle)))
        self._plan_sweep()

    async def aclose(self) -> None:
        """Close every handle."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for lent in list(self._lent.values()):
            self._retire(lent)

    def _key(
        self, upstream: Upstream, repository: str, digest: Digest, authorization: str | None
    ) -> Hashable:
        if upstream.access != "passthrough":
            return upstream.host, digest.hex
        return upstream.host, digest.hex, repository, self._grants.credential(authorization)

    @staticmethod
    def _intact(lent: LentBlob, now: float) -> bool:
        """Whether nobody has changed the files; looked at every :data:`INTACT_SECONDS` at most."""
        if now - lent.intact_at >= INTACT_SECONDS:
            if not lent.handle.blob.intact():
                return False
            lent.intact_at = now
        return True

    def _borrow(self, lent: LentBlob, digest: Digest, now: float) -> LentBlob:
        if not lent.users:
            self._idle.pop(lent, None)
        lent.users += 1
        if now - self._touched.get(digest.hex, -TOUCH_SECONDS) >= TOUCH_SECONDS:
            self._touched[digest.hex] = now
            self._touched.move_to_end(digest.hex)
            if len(self._touched) > MOST_SIZES:
                self._touched.popitem(last=False)
            self._filler.touch(lent.handle)
        return lent

    def _retire(self, lent: LentBlob) -> None:
        """Lend it no more; close it now or when the last user gives it back."""
        if self._lent.get(lent.key) is lent:
            del self._lent[lent.key]
        self._idle.pop(lent, None)
        if not lent.users:
            self._filler.close(lent.handle)

    def _plan_sweep(self) -> None:
        if self._sweep is None and self._idle:
            oldest = next(iter(self._idle))
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_at(oldest.idle_since + self._idle_seconds, self._sweep_idle)

    def _sweep_idle(self) -> None:
        self._sweep = None
        now = asyncio.get_running_loop().time()
        while self._idle:
            lent = next(iter(self._idle))
            if now - lent.idle_since < self._idle_seconds:
                break
            self._retire(lent)
        self._plan_sweep()
