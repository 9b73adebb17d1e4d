"""Manifests: from the index when its upstream vouches for them, else from the upstream.

A digest means the same for ever; a tag is asked for at its upstream each time (or once in
``mirror.tag_ttl``). While the upstream is down, a tag means what it meant within
``mirror.stale_window``; an upstream that answers "missing" or "denied" is believed at once.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.manifest import Index, Manifest, read_manifest
from headstart.content.reference import parse_reference, qualified_repository
from headstart.content.sizes import format_duration
from headstart.registry.client import ManifestAnswer, ManifestHead, RegistryClient
from headstart.registry.errors import (
    UpstreamDeadline,
    UpstreamDenied,
    UpstreamMissing,
    UpstreamProtocol,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from headstart.registry.upstream import Upstream
from proxy.serve.accept import KNOWN, Accepted
from proxy.serve.flights import Flights
from proxy.serve.grants import Grants
from proxy.serve.kept import Kept, KeptManifest, KeptTag, age

logger = logging.getLogger(__name__)

OUTAGE = (UpstreamUnavailable, UpstreamDeadline, UpstreamThrottled)
"""Errors that say nothing about what was asked for."""

Expect = Callable[[str, str, Digest, Manifest | Index], None]
"""Is told upstream, repository, digest and document: whose descriptors may be asked for next."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """A manifest or index for a client.

    ``document`` is None for kinds that are only passed through; ``warning`` is the text for a
    Warning field when a tag could not be checked; ``cache`` says where the bytes came from.
    """

    body: bytes
    media_type: str
    digest: Digest
    warning: str | None
    cache: Literal["hit", "miss"]
    document: Manifest | Index | None


@dataclass(frozen=True, slots=True)
class _Ask:
    """Who asks what of whom; ``authorization`` only where the upstream is to see it."""

    upstream: Upstream
    client: RegistryClient
    repository: str
    accept: Accepted
    authorization: str | None
    credential: bytes

    @property
    def place(self) -> str:
        """What vouches: the upstream, or for passed-on credentials one repository of it."""
        if self.upstream.access == "passthrough":
            return f"{self.upstream.host}/{self.repository}"
        return self.upstream.host

    def tag_name(self, tag: str) -> str:
        """The name of the tag's record, for clients that accept the same."""
        name = f"{self.upstream.host}/{self.repository}:{tag}"
        return f"{name};{self.accept.key}" if self.accept.key else name

    def question(self, *what: str) -> tuple[object, ...]:
        """What makes two questions to the upstream the same."""
        return (self.upstream.host, self.repository, self.accept.key, self.credential, *what)


