"""A layer image that is open at the filler: made while its blob arrives, then mounted.

Made and kept up by :class:`headstart.store.fill_client.FillClient`.
"""

from collections.abc import Callable
from pathlib import Path

import anyio

from headstart.store.cached_layer import CachedLayer
from headstart.store.errors import FillFailed
from headstart.store.known_layer import KnownLayer
from headstart.store.layer_map import MapDamaged
from headstart.store.open_object import OpenObject, Want, Wanting
from headstart.store.wire import Message, WireError

STATES = ("planning", "streaming", "mountable", "complete")
"""What a layer image goes through: nothing known of it; its blob arrives; its files are there and
it may be mounted; all of it is here and its diff ID has passed. From any of them it may be
``refused``."""


class OpenLayer(OpenObject):
    """A layer image opened at the filler."""

    follows = False

    def __init__(self, client: Wanting, message: Message, layer: KnownLayer) -> None:
        """Made by :meth:`FillClient.open_layer` only."""
        super().__init__(client, message)
        self.layer = layer
        self.state = "planning"
        self.meta = Path()
        self.devices: list[Path] = []
        self.maps: list[Path] = []
        self.size = 0
        self.used = 0
        """While it streams: bytes of its blob that the filler has made it of."""
        self.known = anyio.Event()
        """Set once the filler has answered."""
        self.on_change: Callable[[], None] | None = None
        """Called whenever :attr:`state` has changed."""
        self._cached: CachedLayer | None = None
        self._retired: list[CachedLayer] = []
        self._changed = anyio.Event()
        self._whole: tuple[int, Want] | None = None

    @property
    def cached(self) -> CachedLayer:
        """The files, open for reading; from ``mountable`` on."""
        if self._cached is None:
            raise FillFailed("protocol", f"{self.layer.digest}: its layer image has no files yet")
        return self._cached

    # --- what the filler says ---

    def take(self, received: Message) -> None:
        """Take over a state, and the files that come with ``mountable``."""
        state = received.get("state")
        if state not in STATES:
            raise WireError(f"a layer image in state {state!r:.20}")
        if state in ("mountable", "complete"):
            self._take_files(received)
        if self.failure is None:
            self.state = str(state)
        used = received.get("used")
        if isinstance(used, int):
            self.used = used
        self._note_change()

    def _take_files(self, received: Message) -> None:
        meta, paths, maps = (received.get(name) for name in ("meta", "paths", "map"))
        size = received.get("device_size")
        if meta is None and self._cached is not None:
            return
        if not (
            isinstance(meta, str)
            and isinstance(paths, list)
            and isinstance(maps, list)
            and isinstance(size, int)
        ):
            raise WireError("a layer image was announced without its files")
        devices, stored = ([Path(str(path)) for path in names] for names in (paths, maps))
        try:
            cached = CachedLayer(Path(meta), devices, stored)
        except (OSError, MapDamaged) as error:
            self.fail(FillFailed("protocol", f"the filler's files cannot be opened: {error}"))
            return
        if self._cached is not None:
            # A thread may be reading it.
            self._retired.append(self._cached)
        self._cached = cached
        self.meta, self.devices, self.maps, self.size = Path(meta), devices, stored, size

    def fail(self, failure: FillFailed) -> None:
        """The layer image is refused, or its handle closed."""
        super().fail(failure)
        self.state = "refused"
        self._note_change()

    def arrived(self) -> None:
        """Nothing: what is wanted of a layer image is answered whole."""

    def tell_stale(self) -> None:
        """Tell who waits; what is open can still be read."""
        self._note_change()

    def close_files(self) -> None:
        """Close the files of all incarnations."""
        for cached in [*self._retired, *([self._cached] if self._cached else [])]:
            cached.close()
        self._retired.clear()
        self._cached = None

    def _note_change(self) -> None:
        self.known.set()
        self._changed.set()
        self._changed = anyio.Event()
        if self.on_change is not None:
            self.on_change()

    # --- what readers and mounts do ---

    def raise_priority(self, priority: str) -> None:
        """Want all of it, until closed: as ``mount`` where somebody waits for it.

        As ``prefetch`` it is a hint only: ``prefetch.policy`` says how much of it comes, and when.
        """
        if self._whole is not None:
            self._client.drop_want(self, self._whole[0])
        message: Message = {"type": "want", "offset": 0, "length": None}
        want = Want({**message, "priority": priority, "bulk": True})
        self._whole = self._client.post_want(self, want), want

    async def wait_mountable(self) -> None:
        """Wait until it may be mounted. Raises :class:`FillFailed`."""
        await self._wait_for(("mountable", "complete"))

    async def wait_complete(self) -> None:
        """Wait until all of it is here and its diff ID has passed. Raises :class:`FillFailed`."""
        await self._wait_for(("complete",))

    async def _wait_for(self, states: tuple[str, ...]) -> None:
        while self.state not in states:
            if self.failure is not None:
                raise self.failure
            await self._changed.wait()

    async def wait(
        self,
        offset: int,
        length: int,
        priority: str = "mount",
        deadline_seconds: float | None = None,
    ) -> None:
        """Wait until these bytes of the data device are here; they go before everything else.

        Raises :class:`FillFailed`.
        """
        if self._cached is not None and self._cached.available(offset, length) >= length:
            return
        async with self.wanting(
            offset, length, priority, bulk=False, deadline_seconds=deadline_seconds
        ) as want:
            await self.wait_done(want)
