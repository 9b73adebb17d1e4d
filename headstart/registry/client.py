"""Asks one upstream: manifests, sizes, tags, referrers, authorization, and blobs as a stream.

Every call has a deadline as a whole (``first_byte + stall``), retries what may pass, follows
redirects without taking the Authorization to another origin, and raises RegistryError only.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.ranges import parse_content_range
from headstart.registry.address import resolve
from headstart.registry.calls import Call, Calls
from headstart.registry.errors import RegistryError, UpstreamProtocol
from headstart.registry.exchange import Answer
from headstart.registry.passed import PassedAnswer, passed_headers
from headstart.registry.retry import Retry
from headstart.registry.transport import Resolve
from headstart.registry.upstream import Upstream

MAX_MANIFEST_SIZE = 4 * 1024 * 1024
MAX_LIST_SIZE = 8 * 1024 * 1024
MAX_RESUMES = 3

_LIST = re.compile(r"/v2/(?P<repository>.+?)/(?:tags/list|referrers/[^/]+)")


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What HEAD says of a manifest; ``digest`` and ``size`` None where it does not say it."""

    digest: Digest | None
    media_type: str
    size: int | None


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """A manifest's exact bytes, its media type as sent, and the digest of the bytes."""

    body: bytes
    media_type: str
    digest: Digest


