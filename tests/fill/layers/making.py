"""Blobs that arrive as a test says, room that runs out, and layer images made of them."""

import gzip
import threading
from collections.abc import Callable
from pathlib import Path

import zstandard

from headstart.content.digest import Digest
from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.store.cached_layer import CachedLayer
from headstart.store.geometry import MIB, UNIT_SIZE
from headstart.store.layer_map import LayerStripeMap
from headstart.store.layout import Layout
from proxy.fill.layers.layer_files import NO_ACCOUNT, LayerFiles, Room
from proxy.fill.layers.ordinary import make_ordinary
from proxy.fill.layers.source import SourceFailed

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
PLAIN = "application/vnd.oci.image.layer.v1.tar"


class Arriving:
    """A blob's bytes: pieces of at most ``piece`` bytes, up to what has arrived."""

    def __init__(self, blob: bytes, piece: int = MIB, arrived: int | None = None) -> None:
        self.size = len(blob)
        self.blob = memoryview(blob)
        self.piece = piece
        self.arrived = len(blob) if arrived is None else arrived
        self.released = 0
        self.waiting = threading.Event()
        """Set when somebody waits for what has not arrived."""
        self.failure: str | None = None
        self._changed = threading.Condition()

    def read_into(self, offset: int, target: memoryview) -> int:
        with self._changed:
            while offset >= self.arrived and self.failure is None:
                self.waiting.set()
                self._changed.wait()
            if self.failure is not None:
                raise SourceFailed(self.failure)
        assert offset >= self.released
        count = min(len(target), self.piece, self.arrived - offset)
        target[:count] = self.blob[offset : offset + count]
        return count

    def release(self, stop: int) -> None:
        assert stop >= self.released
        self.released = stop

    def stop(self) -> None:
        self.fail("stopped")

    def fail(self, text: str) -> None:
        with self._changed:
            self.failure = self.failure or text
            self._changed.notify_all()

    def arrive(self, stop: int) -> None:
        with self._changed:
            self.arrived = stop
            self._changed.notify_all()


class CountingRoom:
    """Room for so many bytes; remembers what was written."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.limit = limit
        self.reserved = 0
        self.written: list[tuple[int, int, int]] = []
        self._lock = threading.Lock()

    def reserve(self, length: int, work: Callable[[], None], /) -> None:
        with self._lock:
            if self.reserved + length > self.limit:
                raise OSError(28, "No space left on device")
            self.reserved += length
        work()

    def wrote(self, descriptor: int, stripe: int, offset: int, length: int, /) -> None:
        with self._lock:
            self.written.append((stripe, offset, length))


def compressed(tar: bytes, media_type: str, members: int = 1) -> bytes:
    """A blob of this media type, of so many gzip members or zstd frames."""
    if media_type == PLAIN:
        return tar
    step = -(-len(tar) // members)
    compress = zstandard.compress if media_type == ZSTD else _gzip
    return b"".join(compress(tar[start : start + step]) for start in range(0, len(tar), step))


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 6, mtime=0)


class Making:
    """One layer that is made in a cache, by the caller's thread or by one of its own."""

    def __init__(
        self,
        layout: Layout,
        blob: bytes,
        tar: bytes,
        media_type: str = GZIP,
        *,
        digest: Digest | None = None,
        diff_id: Digest | None = None,
        source: Arriving | None = None,
        room: Room = NO_ACCOUNT,
        caps: LayerCaps = DEFAULT_CAPS,
        extent_size: int = 4 * UNIT_SIZE,
        known: bool = True,
    ) -> None:
        self.layout = layout
        self.digest = digest or Digest.of(blob)
        self.source = source or Arriving(blob)
        self.media_type = media_type
        self.diff_id = diff_id or Digest.of(tar)
        self.caps = caps
        self.known = known
        self.cancelled = threading.Event()
        self.files = LayerFiles.create(layout, self.digest, None, extent_size, room)
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Make it. Raises what :func:`make_ordinary` raises."""
        make_ordinary(
            self.source,
            self.media_type,
            self.digest if self.known else None,
            self.diff_id,
            self.files,
            caps=self.caps,
            cancelled=self.cancelled,
        )

    def start(self) -> None:
        """Make it in a thread."""

        def run() -> None:
            try:
                self.run()
            except BaseException as error:
                self.error = error

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def join(self) -> BaseException | None:
        """What it ended with; AssertionError when it does not end."""
        assert self._thread is not None
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.error

    def reader(self) -> CachedLayer:
        """The layer image as another process opens it."""
        return CachedLayer(self.files.meta_path, self.files.paths, self.files.maps)


def left_over(layout: Layout) -> list[Path]:
    """Every file of layer images in a cache."""
    return [
        path
        for stripe in layout.stripes
        for path in (stripe / "layers").rglob("*")
        if path.is_file()
    ]


def layer_threads() -> list[str]:
    """The threads of layers that run."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("layer-")]


def reboot(layout: Layout, digest: Digest) -> None:
    """Have the maps of a layer image say that they were written in another boot."""
    for path in layout.layer_paths(digest, len(layout.stripes)):
        stripe_map = LayerStripeMap(path.with_name(path.name + ".map"), writable=True)
        stripe_map.set_boot(b"another boot ago")
        stripe_map.close()
