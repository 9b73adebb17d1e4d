"""The upload of one blob: begun, sent in chunks, resumed where it broke, put in its place.

OCI distribution specification, "Pushing blobs". What a registry has is asked of it after every
break; docker-registry up to 2.8 has no answer to that where the break was within a chunk (the
state in its Location is the one before), and gets the blob from its first byte again.
"""

import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import quote

from headstart.content.digest import Digest
from headstart.registry.calls import Call, Calls
from headstart.registry.errors import (
    RegistryError,
    UpstreamDenied,
    UpstreamMissing,
    UpstreamProtocol,
    UpstreamThrottled,
)
from headstart.registry.exchange import Answer
from headstart.registry.feed import FedRange, Feed
from headstart.registry.outgoing import Content, ContentFailed
from headstart.registry.redirect import check_redirect, same_origin
from headstart.registry.refusal import read_errors, refusal, shown
from headstart.registry.retry import Retry
from headstart.registry.upstream import Upstream

CHUNK_SIZE = 32 * 1024 * 1024
"""Bytes of a PATCH: less than the 100 MB that some proxies before registries take."""
MONOLITHIC_SIZE = 4 * 1024 * 1024
"""A blob up to this size goes with the PUT that ends its upload: one request fewer."""
MAX_RESUMES = 3
"""How often an upload goes on after a break without a byte more than before."""
MAX_RESTARTS = 3
"""How often an upload begins anew because the registry has lost it."""
COMMIT_RATE = 16 * 1024 * 1024
"""Bytes a second that a registry may take to put a finished upload in its place: those on object
storages copy it, others read it once more."""

_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_LOST_CODES = frozenset(("BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"))


