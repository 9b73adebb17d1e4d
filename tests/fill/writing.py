"""Real files of a blob in a directory, and an admission that writes to them."""

from pathlib import Path

from headstart.content.digest import Digest
from headstart.store.cached_blob import CachedBlob
from headstart.store.geometry import MIB
from headstart.store.layout import Layout
from proxy.fill.blob_files import BlobFiles
from proxy.fill.fetch import Ending, Fetch, Outcome
from proxy.fill.receiver import BUFFER_SIZE, Head, RangeReceiver
from tests.fill.fills import Clock


def layout_in(directory: Path, stripes: int = 1) -> Layout:
    """A cache of so many stripes, ready for use."""
    layout = Layout(tuple(directory / f"stripe-{number}" for number in range(stripes)))
    layout.prepare()
    return layout


def write_whole(files: BlobFiles, payload: bytes) -> None:
    """Bring a whole blob, hashed, as a range after the other would."""
    for start in range(0, len(payload), MIB):
        piece = payload[start : start + MIB]
        files.write(start, memoryview(piece))
        for extent in files.publish(0, start + len(piece), start):
            files.set_blake3(extent, files.blake3_of(extent))


def reader_of(files: BlobFiles) -> CachedBlob:
    """The blob as another process opens it."""
    return CachedBlob(files.paths, files.maps)


class WritingAdmission:
    """Accepts one blob; records what the receiver says of it."""

    def __init__(
        self, layout: Layout, digest: Digest, size: int, extent_size: int = 4 * MIB
    ) -> None:
        self.size = size
        self.files = BlobFiles.create(layout, digest, size, extent_size)
        self.refused: Outcome | None = None
        self.disk_full_at: int | None = None
        """The extent whose reservation fails."""
        self.admitted: list[tuple[int | None, str | None]] = []
        self.streams: list[int | None] = []
        self.reserved: set[int] = set()
        self.written: list[tuple[int, int, int]] = []
        self.whole: dict[int, bytes | None] = {}
        self.published = 0

    def admit(self, fetch: Fetch, size: int | None, etag: str | None) -> Outcome | None:
        self.admitted.append((size, etag))
        if size is not None and size != self.size:
            return Outcome(Ending.PROTOCOL, f"of {size} bytes")
        return self.refused

    def admit_stream(self, fetch: Fetch, size: int | None) -> Outcome | None:
        self.streams.append(size)
        if size is not None and size != self.size:
            return Outcome(Ending.PROTOCOL, f"of {size} bytes")
        if self.refused is None:
            fetch.stream = True
            fetch.start = fetch.reserved = fetch.committed = 0
            fetch.stop = self.size
        return self.refused

    def opened_files(self) -> BlobFiles:
        return self.files

    def reserve(self, extent: int) -> None:
        if extent == self.disk_full_at:
            raise OSError(28, "No space left on device")
        self.files.reserve(extent)
        self.reserved.add(extent)

    def wrote(self, stripe: int, file_offset: int, length: int) -> None:
        self.written.append((stripe, file_offset, length))

    def extent_whole(self, extent: int, digest: bytes | None) -> None:
        assert extent not in self.whole
        self.whole[extent] = digest

    def progressed(self) -> None:
        self.published += 1


def receiver_for(
    fetch: Fetch, admission: WritingAdmission, clock: Clock | None = None
) -> RangeReceiver:
    """A receiver with a buffer of its own."""
    return RangeReceiver(fetch, admission, bytearray(BUFFER_SIZE), clock or Clock())


def head(status: int, **fields: str | int | None) -> Head:
    """The head of an answer; ``content_range=`` and the like, None for an absent field."""
    return Head(
        status,
        {
            name.replace("_", "-"): [str(value)]
            for name, value in fields.items()
            if value is not None
        },
    )
