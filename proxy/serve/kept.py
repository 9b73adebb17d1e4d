"""Manifests and tags that the index keeps, and which upstream has vouched for them."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.store.extent_map import boot_id
from proxy.serve.records import AsyncIndex, Record

KEEP_SECONDS = 30 * 24 * 3600.0
"""How long a manifest or tag that nobody asks for stays; blobs have a quota, these have a time."""

_REFRESH_SECONDS = 24 * 3600.0
_MOST_REFRESHED = 16384


@dataclass(frozen=True, slots=True)
class Moment:
    """When something was: seconds of the wall clock, of the machine's uptime, and which boot."""

    wall: float
    uptime: float
    boot: str


def now() -> Moment:
    """This moment."""
    return Moment(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot_id().hex())


def age(then: Moment, now: Moment) -> float | None:
    """Seconds from ``then`` to ``now``; None when the wall clock says that it is still to come.

    Within one boot the uptime counts too, so that a clock that was set back makes nothing young.
    """
    passed = now.wall - then.wall
    if passed < 0:
        return None
    if then.boot == now.boot:
        passed = max(passed, now.uptime - then.uptime)
    return passed


@dataclass(frozen=True, slots=True)
class KeptManifest:
    """Exact bytes and media type as the upstream sent them."""

    digest: Digest
    media_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class KeptTag:
    """What a tag meant when its upstream was last asked."""

    digest: Digest
    checked: Moment


class Kept:
    """Records of kind ``manifest``, ``vouched`` and ``tag`` of the index."""

    def __init__(self, index: AsyncIndex, clock: Callable[[], Moment] = now) -> None:
        """``clock`` tells the moment."""
        self._index = index
        self.clock = clock
        self._refreshed: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def manifest(self, digest: Digest) -> KeptManifest | None:
        """The manifest, checked against its digest; None when it is not here or damaged."""
        record = await self._index.get("manifest", str(digest))
        if record is None:
            return None
        body, media_type = record.get("body"), record.get("media_type")
        if not isinstance(body, str) or not isinstance(media_type, str):
            return None
        try:
            content = body.encode("latin-1")
        except UnicodeEncodeError:
            return None
        if Digest.of(content, digest.algorithm) != digest:
            return None
        await self._refresh("manifest", str(digest))
        return KeptManifest(digest, media_type, content)

    async def keep_manifest(self, manifest: KeptManifest) -> None:
        """Keep a manifest whose digest has been checked."""
        # JSON has no bytes; latin-1 gives every byte a character and back.
        record: Record = {
            "media_type": manifest.media_type,
            "body": manifest.body.decode("latin-1"),
        }
        await self._index.put("manifest", str(manifest.digest), record, KEEP_SECONDS)

    async def vouched(self, place: str, digest: Digest) -> str | None:
        """The media type with which ``place`` (a host, or host and repository) has the manifest.

        None when it has not said that it has it; empty when it did not say the type.
        """
        record = await self._index.get("vouched", f"{place}@{digest}")
        if record is None:
            return None
        await self._refresh("vouched", f"{place}@{digest}")
        return str(record.get("media_type", ""))

    async def vouch(self, place: str, digest: Digest, media_type: str) -> None:
        """``place`` says that it has the manifest as ``media_type``."""
        record: Record = {"media_type": media_type}
        await self._index.put("vouched", f"{place}@{digest}", record, KEEP_SECONDS)

    async def tag(self, name: str) -> KeptTag | None:
        """What is known of a tag."""
        record = await self._index.get("tag", name)
        if record is None:
            return None
        digest, boot = record.get("digest"), record.get("boot")
        wall, uptime = record.get("wall"), record.get("uptime")
        if (
            not isinstance(digest, str)
            or not isinstance(boot, str)
            or not isinstance(wall, int | float)
            or not isinstance(uptime, int | float)
        ):
            return None
        try:
            return KeptTag(Digest.parse(digest), Moment(wall, uptime, boot))
        except InvalidInput:
            return None

    async def keep_tag(self, name: str, digest: Digest) -> None:
        """The upstream says at this moment that the tag means ``digest``."""
        moment = self.clock()
        record: Record = {
            "digest": str(digest),
            "wall": moment.wall,
            "uptime": moment.uptime,
            "boot": moment.boot,
        }
        await self._index.put("tag", name, record, KEEP_SECONDS)

    async def _refresh(self, kind: str, name: str) -> None:
        """Note a use, once a day."""
        moment = time.monotonic()
        if moment - self._refreshed.get((kind, name), float("-inf")) < _REFRESH_SECONDS:
            return
        self._refreshed[kind, name] = moment
        self._refreshed.move_to_end((kind, name))
        if len(self._refreshed) > _MOST_REFRESHED:
            self._refreshed.popitem(last=False)
        await self._index.refresh(kind, name, KEEP_SECONDS)

    async def forget_tag(self, name: str) -> None:
        """The upstream says that there is no such tag."""
        await self._index.delete("tag", name)
