"""Answers to GET and HEAD of a blob.

A hit goes out by sendfile and asks nobody. A miss wants its bytes from the filler and sends them
as they arrive; the end of a whole or open-ended answer is withheld until the digest has passed. An
error before the head has gone is a status, and later a reset: never a short clean end.
"""

import asyncio
import errno
import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass

from headstart.content.digest import Digest
from headstart.content.ranges import ByteRange, RangeSpec, parse_range
from headstart.content.reference import qualified_repository
from headstart.registry.errors import RegistryError, UpstreamProtocol
from headstart.registry.upstream import Upstream
from headstart.store.cached_blob import CachedBlob
from headstart.store.errors import FillerUnreachable, FillFailed
from headstart.store.open_blob import OpenBlob
from headstart.store.open_object import Want
from proxy.serve.arrivals import Arrivals, Departure, same_file
from proxy.serve.blobs import OPEN_SECONDS, LentBlob
from proxy.serve.delivery import (
    WITHHELD_BYTES,
    Delivery,
    first_wanted,
    if_range_holds,
    plan,
    whole,
)
from proxy.serve.outlet import ClientDisconnected, FileTooShort
from proxy.serve.request import Request
from proxy.serve.services import BlobWatch, Services
from proxy.serve.transmission import PIECE_BYTES, Presence, Transmission, blob_fields
from proxy.serve.uncached import uncached_range, uncached_rest

logger = logging.getLogger(__name__)

HEAD_SECONDS = 10.0
"""After so long without a byte the head goes out alone: clients wait for it impatiently."""

_UNREADABLE = frozenset((errno.EIO, errno.ENXIO, errno.ESTALE, errno.ENODATA))
"""Of a file, not of the client's socket and not for want of descriptors or memory."""

_FAILURES = (FillFailed, FillerUnreachable, RegistryError, OSError, MemoryError)


@dataclass(frozen=True, slots=True)
class BlobAsk:
    """Which blob a request is about; ``authorization`` only where the upstream is to see it."""

    request: Request
    upstream: Upstream
    repository: str
    digest: Digest
    authorization: str | None


