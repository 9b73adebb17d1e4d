"""The digest of a whole blob, taken in order behind the bytes as they become contiguous."""

from headstart.content.digest import Digest
from headstart.store.geometry import MIB
from proxy.fill.blob_files import BlobFiles

PIECE_SIZE = MIB


class FollowingDigest:
    """Hashes what is contiguous from the start; advanced by one thread at a time."""

    def __init__(self, digest: Digest, files: BlobFiles) -> None:
        """Nothing hashed yet."""
        self._digest = digest
        self._files = files
        self._hasher = digest.hasher()
        self._buffer: bytearray | None = None
        self.position = 0

    def advance(self) -> bool | None:
        """Hash what has become contiguous: True or False at the end, None before. Blocks.

        Raises OSError when the bytes cannot be read back.
        """
        if self._buffer is None:
            self._buffer = bytearray(PIECE_SIZE)
        view = memoryview(self._buffer)
        size = self._files.geometry.size
        while self.position < size:
            available = self._files.map.available(self.position, PIECE_SIZE)
            if available == 0:
                self._buffer = None
                return None
            count = self._files.read_into(self.position, view[:available])
            if count == 0:
                raise OSError(f"{self._files.paths[0]} ends before byte {self.position}")
            self._hasher.update(view[:count])
            self.position += count
        self._buffer = None
        return str(self._digest) == f"{self._digest.algorithm}:{self._hasher.hexdigest()}"
