"""The open files of an object: its extents read back and held against their BLAKE3."""

import os
from abc import ABC, abstractmethod

from blake3 import blake3

from headstart.store.geometry import MIB, Geometry
from headstart.store.map_file import STATE_HASHED, JoinedMap, MapFile

READ_BACK_SIZE = MIB


class ExtentFiles(ABC):
    """All stripes of one blob or layer image. Reads may come from any thread."""

    def __init__(self, geometry: Geometry, descriptors: list[int]) -> None:
        """``descriptors`` of the stripes' files in their order; closed with this."""
        self.geometry = geometry
        self._descriptors = descriptors

    @abstractmethod
    def published(self) -> JoinedMap[MapFile]:
        """The map. Raises ValueError while there is none."""

    def read_into(self, offset: int, target: memoryview) -> int:
        """Read into ``target``; how many bytes, fewer only at an extent's end. Raises OSError."""
        stripe, file_offset = self.geometry.place(offset)
        within = self.geometry.extent_size - offset % self.geometry.extent_size
        return os.preadv(self._descriptors[stripe], [target[:within]], file_offset)

    def blake3_of(self, extent: int) -> bytes:
        """The digest of an extent's bytes as they are on disk now. Raises OSError."""
        hasher = blake3()
        buffer = memoryview(bytearray(READ_BACK_SIZE))
        position = extent * self.geometry.extent_size
        stop = position + self.geometry.extent_length(extent)
        while position < stop:
            count = self.read_into(position, buffer[: min(READ_BACK_SIZE, stop - position)])
            if count == 0:
                break
            hasher.update(buffer[:count])
            position += count
        return hasher.digest()

    def set_blake3(self, extent: int, digest: bytes) -> None:
        """Record the digest of a whole extent."""
        stripe, record = self.published().locate(extent)
        stripe.set_blake3(record, digest)

    def unchecked(self, extent: int) -> bool:
        """Whether the extent must match its BLAKE3 before it is believed."""
        return self.published().unchecked(extent)

    def check_extent(self, extent: int) -> bool:
        """Hold an unchecked extent against its BLAKE3; a mismatch makes it a miss."""
        stripe, record = self.published().locate(extent)
        try:
            right = self.blake3_of(extent) == stripe.blake3(record)
        except OSError:
            right = False
        if right:
            stripe.set_state(record, STATE_HASHED)
        else:
            stripe.clear(record)
        return right

    def _record_times(self) -> None:
        """Let the map remember the files as they are now."""
        for descriptor, stripe_map in zip(self._descriptors, self.published().stripes, strict=True):
            status = os.fstat(descriptor)
            stripe_map.record(status.st_size, status.st_ctime_ns)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files, by stripe."""
        return tuple(self._descriptors)

    def close(self) -> None:
        """Close the files; a second time does nothing."""
        # Emptied first: a number that is closed may be another file's at once.
        descriptors = self._descriptors[:]
        self._descriptors.clear()
        for descriptor in descriptors:
            os.close(descriptor)
