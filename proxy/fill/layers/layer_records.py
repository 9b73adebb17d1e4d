"""What the index remembers of layer images: JSON under ``layer:DIGEST`` of the blob.

``diff_id`` says which tar the image was verified against; without its record a layer image is not
believed. The rest is as in :mod:`proxy.fill.records`.
"""

import json
import logging
from dataclasses import dataclass, field

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.store.index import Index, type_json
from headstart.store.known_layer import KnownLayer
from headstart.store.layout import Layout
from headstart.store.object_key import LayerKey
from headstart.store.prefetch_lists import KEEP_SECONDS, LISTS
from proxy.fill.layers.stored_layers import remove_layer, stored_bytes, stored_layers
from proxy.fill.quota import Quota

logger = logging.getLogger(__name__)

KIND = "layer"
REFUSED = "refused"
REFUSED_SECONDS = 24 * 3600.0
"""How long a layer whose bytes were wrong is left to ordinary pulls."""


@dataclass(slots=True)
class LayerRecord:
    """One layer image's record."""

    diff_id: Digest
    allocated: int = 0
    used_at: float = 0.0
    pinned: bool = False
    vouched: list[str] = field(default_factory=list)
    """The upstreams that have delivered, or owned to, the blob."""
    implied: bool = False
    """Whether it cannot be mounted above other layers (:func:`.whole.refusal_of`)."""
    whole: bool = False
    """Whether it is complete and verified by its diff ID."""

    @classmethod
    def read(cls, stored: type_json) -> "LayerRecord | None":
        """From JSON; None when it has not the right form."""
        allocated, used_at = stored.get("allocated"), stored.get("used_at")
        vouched = stored.get("vouched")
        try:
            diff_id = Digest.parse(str(stored.get("diff_id")))
        except InvalidInput:
            return None
        return cls(
            diff_id,
            allocated if isinstance(allocated, int) else 0,
            float(used_at) if isinstance(used_at, int | float) else 0.0,
            stored.get("pinned") is True,
            [str(host) for host in vouched] if isinstance(vouched, list) else [],
            stored.get("implied") is True,
            stored.get("whole") is True,
        )

    def written(self) -> type_json:
        """As JSON."""
        return {
            "diff_id": str(self.diff_id),
            "allocated": self.allocated,
            "used_at": self.used_at,
            "pinned": self.pinned,
            "vouched": list(self.vouched),
            "implied": self.implied,
            "whole": self.whole,
        }


def _claim(known: KnownLayer) -> str:
    """What is refused: all that was said of the layer, not its blob for others who are right."""
    said = known.as_message()
    del said["upstream"], said["repository"]
    return str(Digest.of(json.dumps(said, sort_keys=True).encode()))


class LayerRecords:
    """The records, through the index; every call blocks and belongs into a thread."""

    def __init__(self, index: Index, layout: Layout) -> None:
        """``layout`` is where files without a record are looked for."""
        self._index = index
        self._layout = layout

    def get(self, digest: Digest) -> LayerRecord | None:
        """The record of the layer image of a blob."""
        stored = self._index.get(KIND, str(digest))
        return None if stored is None else LayerRecord.read(stored)

    def put(self, digest: Digest, record: LayerRecord) -> None:
        """Store a record."""
        self._index.put(KIND, str(digest), record.written())

    def delete(self, digest: Digest) -> None:
        """The layer image is gone."""
        self._index.delete(KIND, str(digest))

    def list_of(self, manifest: Digest) -> type_json | None:
        """The record of the prefetch list of an image (:mod:`headstart.store.prefetch_lists`)."""
        record = self._index.get(LISTS, str(manifest))
        if record is not None:
            self._index.refresh(LISTS, str(manifest), KEEP_SECONDS)
        return record

    def refuse(self, known: KnownLayer, text: str) -> None:
        """Remember that what a layer says of itself is not so."""
        self._index.put(REFUSED, _claim(known), {"text": text}, REFUSED_SECONDS)

    def refusal(self, known: KnownLayer) -> str | None:
        """Why a layer has been refused lately."""
        stored = self._index.get(REFUSED, _claim(known))
        return None if stored is None else str(stored.get("text"))

    def fill_account(self, quota: Quota) -> None:
        """Enter every layer image into the account; those without a record are removed."""
        count = 0
        for digest in list(stored_layers(self._layout)):
            # A record is older than the files: of those it lacks, nothing says what they hold.
            record = self.get(digest)
            if record is None:
                logger.info("cache: the layer image of %s has no record; removed", digest)
                remove_layer(self._layout, digest)
                continue
            count += 1
            key = LayerKey(digest)
            if not record.whole:
                # A process that was killed has not told how much it had written.
                record.allocated = stored_bytes(self._layout, digest)
            if not quota.known(key):  # else it is open already, and counted as it grows
                quota.account(key, record.allocated, record.used_at, pinned=record.pinned)
        logger.info("cache: %d layer images", count)
