"""Pushes to one upstream: blobs, mounted or uploaded, and manifests."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from headstart.content.digest import Digest
from headstart.registry.address import resolve
from headstart.registry.calls import Call, Calls
from headstart.registry.errors import (
    CredentialsUnusable,
    PushRefused,
    UpstreamDenied,
    UpstreamProtocol,
)
from headstart.registry.exchange import Answer
from headstart.registry.feed import Feed, OpenAt
from headstart.registry.outgoing import ContentFailed, WholeContent
from headstart.registry.refusal import credentials_remedy, read_errors, refusal
from headstart.registry.retry import Retry
from headstart.registry.transport import Resolve
from headstart.registry.upload import CHUNK_SIZE, BlobTarget, BlobUpload
from headstart.registry.upstream import Upstream


class RegistryPusher:
    """What is written to one upstream. Belongs to one event loop; close it at the end.

    Every method raises RegistryError: PushRefused where the registry does not take it.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        resolve_host: Resolve = resolve,
        retry: Retry | None = None,
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        """Connects to nothing yet. ``chunk_size`` is the bytes of one request of an upload."""
        self.upstream = upstream
        self._retry = retry or Retry()
        self._calls = Calls(upstream, resolve_host, self._retry)
        self._chunk_size = chunk_size

    async def aclose(self) -> None:
        """Close connections and end renewals of tokens."""
        await self._calls.aclose()

    async def has_blob(self, repository: str, digest: Digest) -> bool:
        """Whether the repository has the blob."""
        host = self.upstream.host
        url = f"{self._base(repository)}/blobs/{digest}"

        async def take(answer: Answer) -> bool:
            # A URL signed for GET refuses HEAD; the registry itself has said yes before.
            if answer.status == 200 or (answer.url != url and answer.status in (400, 401, 403)):
                return True
            if answer.status in (404, 405):
                return False
            subject = f"asking {host}/{repository} for {digest}"
            raise refusal(answer, subject, host, await read_errors(answer))

        with self._explained(f"{host}/{repository}"):
            call = Call("HEAD", url, repository, {"Accept": "*/*"}, push=True)
            return await self._calls.run(call, take)

    async def push_blob(
        self,
        repository: str,
        digest: Digest,
        size: int,
        open_at: OpenAt,
        *,
        source: str | None = None,
    ) -> None:
        """Mount the blob from the repository ``source`` of the same registry, else upload it.

        ``open_at`` is called again for a later offset, or an earlier one, where an upload broke.
        The registry compares the bytes with the digest. Raises what ``open_at`` raises, too.
        """
        feed = Feed(open_at)
        upload = BlobUpload(
            self.upstream,
            self._calls,
            self._retry,
            BlobTarget(repository, digest, size, source),
            feed,
            self._chunk_size,
            lambda: self.has_blob(repository, digest),
        )
        try:
            with self._explained(f"{self.upstream.host}/{repository}"):
                await upload.run()
        except ContentFailed as failed:
            raise failed.cause from failed.cause.__cause__
        finally:
            await feed.aclose()

    async def push_manifest(
        self, repository: str, reference: str, body: bytes, media_type: str
    ) -> Digest:
        """Put a manifest or index under a tag or its digest; gives the digest of ``body``.

        What it names has to be there before.
        """
        host = self.upstream.host
        subject = f"pushing the manifest {reference} to {host}/{repository}"
        wanted = Digest.parse(reference) if ":" in reference else None
        digest = Digest.of(body, wanted.algorithm if wanted is not None else "sha256")
        if wanted is not None and wanted != digest:
            raise ValueError(f"{wanted} is not the digest of the manifest, {digest}")

        async def take(answer: Answer) -> None:
            if answer.status not in (200, 201, 202, 204):
                raise refusal(answer, subject, host, await read_errors(answer))
            named = answer.first("docker-content-digest")
            if named is not None and named.strip() != str(digest):
                raise UpstreamProtocol(
                    f"{subject}: {answer.host} calls it {named!r:.100}, and its digest is {digest}"
                )

        url = f"{self._base(repository)}/manifests/{quote(reference, safe=':')}"
        fields = {"Content-Type": media_type}
        call = Call("PUT", url, repository, fields, push=True, content=WholeContent(body))
        with self._explained(f"{host}/{repository}"):
            await self._calls.run(call, take)
        return digest

    def _base(self, repository: str) -> str:
        return f"{self.upstream.url.rstrip('/')}/v2/{quote(repository)}"

    @contextmanager
    def _explained(self, where: str) -> Iterator[None]:
        """Say where and what to do, for a refusal that came before the registry's own answer."""
        try:
            yield
        except (PushRefused, CredentialsUnusable):
            raise
        except UpstreamDenied as error:
            remedy = credentials_remedy(self.upstream.host)
            raise PushRefused(f"pushing to {where}: {error}; {remedy}") from error
