"""Digests of stored bytes, in the grammar of the OCI image specification (descriptor.md)."""

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from headstart.content.errors import InvalidInput

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

HEX_LENGTH = {"sha256": 64, "sha512": 128}
"""The registered algorithms and the length of their hexadecimal form."""

_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """``algorithm:hex``; only :meth:`parse` and :meth:`of` make one."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``sha256:…`` or ``sha512:…`` of exact length. Raises InvalidInput."""
        algorithm, _, encoded = text.partition(":")
        if len(encoded) != HEX_LENGTH.get(algorithm, -1) or not _HEX.fullmatch(encoded):
            raise InvalidInput("digest", text, "write sha256: and 64 lower-case hex digits")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> Self:
        """The digest of ``content``."""
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    def hasher(self) -> "Hash":
        """A fresh hash object of this algorithm."""
        return hashlib.new(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
