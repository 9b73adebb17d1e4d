"""A blob that is open at the filler, and what somebody wants of it.

Made and kept up by :class:`headstart.store.fill_client.FillClient`.
"""

from collections.abc import Callable
from pathlib import Path

import anyio

from headstart.store.cached_blob import CachedBlob
from headstart.store.errors import FillFailed
from headstart.store.extent_map import MapDamaged
from headstart.store.open_object import OpenObject, Want, Wanting
from headstart.store.wire import Message, WireError


class OpenBlob(OpenObject):
    """A blob opened at the filler. ``blob`` is replaced when the filler had to reopen it."""

    follows = True

    def __init__(self, client: Wanting, message: Message) -> None:
        """Made by :meth:`FillClient.open` only."""
        super().__init__(client, message)
        self.ready = anyio.Event()
        self._blob: CachedBlob | None = None
        self._retired: list[CachedBlob] = []
        self.opened_empty = False
        """Whether nothing of it was in the store before this open; the first answer takes it back.

        The map cannot tell: by the time it can be read, the first bytes may have come.
        """
        self.gone = False
        """Whether the files were evicted before they could be opened: opening again may do."""
        self.on_stale: Callable[[], None] | None = None
        """Called when the filler says so: what an idle handle holds on disk is to be released."""

    @property
    def blob(self) -> CachedBlob:
        """Files and map; only after :attr:`ready` and without :attr:`failure`."""
        if self._blob is None:
            raise FillFailed("protocol", "the filler has not opened this blob")
        return self._blob

    def take(self, received: Message) -> None:
        """Take over a state, and the files where it names them."""
        if received.get("state") == "planning":
            self.opened_empty = received.get("empty") is True
            return
        if "paths" not in received and self._blob is not None:
            self.arrived()
            return
        paths, maps = received.get("paths"), received.get("map")
        if not isinstance(paths, list) or not isinstance(maps, list):
            raise WireError("files were announced without paths")
        self.opened([str(path) for path in paths], [str(path) for path in maps])

    def opened(self, paths: list[str], maps: list[str]) -> None:
        """Take over the files that the filler has named."""
        try:
            blob = CachedBlob([Path(path) for path in paths], [Path(path) for path in maps])
        except FileNotFoundError:
            self.gone = True
            self.fail(FillFailed("upstream", "the blob was evicted while it was opened"))
            return
        except (OSError, MapDamaged) as error:
            self.fail(FillFailed("protocol", f"the filler's files cannot be opened: {error}"))
            return
        if self._blob is not None:
            self._retired.append(self._blob)
        self._blob = blob
        self.ready.set()
        self.arrived()

    def fail(self, failure: FillFailed) -> None:
        """Tell everybody who waits that no bytes will come through this handle."""
        super().fail(failure)
        self.ready.set()

    def tell_stale(self) -> None:
        """Tell the owner that the object was dropped."""
        if self.on_stale is not None:
            self.on_stale()

    def arrived(self) -> None:
        """Wake the readers whose next byte is here now."""
        for want in self.wants.values():
            if want.position is not None and (
                self.blob.available(want.position, 1) or self.blob.verified
            ):
                want.event.set()

    async def wait(self, want: Want, offset: int, limit: int) -> int:
        """Wait until bytes from ``offset`` on are here; how many, at most ``limit``.

        Raises :class:`FillFailed`.
        """
        while True:
            count = self.blob.available(offset, limit)
            if count:
                return count
            if want.failure is not None:
                raise want.failure
            want.position = offset
            want.event = anyio.Event()
            if not self.blob.available(offset, 1):
                await want.event.wait()
            want.position = None

    async def wait_verified(self, want: Want) -> None:
        """Wait until the digest of the whole blob has passed. Raises :class:`FillFailed`."""
        while not self.blob.verified:
            if want.failure is not None:
                raise want.failure
            want.position = self.blob.size
            want.event = anyio.Event()
            if not self.blob.verified:
                await want.event.wait()
            want.position = None

    def close_files(self) -> None:
        """Close the files of all incarnations."""
        for blob in [*self._retired, *([self._blob] if self._blob else [])]:
            blob.close()
        self._retired.clear()
        self._blob = None