class Manifests:
    """Finds manifests for clients of the mirror and for its own jobs."""

    def __init__(
        self,
        clients: dict[str, RegistryClient],
        kept: Kept,
        grants: Grants,
        *,
        tag_ttl: float = 0.0,
        stale_window: float = 0.0,
        expect: Expect = lambda host, repository, digest, document: None,
    ) -> None:
        """``clients`` by upstream host; ``tag_ttl`` and ``stale_window`` in seconds."""
        self._clients = clients
        self._kept = kept
        self._grants = grants
        self._tag_ttl = tag_ttl
        self._stale_window = stale_window
        self._expect = expect
        self._heads: Flights[ManifestHead] = Flights()
        self._gets: Flights[ManifestAnswer] = Flights()

    async def aclose(self) -> None:
        """Cancel questions under way."""
        await self._heads.aclose()
        await self._gets.aclose()

    async def find(
        self,
        upstream: Upstream,
        repository: str,
        reference: str | Digest,
        accept: str,
        authorization: str | None = None,
    ) -> FoundManifest:
        """The manifest of a tag or digest for a client that sent ``accept``.

        ``authorization`` is the client's own field; it is used for ``access: passthrough`` only.
        Raises RegistryError, InvalidInput or FillerUnreachable.
        """
        if isinstance(reference, str):
            reference = parse_reference(reference)
        if upstream.access != "passthrough":
            authorization = None
        ask = _Ask(
            upstream,
            self._clients[upstream.host],
            qualified_repository(upstream.host, repository),
            Accepted.parse(accept),
            authorization,
            self._grants.credential(authorization),
        )
        if isinstance(reference, Digest):
            return await self._by_digest(ask, reference)
        return await self._by_tag(ask, reference)

    # --- tags ---

    async def _by_tag(self, ask: _Ask, tag: str) -> FoundManifest:
        name = ask.tag_name(tag)
        known = await self._kept.tag(name)
        if known is not None and self._younger(known, self._tag_ttl):
            return await self._by_digest(ask, known.digest)
        if known is None or not self._younger(known, self._stale_window):
            known = await self._usual_meaning(ask, tag)
        try:
            async with asyncio.timeout(ask.upstream.deadlines.first_byte if known else None):
                head = await self._head(ask, tag)
                digest = head.digest
                if digest is None:
                    return await self._fetch(ask, tag, name)
        except (*OUTAGE, TimeoutError) as error:
            if known is None:
                raise
            logger.warning("%s: served stale: %s", name, error or "no answer in time")
            found = await self._by_digest(ask, known.digest)
            return self._with_warning(found, known)
        except (UpstreamMissing, UpstreamDenied) as error:
            # With passthrough a denial is for this client alone, and the record is for all.
            if isinstance(error, UpstreamMissing) or ask.upstream.access != "passthrough":
                await self._kept.forget_tag(name)
            raise
        await self._kept.keep_tag(name, digest)
        return await self._by_digest(ask, digest)

    async def _usual_meaning(self, ask: _Ask, tag: str) -> KeptTag | None:
        """What the tag meant for usual clients, where this one would take that document too."""
        if not ask.accept.key:
            return None
        usual = await self._kept.tag(replace(ask, accept=Accepted.parse("")).tag_name(tag))
        if usual is not None and self._younger(usual, self._stale_window):
            kept = await self._kept.manifest(usual.digest)
            if kept is not None and ask.accept.admits(kept.media_type):
                return usual
        return None

    def _younger(self, known: KeptTag, seconds: float) -> bool:
        passed = age(known.checked, self._kept.clock())
        return passed is not None and passed < seconds

    def _with_warning(self, found: FoundManifest, known: KeptTag) -> FoundManifest:
        passed = age(known.checked, self._kept.clock()) or 0.0
        text = (
            "the upstream does not answer; "
            f"this is what the tag meant {format_duration(round(passed))} ago"
        )
        return FoundManifest(
            found.body, found.media_type, found.digest, text, found.cache, found.document
        )

    # --- digests ---

    async def _by_digest(self, ask: _Ask, digest: Digest) -> FoundManifest:
        kept = await self._kept.manifest(digest)
        if kept is None:
            return await self._fetch(ask, str(digest))
        media_type = await self._allowed_type(ask, digest) or kept.media_type
        if not ask.accept.admits(media_type):
            try:
                return await self._fetch(ask, str(digest))
            except OUTAGE:
                logger.info("%s: is of a kind that the client did not ask for", digest)
        return self._found(ask, KeptManifest(digest, media_type, kept.body), "hit")

    async def _allowed_type(self, ask: _Ask, digest: Digest) -> str:
        """The media type as this upstream gave it (or empty); raises unless the client may see it.

        Another upstream's word would let it choose the type of this one's documents.
        """
        if ask.upstream.access != "passthrough" or self._granted(ask):
            media_type = await self._kept.vouched(ask.place, digest)
            if media_type is not None:
                return media_type
        return (await self._head(ask, str(digest))).media_type

    # --- the upstream ---

    async def _head(self, ask: _Ask, reference: str) -> ManifestHead:
        async def question() -> ManifestHead:
            return await ask.client.head_manifest(
                ask.repository, reference, ask.accept.field, ask.authorization
            )

        head = await self._minding_access(ask, self._heads.join(ask.question(reference), question))
        digest = Digest.parse(reference) if ":" in reference else head.digest
        if digest is not None:
            await self._kept.vouch(ask.place, digest, head.media_type)
        return head

    async def _fetch(self, ask: _Ask, reference: str, tag_name: str | None = None) -> FoundManifest:
        """GET a manifest and keep it; ``tag_name`` is the record of the tag that was asked for."""

        async def question() -> ManifestAnswer:
            return await ask.client.get_manifest(
                ask.repository, reference, ask.accept.field, ask.authorization
            )

        answer = await self._minding_access(ask, self._gets.join(ask.question(reference), question))
        manifest = KeptManifest(answer.digest, answer.media_type, answer.body)
        found = self._found(ask, manifest, "miss")
        await self._kept.keep_manifest(manifest)
        await self._kept.vouch(ask.place, manifest.digest, manifest.media_type)
        if tag_name is not None:
            await self._kept.keep_tag(tag_name, manifest.digest)
        return found

    async def _minding_access(self, ask: _Ask, answer: Awaitable[T]) -> T:
        """Await an answer of the upstream and remember whether it let the client in."""
        access = (ask.upstream.host, ask.repository, ask.authorization)
        try:
            given = await answer
        except (UpstreamDenied, UpstreamMissing):
            self._grants.withdraw(*access)
            raise
        self._grants.give(*access)
        return given

    def _granted(self, ask: _Ask) -> bool:
        return self._grants.holds(ask.upstream.host, ask.repository, ask.authorization)

    def _found(
        self, ask: _Ask, manifest: KeptManifest, cache: Literal["hit", "miss"]
    ) -> FoundManifest:
        try:
            document = read_document(manifest.body, manifest.media_type)
        except InvalidInput as error:
            raise UpstreamProtocol(f"{ask.upstream.host}: {error}") from None
        if document is not None:
            self._expect(ask.upstream.host, ask.repository, manifest.digest, document)
        return FoundManifest(
            manifest.body, manifest.media_type, manifest.digest, None, cache, document
        )


def read_document(body: bytes, media_type: str) -> Manifest | Index | None:
    """What the manifest names; None for a kind of document that is only passed through.

    Raises InvalidInput for an ambiguous document, and for what no registry calls a manifest.
    """
    if media_type.lower() in KNOWN:
        return read_manifest(body, media_type.lower())
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        # Such as the page of a network that wants a login first.
        raise InvalidInput("manifest", media_type, "the document is no JSON object")
    return None
