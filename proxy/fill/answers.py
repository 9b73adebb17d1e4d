"""The calls of fill.sock that concern no open blob: figures, contents, pins, eviction, leases."""

import os
import time
from pathlib import Path

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from headstart.store.known_layer import KnownLayer
from headstart.store.object_key import LayerKey, ObjectKey, parse_key
from headstart.store.wire import Message, WireError
from proxy.fill.filler import Filler
from proxy.fill.layers.layers import Layers
from proxy.fill.quota import Entry

MOST_LISTED = 1000
MOST_LAYERS = 1024
MOST_LEASED = 100_000


class StoreAnswers:
    """Answers for one filler."""

    def __init__(self, filler: Filler, layers: Layers) -> None:
        """Nothing is kept beside their own state."""
        self._filler = filler
        self._layers = layers

    async def answer(self, kind: str, message: Message) -> Message:
        """The answer to a message. Raises FillFailed, or InvalidInput for a malformed digest."""
        match kind:
            case "figures":
                return self._figures()
            case "cache":
                return await self._cache(message)
            case "pin":
                return self._pin(message)
            case "evict":
                return self._evict(message)
            case "image":
                return await self._image(message)
            case "chain":
                return await self._chain(message)
            case "lease" | "release" | "leases":
                return self._lease(kind, message)
        raise FillFailed("protocol", f"{kind!r:.40} is no message of fill.sock")

    async def _image(self, message: Message) -> Message:
        listed = message.get("layers")
        if not isinstance(listed, list) or not 0 < len(listed) <= MOST_LAYERS:
            raise FillFailed("protocol", f"an image has 1 to {MOST_LAYERS} layers")
        try:
            layers = tuple(map(KnownLayer.from_message, listed))
        except WireError as error:
            raise FillFailed("protocol", str(error)) from None
        await self._layers.tell(Digest.parse(str(message.get("manifest"))), layers)
        return {"type": "ok"}

    async def _chain(self, message: Message) -> Message:
        manifest, image_ref = message.get("manifest"), message.get("image_ref")
        found = await self._layers.find(
            Digest.parse(str(message.get("chain"))),
            None if manifest is None else Digest.parse(str(manifest)),
            None if image_ref is None else str(image_ref),
        )
        return {"type": "unknown"} if found is None else {"type": "layer", **found.as_message()}

    def _figures(self) -> Message:
        filler = self._filler
        upstreams: Message = {}
        for host, carriage in filler.carriages.items():
            figures, pool = carriage.figures, carriage.pool
            upstreams[host] = {
                "active": len(pool.holding),
                "limit": pool.limit,
                "received": figures.received + sum(fetch.received for fetch in pool.active),
                "requests": figures.requests,
                "failed": figures.failed,
                "refetched": figures.refetched,
                "paused_seconds": figures.paused_seconds,
                "ranges": pool.ranges,
                "waiting": sum(len(fill.wants) for fill in pool.fills),
            }
        stripes = [
            {
                "path": str(pacer.path),
                "device": _device(pacer.path),
                "written": pacer.figures.written,
                "waited_seconds": pacer.figures.waited,
                "dirty": pacer.dirty(),
            }
            for pacer in filler.room.pacers
        ]
        quota = filler.quota
        return {
            "type": "figures",
            "received": sum(
                carriage.figures.received + sum(fetch.received for fetch in carriage.pool.active)
                for carriage in filler.carriages.values()
            ),
            "cpu_seconds": time.process_time(),
            "uptime_seconds": time.monotonic() - filler.started,
            "cores": len(os.sched_getaffinity(0)),
            "hashed": filler.hashed,
            "upstreams": upstreams,
            "stripes": stripes,
            "allocated": quota.total,
            "high_water": quota.high_water,
            "low_water": quota.low_water,
            "objects": quota.count,
            "open": len(filler.fills),
            "evicted_objects": quota.evicted_objects,
            "evicted_bytes": quota.evicted_bytes,
        }

    async def _cache(self, message: Message) -> Message:
        after, limit = message.get("after"), message.get("limit", MOST_LISTED)
        if not isinstance(limit, int) or not 1 <= limit <= MOST_LISTED:
            raise FillFailed("protocol", f"limit {limit!r:.20} is no number from 1 to 1000")
        entries = sorted(
            (entry for entry in self._filler.quota.snapshot() if str(entry[0]) > str(after or "")),
            key=lambda entry: str(entry[0]),
        )
        listed = [await self._listed(digest, entry) for digest, entry in entries[:limit]]
        following = listed[-1]["digest"] if len(entries) > limit else None
        return {"type": "cache", "objects": listed, "next": following}

    async def _listed(self, key: ObjectKey, entry: Entry) -> Message:
        listed: Message = {
            "digest": str(key),
            "size": None,
            "allocated": entry.allocated,
            "used_at": entry.used_at,
            "pinned": entry.pinned,
            "leased": self._filler.quota.leased(key),
            "busy": entry.busy > 0,
            "verified": False,
        }
        if isinstance(key, LayerKey):
            return {**listed, "verified": await self._layers.is_complete(key.digest)}
        record = await self._filler.books.record(key)
        if record is not None:
            listed.update(size=record.size, verified=record.verified)
        return listed

    def _pin(self, message: Message) -> Message:
        key, pinned = parse_key(str(message.get("digest"))), message.get("pinned") is True
        owner = self._layers if isinstance(key, LayerKey) else self._filler.books
        digest = key.digest if isinstance(key, LayerKey) else key
        if not owner.pin(digest, pinned):
            raise FillFailed("missing", f"{key} is not in the cache")
        return {"type": "ok"}

    def _evict(self, message: Message) -> Message:
        key = parse_key(str(message.get("digest")))
        quota = self._filler.quota
        if not quota.known(key):
            raise FillFailed("missing", f"{key} is not in the cache")
        if not quota.evict(key):
            raise FillFailed("refused", f"{key} is pinned, leased or being fetched")
        return {"type": "ok"}

    def _lease(self, kind: str, message: Message) -> Message:
        holder, keys = message.get("holder"), message.get("keys")
        if not isinstance(holder, str) or not holder:
            raise FillFailed("protocol", f"{kind} without a holder")
        held = self._filler.books.leased_by(holder)
        if kind == "leases":
            if not isinstance(keys, list) or len(keys) > MOST_LEASED:
                raise FillFailed("protocol", "leases without a list of keys")
            held = {parse_key(str(key)) for key in keys}
        else:
            leased = parse_key(str(message.get("key")))
            held = held | {leased} if kind == "lease" else held - {leased}
        self._filler.books.lease(holder, held)
        if kind == "leases":
            self._filler.quota.reconciled(holder)
        return {"type": "ok"}


def _device(path: Path) -> str:
    """MAJOR:MINOR of the device under a directory."""
    try:
        number = path.stat().st_dev
    except OSError:
        return "unknown"
    return f"{os.major(number)}:{os.minor(number)}"