class _UploadLost(Exception):
    """The registry does not know the upload any more."""

    def __init__(self, cause: RegistryError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(slots=True)
class _Session:
    """An upload at the registry: where it goes on, and how many bytes it has."""

    url: str
    at_origin: bool
    received: int = 0
    least_chunk: int = 0


@dataclass(frozen=True, slots=True)
class BlobTarget:
    """What is pushed to where; ``source`` is a repository from which it may be mounted."""

    repository: str
    digest: Digest
    size: int
    source: str | None = None


class BlobUpload:
    """Pushes one blob, once."""

    def __init__(
        self,
        upstream: Upstream,
        calls: Calls,
        retry: Retry,
        target: BlobTarget,
        feed: Feed,
        chunk_size: int,
        is_there: Callable[[], Awaitable[bool]],
    ) -> None:
        """``feed`` is closed by who made it; ``is_there`` asks for the whole blob."""
        self._upstream = upstream
        self._calls = calls
        self._retry = retry
        self._target = target
        self._feed = feed
        self._chunk_size = chunk_size
        self._is_there = is_there
        self._led_away = False
        self._subject = f"pushing {target.digest} to {upstream.host}/{target.repository}"

    async def run(self) -> None:
        """Raises RegistryError, and ContentFailed for whatever the feed raises."""
        session = await self._begin(self._target.source)
        if session is None:
            return
        failures = restarts = furthest = 0
        while True:
            try:
                await self._complete(session)
                return
            except ContentFailed:
                await self._cancel(session)
                raise
            except _UploadLost as lost:
                error, known = lost.cause, False
            except RegistryError as broken:
                if not broken.transient:
                    raise
                error, known = broken, True
            if session.received > furthest:
                furthest, failures = session.received, 0
            failures += 1
            if failures > MAX_RESUMES:
                raise error
            await self._pause(error, failures)
            if known and await self._resume(session):
                continue
            # The upload may be unknown because it is through, and only its answer was lost.
            if await self._is_there():
                return
            restarts += 1
            if restarts > MAX_RESTARTS:
                raise error
            begun = await self._begin(None)
            if begun is None:
                return
            session = begun

    def _base(self) -> str:
        return f"{self._upstream.url.rstrip('/')}/v2/{quote(self._target.repository)}/"

    def _call(
        self,
        method: str,
        url: str,
        fields: dict[str, str],
        session: _Session | None = None,
        content: Content | None = None,
        source: str | None = None,
        patience: float = 0.0,
    ) -> Call:
        return Call(
            method,
            url,
            self._target.repository,
            fields,
            push=True,
            source=source,
            at_origin=session is None or session.at_origin,
            content=content,
            patience=patience,
        )

    async def _begin(self, source: str | None) -> _Session | None:
        """A new upload; None when the blob was mounted from ``source``."""
        url = f"{self._base()}blobs/uploads/"
        if source is not None:
            mount = f"?mount={quote(str(self._target.digest), safe='')}&from={quote(source)}"
            # Not every registry mounts, and not everybody may pull from the source.
            with contextlib.suppress(UpstreamDenied, UpstreamMissing):
                call = self._call("POST", url + mount, {}, source=source)
                return await self._calls.run(call, self._take_begun)
        return await self._calls.run(self._call("POST", url, {}), self._take_begun)

    async def _take_begun(self, answer: Answer) -> _Session | None:
        if answer.status == 201:
            return None
        if answer.status != 202:
            raise await self._refusal(answer)
        location = answer.first("location")
        if location is None:
            raise UpstreamProtocol(f"{self._subject}: {answer.host} begins without a Location")
        session = _Session(answer.url, True)
        self._move(session, answer)
        least = answer.first("oci-chunk-min-length") or ""
        if least.isascii() and least.isdecimal():
            session.least_chunk = int(least[:18])
        return session

    def _move(self, session: _Session, answer: Answer) -> None:
        """Go where the answer says; once elsewhere, never again with our Authorization."""
        session.url = check_redirect(answer.url, answer.first("location") or answer.url)
        session.at_origin = (
            session.at_origin
            and same_origin(answer.url, self._upstream.url)
            and same_origin(session.url, self._upstream.url)
        )
        self._led_away = not session.at_origin

    async def _complete(self, session: _Session) -> None:
        """Send what the registry does not have yet, and end the upload."""
        size = self._target.size
        content: Content | None = None
        if session.received == 0 and size <= MONOLITHIC_SIZE:
            content = FedRange(self._feed, 0, size)
        else:
            while session.received < size:
                await self._send_chunk(session)
        joint = "&" if "?" in session.url else "?"
        url = f"{session.url}{joint}digest={quote(str(self._target.digest), safe='')}"
        fields = {"Content-Type": "application/octet-stream"}
        call = self._call("PUT", url, fields, session, content, patience=size / COMMIT_RATE)
        await self._calls.run_once(call, self._take_committed)

    async def _send_chunk(self, session: _Session) -> None:
        start = session.received
        length = min(max(self._chunk_size, session.least_chunk), self._target.size - start)
        fields = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{start}-{start + length - 1}",
        }

        async def take(answer: Answer) -> None:
            if answer.status == 416:
                # It has another number of bytes than we believe: it is asked.
                raise UpstreamProtocol(
                    f"{self._subject}: {answer.host} does not go on at byte {start}", transient=True
                )
            if answer.status not in (201, 202, 204):
                raise await self._refused_upload(answer)
            self._move(session, answer)
            received = _received(answer)
            # Some registries name the byte behind the last one.
            if received is None or received == start + length + 1:
                received = start + length
            if received > start + length:
                raise UpstreamProtocol(
                    f"{self._subject}: {answer.host} has {received} bytes of {start + length} sent"
                )
            session.received = received
            if received <= start:
                raise UpstreamProtocol(
                    f"{self._subject}: {answer.host} kept nothing of a chunk", transient=True
                )

        content = FedRange(self._feed, start, length)
        await self._calls.run_once(self._call("PATCH", session.url, fields, session, content), take)

    async def _take_committed(self, answer: Answer) -> None:
        if answer.status not in (201, 204):
            raise await self._refused_upload(answer)
        named = answer.first("docker-content-digest")
        if named is not None and named.strip() != str(self._target.digest):
            raise UpstreamProtocol(f"{self._subject}: {answer.host} calls it {named!r:.100}")

    async def _resume(self, session: _Session) -> bool:
        """Ask what the registry has; False when it does not know the upload or cannot tell."""

        async def take(answer: Answer) -> bool:
            if answer.status in (401, 429) or answer.status >= 500:
                raise await self._refusal(answer)
            if answer.status not in (200, 202, 204):
                return False
            received = _received(answer)
            if received is None or received > self._target.size:
                return False
            self._move(session, answer)
            session.received = received
            return True

        return await self._calls.run(self._call("GET", session.url, {}, session), take)

    async def _cancel(self, session: _Session) -> None:
        """Tell the registry that nothing more comes; it finds out by itself otherwise."""

        async def take(answer: Answer) -> None:
            await answer.discard()

        with contextlib.suppress(RegistryError):
            await self._calls.run_once(self._call("DELETE", session.url, {}, session), take)

    async def _pause(self, error: RegistryError, failures: int) -> None:
        delay = self._retry.delay(failures)
        if isinstance(error, UpstreamThrottled):
            # Kept by the next call, and by all the others.
            self._retry.pause("", max(error.retry_after, delay))
        else:
            await self._retry.sleep(delay)

    async def _refusal(self, answer: Answer) -> RegistryError:
        return self._refusal_for(answer, await read_errors(answer))

    def _refusal_for(self, answer: Answer, said: list[tuple[str, str]]) -> RegistryError:
        host, led_away = self._upstream.host, self._led_away
        return refusal(answer, self._subject, host, said, led_away=led_away)

    async def _refused_upload(self, answer: Answer) -> Exception:
        said = await read_errors(answer)
        gone = answer.status in (404, 410)
        if gone or not _LOST_CODES.isdisjoint(code for code, _ in said):
            words = f" ({shown(said)})" if said else ""
            text = f"{self._subject}: {answer.host} answers {answer.status}{words}"
            return _UploadLost(
                UpstreamMissing(f"{text}; it loses uploads, which its log or its operator explains")
            )
        return self._refusal_for(answer, said)


def _received(answer: Answer) -> int | None:
    """How many bytes an upload has by the answer's Range; None without one.

    ``0-0`` is what docker-registry says of an empty upload; of a single byte it would be true, and
    that byte is sent again.
    """
    found = _RANGE.fullmatch((answer.first("range") or "").strip())
    if found is None:
        return None
    last = int(found[1])
    return last + 1 if last else 0