class BlobAnswers:
    """Answers requests for blobs."""

    def __init__(self, services: Services) -> None:
        """Uses the services' blobs, filler, clients and book of pulls."""
        self._services = services
        self._request_size = services.configuration.fetch.request_size

    async def head(self, ask: BlobAsk) -> None:
        """Answer HEAD: the size as soon as it is known; no byte of the blob is fetched for it."""
        try:
            lent = await self._borrow(ask, None)
        except FillFailed as failure:
            if failure.code != "space":
                raise
            size, cache = await self._ask_size(ask), b"miss"
        else:
            try:
                size = lent.handle.blob.size
                cache = Presence(lent.handle, whole(size)).word()
            finally:
                self._services.blobs.give_back(lent)
        fields = blob_fields(ask.digest, cache) + whole(size).fields()
        await ask.request.start(200, fields)
        await ask.request.send({"type": "http.response.body", "body": b""})

    async def get(self, ask: BlobAsk) -> None:
        """Answer GET, with or without Range.

        Raises InvalidInput, RangeUnsatisfiable, FillFailed, FillerUnreachable, RegistryError or
        OSError; where the head has gone by then, the connection has to be reset.
        """
        specs = self._asked_ranges(ask)
        lent = self._services.blobs.at_hand(
            ask.upstream, ask.repository, ask.digest, ask.authorization
        )
        opening = 0.0
        if lent is None:
            began = asyncio.get_running_loop().time()
            try:
                lent = await self._borrow(ask, first_wanted(specs))
            except FillFailed as failure:
                if failure.code != "space":
                    raise
                await self._answer_uncached(ask, specs)
                return
            opening = asyncio.get_running_loop().time() - began
        try:
            await self._answer(ask, lent.handle, specs, opening)
        finally:
            self._services.blobs.give_back(lent)

    @staticmethod
    def _asked_ranges(ask: BlobAsk) -> tuple[RangeSpec, ...] | None:
        field = ask.request.fields.get(b"range")
        if field is None:
            return None
        if not if_range_holds(ask.request.fields.get(b"if-range"), ask.digest):
            return None
        return parse_range(field)

    async def _borrow(self, ask: BlobAsk, first: tuple[int, int | None] | None) -> LentBlob:
        with Departure(ask.request.receive):
            return await self._services.blobs.borrow(
                ask.upstream,
                ask.repository,
                ask.digest,
                first=first,
                authorization=ask.authorization,
                timeout_seconds=OPEN_SECONDS,
            )

    def _watch(self, ask: BlobAsk, size: int) -> BlobWatch:
        return self._services.pulls.blob(
            ask.request.client, ask.upstream.host, ask.repository, str(ask.digest), size
        )

    # --- from the store ---

    async def _answer(
        self,
        ask: BlobAsk,
        handle: OpenBlob,
        specs: tuple[RangeSpec, ...] | None,
        opening: float,
    ) -> None:
        blob = handle.blob
        delivery = plan(specs, blob.size)
        with self._watch(ask, blob.size) as watch:
            if opening:
                watch.waited_for_filler(opening)
            transmission = Transmission(ask.request, ask.digest, delivery, watch)
            try:
                if all_here(blob, delivery) and not handle.opened_empty:
                    await self._tell_chains(ask, handle, delivery)
                    await transmission.start(b"hit", blob.verified)
                    await transmission.send_all(blob)
                elif not blob.size:
                    await self._answer_empty(ask, transmission)
                else:
                    # Clients count from their request on, so what the opening took is gone.
                    patience = max(0.0, min(HEAD_SECONDS, OPEN_SECONDS - opening))
                    await self._stream(ask, handle, transmission, watch, patience)
            except ClientDisconnected:
                raise
            except FileTooShort as error:
                # Somebody changed the file behind the store's back.
                self._services.filler.suspect(handle)
                watch.failed(str(error))
                raise
            except _FAILURES as error:
                if isinstance(error, OSError) and error.errno in _UNREADABLE:
                    self._services.filler.suspect(handle)
                watch.failed(str(error))
                raise

    async def _tell_chains(self, ask: BlobAsk, handle: OpenBlob, delivery: Delivery) -> None:
        """Whoever gets the end of an image's configuration may ask for its chain IDs at once.

        Not where each client has its own credentials: a mount would have none to show.
        """
        chains = self._services.chains
        if ask.upstream.access == "passthrough":
            return
        place = ask.upstream.host, qualified_repository(ask.upstream.host, ask.repository)
        if delivery.to_the_end and chains.expects(*place, ask.digest):
            await chains.tell(*place, ask.digest, handle.blob)

    @staticmethod
    async def _answer_empty(ask: BlobAsk, transmission: Transmission) -> None:
        if ask.digest.hasher().hexdigest() != ask.digest.hex:
            raise UpstreamProtocol(f"{ask.upstream.host}: an empty blob for {ask.digest}")
        await transmission.start(b"miss", True)
        await transmission.end()

    async def _stream(
        self,
        ask: BlobAsk,
        handle: OpenBlob,
        transmission: Transmission,
        watch: BlobWatch,
        patience: float,
    ) -> None:
        """Send as bytes arrive; what no disk can take passes through."""
        arrivals = Arrivals(self._services.filler, handle, watch.waited_for_filler)
        presence = Presence(handle, transmission.delivery)
        try:
            with Departure(ask.request.receive):
                await self._send_arriving(ask, handle, transmission, arrivals, presence, patience)
        except FillFailed as failure:
            if failure.code != "space":
                raise
            with Departure(ask.request.receive):
                await self._pass_through(ask, transmission, handle.blob)
        await transmission.end()

    async def _send_arriving(
        self,
        ask: BlobAsk,
        handle: OpenBlob,
        transmission: Transmission,
        arrivals: Arrivals,
        presence: Presence,
        patience: float,
    ) -> None:
        blob, delivery = handle.blob, transmission.delivery
        withhold = delivery.to_the_end and not blob.verified
        async with AsyncExitStack() as stack:
            wants = [
                await stack.enter_async_context(self._want(handle, part, delivery))
                for part in delivery.parts
            ]
            before: Want | None = None
            if withhold and delivery.parts[0].start:
                # The digest is of the whole blob; without what lies before it would never pass.
                front = handle.wanting(0, delivery.parts[0].start, "client", bulk=True)
                before = await stack.enter_async_context(front)
            first = delivery.parts[0]
            try:
                async with asyncio.timeout(patience):
                    if withhold and first.length <= WITHHELD_BYTES:
                        await self._await_digest(arrivals, wants[0], before)
                        await self._tell_chains(ask, handle, delivery)
                    else:
                        if not withhold:
                            # Its digest may have passed since it was looked at first.
                            await self._tell_chains(ask, handle, delivery)
                        await arrivals.bytes_at(wants[0], first.start, 1)
            except TimeoutError:
                logger.debug("%s: the head goes out alone", handle.message["digest"])
            await transmission.start(presence.word(), blob.verified)
            for want, part in zip(wants, delivery.parts, strict=True):
                await transmission.enter()
                stop = part.stop - WITHHELD_BYTES if withhold else part.stop
                while transmission.part_start < part.stop:
                    if transmission.part_start >= stop:
                        await self._await_digest(arrivals, want, before)
                        await self._tell_chains(ask, handle, delivery)
                        stop = part.stop
                    start = transmission.part_start
                    count = await arrivals.bytes_at(want, start, min(stop - start, PIECE_BYTES))
                    self._check_same(handle, blob)
                    here = presence.count(start, start + count)
                    await transmission.send_cached(handle.blob, count, here)
                transmission.leave()

    def _want(
        self, handle: OpenBlob, part: ByteRange, delivery: Delivery
    ) -> AbstractAsyncContextManager[Want]:
        bulk = delivery.to_the_end or part.length >= self._request_size
        return handle.wanting(part.start, part.length, "client", bulk=bulk)

    @staticmethod
    async def _await_digest(arrivals: Arrivals, want: Want, before: Want | None) -> None:
        if before is not None:
            await arrivals.done(before)
        await arrivals.verified(want)

    @staticmethod
    def _check_same(handle: OpenBlob, begun: CachedBlob) -> None:
        if handle.failure is not None and handle.failure.code == "digest":
            raise handle.failure
        if handle.blob is not begun and not begun.verified and not same_file(handle.blob, begun):
            raise FillFailed("digest", "the blob was fetched anew while it was sent")

    # --- past the store ---

    async def _answer_uncached(self, ask: BlobAsk, specs: tuple[RangeSpec, ...] | None) -> None:
        """The disk had no room for so much as the blob's map."""
        size = await self._ask_size(ask)
        delivery = plan(specs, size)
        with self._watch(ask, size) as watch:
            transmission = Transmission(ask.request, ask.digest, delivery, watch)
            try:
                if not size:
                    await self._answer_empty(ask, transmission)
                    return
                with Departure(ask.request.receive):
                    await self._pass_through(ask, transmission, None)
                await transmission.end()
            except ClientDisconnected:
                raise
            except _FAILURES as error:
                watch.failed(str(error))
                raise

    async def _pass_through(
        self, ask: BlobAsk, transmission: Transmission, cached: CachedBlob | None
    ) -> None:
        """Send what is still due straight from the upstream."""
        logger.info("%s: passes through uncached, the cache has no room", ask.digest)
        delivery = transmission.delivery
        while transmission.number < len(delivery.parts):
            part = ByteRange(transmission.part_start, delivery.parts[transmission.number].stop)
            async with aclosing(self._uncached(ask, delivery, part, cached)) as passing:
                piece = await self._first_passing(transmission, passing)
                await transmission.enter()
                await transmission.send_passing(piece)
                async for piece in passing:
                    await transmission.send_passing(piece)
            transmission.leave()

    @staticmethod
    async def _first_passing(
        transmission: Transmission, passing: AsyncGenerator[bytes, None]
    ) -> bytes:
        """The first bytes; the head has gone out with or, when they take long, before them."""
        first = asyncio.ensure_future(anext(passing, b""))
        try:
            await asyncio.wait((first,), timeout=HEAD_SECONDS)
            if not transmission.started and not (first.done() and first.exception()):
                await transmission.start(b"miss", False)
            return await first
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    def _uncached(
        self, ask: BlobAsk, delivery: Delivery, part: ByteRange, cached: CachedBlob | None
    ) -> AsyncGenerator[bytes, None]:
        client = self._services.clients[ask.upstream.host]
        repository = qualified_repository(ask.upstream.host, ask.repository)
        source = (client, repository, ask.digest, ask.authorization, part)
        return uncached_rest(*source, cached) if delivery.to_the_end else uncached_range(*source)

    async def _ask_size(self, ask: BlobAsk) -> int:
        client = self._services.clients[ask.upstream.host]
        repository = qualified_repository(ask.upstream.host, ask.repository)
        return await client.head_blob(repository, ask.digest, ask.authorization)


def all_here(blob: CachedBlob, delivery: Delivery) -> bool:
    """Whether everything can be sent as it is: each byte is here, and checked where it must be."""
    if delivery.to_the_end and not blob.verified:
        return False
    return all(blob.available(part.start, part.length) == part.length for part in delivery.parts)
