"""One warm job: what it wants, how far it is, and how that is shown and stored."""

import asyncio
import re
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Self

from headstart.command.complaint import ConfigurationError
from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.manifest import Descriptor, Manifest
from headstart.content.reference import ImageReference
from headstart.store.errors import FillFailed
from headstart.store.known_layer import KnownLayer
from headstart.store.open_blob import OpenBlob
from headstart.store.open_layer import OpenLayer
from proxy.serve.records import Record
from proxy.warm.request import WarmRequest, more_urgent

QUEUED, RESOLVING, RUNNING = "queued", "resolving", "running"
DONE, FAILED, CANCELLED = "done", "failed", "cancelled"
UNFINISHED = (QUEUED, RESOLVING, RUNNING)
STATES = (*UNFINISHED, DONE, FAILED, CANCELLED)

WAITING, FILLING, SKIPPED = "waiting", "filling", "skipped"
"""States of a blob besides ``done`` and ``failed``."""

UNCOMPRESSED_SIZE = "io.containers.estargz.uncompressed-size"
"""Annotation of an eStargz layer: bytes of its tar (stargz-snapshotter, estargz/types.go)."""

RATE_SECONDS = 5.0
"""The rate is that of this many seconds."""


@dataclass(slots=True, eq=False)
class WarmBlob:
    """A config or a layer, once for all images of a job that name it."""

    upstream: str
    repository: str
    descriptor: Descriptor
    state: str = WAITING
    handle: OpenBlob | OpenLayer | None = None
    done: int = 0
    found: int | None = None
    """Bytes that were here when the job opened the blob."""

    layers: list[KnownLayer] = field(default_factory=list)
    """The layer images to be made of it; of one blob several only where images differ about it."""

    def look(self) -> None:
        """Take over from the map how many bytes are here, or stand for what is here."""
        if self.handle is not None and self.state == FILLING:
            if isinstance(self.handle, OpenBlob):
                self.done = self.handle.blob.present()
            else:
                self._look_at_layer(self.handle)
            if self.found is None:
                self.found = self.done

    def _look_at_layer(self, layer: OpenLayer) -> None:
        size = self.descriptor.size
        if layer.state == "complete":
            self.done = size
        elif layer.state == "streaming":
            self.done = layer.used
        elif layer.state == "mountable" and layer.size:
            self.done = size * layer.cached.present() // layer.size

    def describe(self) -> dict[str, object]:
        """The blob as JSON."""
        return {
            "digest": str(self.descriptor.digest),
            "media_type": self.descriptor.media_type,
            "size": self.descriptor.size,
            "done": self.done,
            "state": self.state,
        }


@dataclass(slots=True, eq=False)
class WarmImage:
    """One manifest of a job: an image for one platform."""

    reference: ImageReference
    platform: str
    digest: Digest
    manifest: Manifest
    blobs: tuple[WarmBlob, ...]
    """Those that the job wants, each once, the config first."""

    def describe(self) -> dict[str, object]:
        """The image as JSON."""
        return {
            "image": str(self.reference),
            "platform": self.platform,
            "digest": str(self.digest),
            "layers": [blob.describe() for blob in self.blobs],
        }


