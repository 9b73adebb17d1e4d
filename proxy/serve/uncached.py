"""Bytes that pass through without being kept, for when no disk can take them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from headstart.content.digest import Digest
from headstart.content.ranges import ByteRange
from headstart.registry.client import RegistryClient
from headstart.registry.errors import UpstreamProtocol
from headstart.store.cached_blob import CachedBlob
from proxy.serve.delivery import WITHHELD_BYTES

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

_HASHED_AT_ONCE = 8 * 1024 * 1024


async def uncached_range(
    client: RegistryClient,
    repository: str,
    digest: Digest,
    authorization: str | None,
    part: ByteRange,
) -> AsyncGenerator[bytes, None]:
    """The bytes of ``part``, unchecked. Raises RegistryError."""
    left = part.length
    async with client.stream_blob(repository, digest, part.start, authorization) as pieces:
        async for piece in pieces:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return
    raise UpstreamProtocol(f"{client.upstream.host}: the blob ends {left} bytes early")


async def uncached_rest(
    client: RegistryClient,
    repository: str,
    digest: Digest,
    authorization: str | None,
    part: ByteRange,
    cached: CachedBlob | None,
) -> AsyncGenerator[bytes, None]:
    """The bytes of ``part``, which ends where the blob ends; its end only if the digest passes.

    The digest is of the whole blob: what lies before the part is read from ``cached`` as far as
    it is there, and else fetched too. Raises RegistryError or OSError.
    """
    hasher = digest.hasher()
    position = 0 if cached is None else cached.available(0, part.start)
    if cached is not None:
        await _hash_cached(hasher, cached, position)
    held = bytearray()
    async with (
        client.stream_blob(repository, digest, position, authorization) as pieces,
        aclosing(_checked_length(client, pieces, part.stop - position)) as rest,
    ):
        async for piece in rest:
            hasher.update(piece)
            held += piece[max(0, part.start - position) :]
            position += len(piece)
            if len(held) > WITHHELD_BYTES:
                yield bytes(held[:-WITHHELD_BYTES])
                del held[:-WITHHELD_BYTES]
    if hasher.hexdigest() != digest.hex:
        raise UpstreamProtocol(f"{client.upstream.host}: the bytes do not have the digest {digest}")
    yield bytes(held)


async def _checked_length(
    client: RegistryClient, pieces: AsyncIterator[bytes], length: int
) -> AsyncGenerator[bytes, None]:
    async for piece in pieces:
        length -= len(piece)
        if length < 0:
            break
        yield piece
    if length:
        raise UpstreamProtocol(f"{client.upstream.host}: the blob has another size than it had")


async def _hash_cached(hasher: "Hash", cached: CachedBlob, stop: int) -> None:
    for start in range(0, stop, _HASHED_AT_ONCE):
        count = min(_HASHED_AT_ONCE, stop - start)
        hasher.update(await asyncio.to_thread(cached.read, start, count))
