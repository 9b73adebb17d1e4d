"""The calls of fill.sock that concern no open blob: figures, contents, pins, eviction, leases."""

import os
import time
from pathlib import Path

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from headstart.store.wire import Message
from proxy.fill.filler import Filler
from proxy.fill.quota import Entry

MOST_LISTED = 1000
MOST_LEASED = 100_000


class StoreAnswers:
    """Answers for one filler."""

    def __init__(self, filler: Filler) -> None:
        """Nothing is kept beside the filler's own state."""
        self._filler = filler

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
            case "lease" | "release" | "leases":
                return self._lease(kind, message)
        raise FillFailed("protocol", f"{kind!r:.40} is no message of fill.sock")

    def _figures(self) -> Message:
        filler = self._filler
        upstreams: Message = {}
        for host, carriage in filler.carriages.items():
            figures, pool = carriage.figures, carriage.pool
            upstreams[host] = {
                "active": len(pool.active),
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
            for pacer in filler.pacers
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

    async def _listed(self, digest: Digest, entry: Entry) -> Message:
        record = await self._filler.record(digest)
        return {
            "digest": str(digest),
            "size": record.size if record is not None else None,
            "allocated": entry.allocated,
            "used_at": entry.used_at,
            "pinned": entry.pinned,
            "leased": self._filler.quota.leased(digest),
            "busy": entry.busy > 0,
            "verified": record.verified if record is not None else False,
        }

    def _pin(self, message: Message) -> Message:
        digest = Digest.parse(str(message.get("digest")))
        if not self._filler.pin(digest, message.get("pinned") is True):
            raise FillFailed("missing", f"{digest} is not in the cache")
        return {"type": "ok"}

    def _evict(self, message: Message) -> Message:
        digest = Digest.parse(str(message.get("digest")))
        quota = self._filler.quota
        if not quota.known(digest):
            raise FillFailed("missing", f"{digest} is not in the cache")
        if not quota.evict(digest):
            raise FillFailed("refused", f"{digest} is pinned, leased or being fetched")
        return {"type": "ok"}

    def _lease(self, kind: str, message: Message) -> Message:
        holder, keys = message.get("holder"), message.get("keys")
        if not isinstance(holder, str) or not holder:
            raise FillFailed("protocol", f"{kind} without a holder")
        held = self._filler.leased_by(holder)
        if kind == "leases":
            if not isinstance(keys, list) or len(keys) > MOST_LEASED:
                raise FillFailed("protocol", "leases without a list of keys")
            held = {Digest.parse(str(key)) for key in keys}
        else:
            digest = Digest.parse(str(message.get("key")))
            held = held | {digest} if kind == "lease" else held - {digest}
        self._filler.lease(holder, held)
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