@dataclass(slots=True, eq=False)
class WarmJob:
    """A job of this process; times are seconds of the wall clock."""

    id: str
    request: WarmRequest
    priority: str
    created_at: float = field(default_factory=time.time)
    started_at: float | None = None
    finished_at: float | None = None
    state: str = QUEUED
    failure: FillFailed | None = None
    images: list[WarmImage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pinned: dict[str, str] = field(default_factory=dict)
    """What the names meant when the job first resolved them: name to digest."""

    cancelled: bool = False
    raised: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, when the priority has become more urgent."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, when the job may look different."""

    followers: int = 0
    task: asyncio.Task[None] | None = None
    stored: dict[str, object] | None = None
    """How a job that ended in an earlier process is shown."""

    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def ended(self) -> bool:
        """Whether nothing will happen any more."""
        return self.state not in UNFINISHED

    @property
    def blobs(self) -> list[WarmBlob]:
        """All blobs of the job, each once."""
        return list(dict.fromkeys(blob for image in self.images for blob in image.blobs))

    @property
    def bytes_wanted(self) -> int:
        """Bytes of all blobs that are fetched."""
        return sum(blob.descriptor.size for blob in self.blobs if blob.state != SKIPPED)

    @property
    def space_wanted(self) -> int:
        """Bytes that the cache has to hold for them, as far as the manifests tell.

        A layer image holds contents uncompressed. How many bytes that are, only the descriptors of
        eStargz layers say; any other counts as compressed, which is too little for a job that wants
        images ready, and what is here already counts too.
        """
        if not self.request.ready:
            return self.bytes_wanted
        return sum(_space(blob.descriptor) for blob in self.blobs if blob.state != SKIPPED)

    @property
    def bytes_done(self) -> int:
        """Bytes of them that are here."""
        return sum(blob.done for blob in self.blobs if blob.state != SKIPPED)

    def raise_priority(self, priority: str) -> None:
        """Make the job at least as urgent as ``priority``."""
        if more_urgent(priority, self.priority):
            self.priority = priority
            raised, self.raised = self.raised, asyncio.Event()
            raised.set()

    def note(self, text: str) -> None:
        """Say something that the caller should know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def announce(self) -> None:
        """Wake everybody who follows the job."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def enter(self, state: str) -> None:
        """Go on to another state."""
        self.state = state
        if state in (RESOLVING, RUNNING) and self.started_at is None:
            self.started_at = time.time()
        if self.ended:
            self.finished_at = time.time()
        self.announce()

    def look(self) -> None:
        """Take over from the maps how far the blobs are."""
        for blob in self.blobs:
            blob.look()

    def sample(self) -> None:
        """Look at every map, and remember the moment for the rate."""
        self.look()
        blobs = self.blobs
        now = time.monotonic()
        fetched = sum(blob.done - blob.found for blob in blobs if blob.found is not None)
        self._samples.append((now, fetched))
        while now - self._samples[0][0] > RATE_SECONDS:
            self._samples.popleft()
        self.announce()

    def rate(self) -> float:
        """Bytes a second that arrive now; over the whole of its time once the job has ended."""
        if self.ended or len(self._samples) < 2:
            return 0.0
        (since, before), (now, fetched) = self._samples[0], self._samples[-1]
        return max(0, fetched - before) / (now - since) if now > since else 0.0

    def describe(self, *, layers: bool = True) -> dict[str, object]:
        """The job as JSON; without ``layers`` as a list shows it."""
        if self.stored is not None:
            return self.stored if layers else {**self.stored, "images": self._names()}
        wanted, done, rate = self.bytes_wanted, self.bytes_done, self.rate()
        described: dict[str, object] = {
            "id": self.id,
            "state": self.state,
            **self.request.as_json(),
            "priority": self.priority,
            "created_at": round(self.created_at, 3),
            "started_at": self.started_at and round(self.started_at, 3),
            "finished_at": self.finished_at and round(self.finished_at, 3),
            "bytes_done": done,
            "bytes_wanted": wanted,
            "rate": round(rate),
            "eta_seconds": round((wanted - done) / rate, 1) if rate and wanted > done else None,
            "images": [image.describe() for image in self.images] if layers else self._names(),
            "notes": list(self.notes),
            "failure": None if self.failure is None else self.failure.as_message(),
        }
        if not self.images and layers:
            described["images"] = [
                {"image": name, "platform": described["platform"], "digest": None, "layers": []}
                for name in self._names()
            ]
        return described

    def _names(self) -> list[str]:
        return [str(image) for image in self.request.images]

    def record(self) -> Record:
        """The job as the index keeps it: what is needed to go on, or how it ended."""
        record: Record = {
            "request": self.request.as_json(),
            "priority": self.priority,
            "state": self.state,
            "created_at": self.created_at,
            "pinned": self.pinned,
        }
        if self.ended:
            record |= {"finished_at": self.finished_at, "shown": self.describe()}
        return record

    @classmethod
    def restore(cls, id: str, record: Record, request: WarmRequest) -> Self:
        """A job of an earlier process: ended as it was, or queued again."""
        job = cls(id, request, str(record.get("priority", request.priority)))
        job.created_at = _number(record.get("created_at")) or job.created_at
        pinned = record.get("pinned")
        if isinstance(pinned, dict):
            job.pinned = {str(name): str(digest) for name, digest in pinned.items()}
        shown, state = record.get("shown"), record.get("state")
        if isinstance(shown, dict) and state in STATES and state not in UNFINISHED:
            job.state, job.stored = str(state), shown
            job.finished_at = _number(record.get("finished_at")) or job.created_at
        return job


def _space(descriptor: Descriptor) -> int:
    """Bytes of a blob's layer image, or of the blob itself where nothing says how many."""
    text = descriptor.annotations.get(UNCOMPRESSED_SIZE, "")
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else descriptor.size


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


RESTORE_ERRORS = (ConfigurationError, InvalidInput, KeyError, TypeError, ValueError)
"""What a record may raise that another version wrote, or whose upstream is gone."""