class RegistryClient:
    """The control plane of one upstream. Belongs to one event loop; close it at the end."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        resolve_host: Resolve = resolve,
        retry: Retry | None = None,
    ) -> None:
        """Connects to nothing yet."""
        self.upstream = upstream
        self._base = upstream.url.rstrip("/") + "/v2/"
        self._calls = Calls(upstream, resolve_host, retry or Retry())

    async def aclose(self) -> None:
        """Close connections and end renewals of tokens."""
        await self._calls.aclose()

    # --- manifests ---

    async def head_manifest(
        self, repository: str, reference: str, accept: str, authorization: str | None = None
    ) -> ManifestHead:
        """Digest, media type and size of a manifest without its bytes."""

        async def take(answer: Answer) -> ManifestHead | None:
            if answer.status == 405:
                return None
            self._calls.check_status(answer, 200)
            answer.check_identity()
            return ManifestHead(_content_digest(answer), answer.media_type(), answer.length())

        call = self._manifest_call("HEAD", repository, reference, accept, authorization)
        head = await self._calls.run(call, take)
        if head is None:
            manifest = await self.get_manifest(repository, reference, accept, authorization)
            head = ManifestHead(manifest.digest, manifest.media_type, len(manifest.body))
        return head

    async def get_manifest(
        self, repository: str, reference: str, accept: str, authorization: str | None = None
    ) -> ManifestAnswer:
        """A manifest of at most 4 MiB, its bytes checked against every digest that is known."""

        asked = Digest.parse(reference) if ":" in reference else None

        async def take(answer: Answer) -> ManifestAnswer:
            self._calls.check_status(answer, 200)
            answer.check_identity()
            named = _content_digest(answer)
            body = await answer.read(MAX_MANIFEST_SIZE)
            for expected in (named, asked):
                if expected is not None and Digest.of(body, expected.algorithm) != expected:
                    raise UpstreamProtocol(
                        f"{answer.host}: the manifest's bytes do not have the digest {expected}",
                        transient=True,
                    )
            if not body:
                raise UpstreamProtocol(f"{answer.host}: an empty manifest")
            return ManifestAnswer(body, answer.media_type(), asked or named or Digest.of(body))

        call = self._manifest_call("GET", repository, reference, accept, authorization)
        return await self._calls.run(call, take)

    def _manifest_call(
        self,
        method: str,
        repository: str,
        reference: str,
        accept: str,
        authorization: str | None,
    ) -> Call:
        url = f"{self._base}{quote(repository)}/manifests/{quote(reference, safe=':')}"
        return Call(method, url, repository, {"Accept": accept}, authorization)

    async def passthrough(
        self, path: str, query: str, accept: str | None, authorization: str | None = None
    ) -> PassedAnswer:
        """The upstream's answer to ``/v2/NAME/tags/list`` or ``/v2/NAME/referrers/DIGEST``.

        200 and 400 are passed on; every other status raises as elsewhere.
        """
        found = _LIST.fullmatch(path)
        if found is None:
            raise ValueError(f"{path!r} is neither a list of tags nor of referrers")

        async def take(answer: Answer) -> PassedAnswer:
            self._calls.check_status(answer, 200, 400)
            answer.check_identity()
            body = await answer.read(MAX_LIST_SIZE)
            return PassedAnswer(answer.status, passed_headers(answer, self.upstream.url), body)

        url = self._base + quote(path.removeprefix("/v2/"), safe="/:")
        if query:
            url += "?" + quote(query, safe="%&=+:/,;@!$'()*~?-._")
        fields = {"Accept": accept} if accept else {}
        call = Call("GET", url, found["repository"], fields, authorization)
        return await self._calls.run(call, take)

    # --- blobs ---

    def blob_url(self, repository: str, digest: Digest) -> str:
        """Where the registry has the blob; it may redirect."""
        return f"{self._base}{quote(repository)}/blobs/{digest}"

    async def head_blob(
        self, repository: str, digest: Digest, authorization: str | None = None
    ) -> int:
        """The size of a blob. Where HEAD does not tell, the first byte is asked for."""
        url = self.blob_url(repository, digest)

        async def take(answer: Answer) -> int | None:
            # A URL signed for GET refuses HEAD; the registry itself has said yes before.
            if answer.url != url and answer.status in (400, 401, 403, 405, 501):
                return None
            self._calls.check_status(answer, 200)
            answer.check_identity()
            if _content_digest(answer) not in (None, digest):
                raise UpstreamProtocol(f"{answer.host} answers for another digest than {digest}")
            return answer.length()

        call = Call("HEAD", url, repository, {"Accept": "*/*"}, authorization)
        size = await self._calls.run(call, take)
        if size is None:
            fields = {"Accept": "*/*", "Range": "bytes=0-0"}
            call = Call("GET", url, repository, fields, authorization)
            size = await self._calls.run(call, self._take_size)
        return size

    async def _take_size(self, answer: Answer) -> int:
        self._calls.check_status(answer, 200, 206, 416)
        size: int | None
        if answer.status == 200:
            answer.check_identity()
            size = answer.length()
        else:
            size = _content_size(answer)
        if size is None:
            raise UpstreamProtocol(f"{answer.host} does not say how long the blob is")
        if answer.status == 416 and size > 0:
            raise UpstreamProtocol(f"{answer.host} refuses the first byte of {size}")
        return size

    @asynccontextmanager
    async def stream_blob(
        self, repository: str, digest: Digest, start: int, authorization: str | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The blob's bytes from ``start`` to its end, as a context with an iterator.

        Goes on by itself where the connection breaks, at most :data:`MAX_RESUMES` times without
        a byte between. The bytes are not checked against the digest.
        """
        async with AsyncExitStack() as stack:
            first = await self._open_blob(repository, digest, start, authorization)
            await stack.enter_async_context(first.answer)

            async def pieces() -> AsyncGenerator[bytes, None]:
                opened, position, failures = first, start, 0
                while True:
                    try:
                        async with aclosing(opened.pieces()) as received:
                            async for piece in received:
                                position, failures = position + len(piece), 0
                                yield piece
                    except RegistryError as error:
                        failures += 1
                        if not error.transient or failures > MAX_RESUMES:
                            raise
                    else:
                        if opened.size is None or position == opened.size:
                            return
                        failures += 1
                        if position > opened.size or failures > MAX_RESUMES:
                            raise UpstreamProtocol(
                                f"{opened.answer.host} sent {position} bytes of {opened.size}"
                            )
                    await opened.answer.aclose()
                    again = await self._open_blob(repository, digest, position, authorization)
                    await stack.enter_async_context(again.answer)
                    if opened.size is not None and again.size != opened.size:
                        raise UpstreamProtocol(
                            f"{again.answer.host}: the blob's size changed while it was read"
                        )
                    opened = again

            yield await stack.enter_async_context(aclosing(pieces()))

    async def _open_blob(
        self, repository: str, digest: Digest, start: int, authorization: str | None
    ) -> "_OpenBlob":
        fields = {"Accept": "*/*"}
        if start:
            fields["Range"] = f"bytes={start}-"
        call = Call("GET", self.blob_url(repository, digest), repository, fields, authorization)
        return await self._calls.run(call, lambda answer: self._take_stream(answer, start), False)

    async def _take_stream(self, answer: Answer, start: int) -> "_OpenBlob":
        self._calls.check_status(answer, 200, 206)
        answer.check_identity()
        if answer.status == 200:
            return _OpenBlob(answer, answer.length(), skip=start)
        try:
            sent = parse_content_range(answer.first("content-range") or "")
        except InvalidInput:
            raise UpstreamProtocol(f"{answer.host}: a 206 without a valid Content-Range") from None
        if sent.start != start or (sent.size is not None and sent.stop != sent.size):
            raise UpstreamProtocol(f"{answer.host} sent other bytes than asked for", transient=True)
        return _OpenBlob(answer, sent.size, skip=0)

    # --- for whoever fetches blobs by other means ---

    async def blob_authorization(
        self, repository: str, authorization: str | None = None
    ) -> str | None:
        """The Authorization for a GET of a blob at the registry's own origin, or None.

        A token is fetched only when the upstream is known to want one.
        """
        return await self._calls.current(repository, authorization)

    async def blob_challenged(
        self,
        repository: str,
        www_authenticate: list[str],
        used: str | None,
        authorization: str | None = None,
    ) -> str:
        """The Authorization to try after a 401 that answered ``used``.

        All who are refused at once share one renewal. Raises UpstreamDenied when it is a loop.
        """
        return await self._calls.challenged(repository, www_authenticate, used, authorization)

    def blob_accepted(self, repository: str, used: str, authorization: str | None = None) -> None:
        """Tell that ``used`` was let in, so that a later 401 is an expiry and no loop."""
        self._calls.accepted(repository, used, authorization)


@dataclass(slots=True)
class _OpenBlob:
    """A stream of a blob: ``size`` of the whole blob, ``skip`` bytes to leave out first."""

    answer: Answer
    size: int | None
    skip: int

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body from the byte that was asked for."""
        skip = self.skip
        async with aclosing(self.answer.pieces()) as pieces:
            async for piece in pieces:
                if skip < len(piece):
                    yield piece[skip:]
                skip = max(0, skip - len(piece))


def _content_digest(answer: Answer) -> Digest | None:
    """Docker-Content-Digest, or None when absent. Raises UpstreamProtocol."""
    text = answer.first("docker-content-digest")
    if text is None:
        return None
    try:
        return Digest.parse(text.strip())
    except InvalidInput:
        raise UpstreamProtocol(f"{answer.host}: a malformed Docker-Content-Digest") from None


def _content_size(answer: Answer) -> int | None:
    """The total that Content-Range names, or None."""
    try:
        return parse_content_range(answer.first("content-range") or "").size
    except InvalidInput:
        return None
