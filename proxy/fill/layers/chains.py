"""Which layers a chain ID stands for: what the mirror has told of the images that it served.

Two kinds of records. ``image`` under UPSTREAM/REPOSITORY@MANIFEST: the layers of one image, the
base first. ``chain`` under a chain ID: the images that have it, the one told last first, each with
the position of the layer that the chain ends with.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence

from headstart.content.config import chain_ids
from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.estargz.announced import announced_toc
from headstart.content.layer.errors import LayerRefused
from headstart.content.reference import ImageReference
from headstart.store.index import Index, type_json
from headstart.store.known_layer import KnownChain, KnownLayer
from headstart.store.wire import WireError

logger = logging.getLogger(__name__)

IMAGES = "image"
CHAINS = "chain"
KEEP_SECONDS = 90 * 24 * 3600.0
"""How long what nobody asks for stays; longer than a manifest, since pods restart without one."""
MOST_IMAGES = 8
"""Images remembered of one chain ID: a shared base has many, and any of them can bring it."""
MOST_REMEMBERED = 4096


def is_chunked(known: KnownLayer) -> bool:
    """Whether the layer's descriptor announces a TOC under which it may be mounted early."""
    try:
        return announced_toc(known.annotations, known.size) is not None
    except LayerRefused as error:
        logger.warning("layer: %s is taken for an ordinary one: %s", known.digest, error)
        return False


def _repository(image_ref: str | None) -> str | None:
    """The repository of a reference as CRI writes it, with its registry."""
    try:
        parsed = ImageReference.parse(image_ref) if image_ref is not None else None
    except InvalidInput as error:
        logger.info("chain: %s", error)
        return None
    return None if parsed is None else f"{parsed.registry}/{parsed.repository}"


class Chains:
    """Images by chain ID, in the index; every call blocks and belongs into the index's thread."""

    def __init__(self, index: Index) -> None:
        """``index`` is the store's."""
        self._index = index
        self._told: OrderedDict[str, tuple[KnownLayer, ...]] = OrderedDict()

    def tell(self, manifest: Digest, layers: Sequence[KnownLayer]) -> None:
        """Remember an image; it is durable when this returns."""
        name = f"{layers[0].upstream}/{layers[0].repository}@{manifest}"
        told = tuple(layers)
        if self._told.get(name) == told:
            self._told.move_to_end(name)
            if self._newest(chain_ids([layer.diff_id for layer in told])[-1]) == name:
                return
        self._remember(name, told)
        record: type_json = {"layers": [layer.as_message() for layer in told]}
        self._index.put(IMAGES, name, record, KEEP_SECONDS)
        for position, chain in enumerate(chain_ids([layer.diff_id for layer in told])):
            images = [known for known in self._images(chain) if known[0] != name]
            images.insert(0, (name, position))
            kept: type_json = {"images": [list(image) for image in images[:MOST_IMAGES]]}
            self._index.put(CHAINS, str(chain), kept, KEEP_SECONDS)

    def find(
        self, chain: Digest, manifest: Digest | None = None, image_ref: str | None = None
    ) -> KnownChain | None:
        """The image of a chain ID: of ``manifest``, else of the same repository, else the last.

        Another image than that of ``manifest`` will do for an ordinary layer, which is verified by
        its diff ID before anybody sees it. It will not for one with a TOC: that would be believed
        before, and only a manifest vouches for it.
        """
        repository = _repository(image_ref)
        images = self._images(chain)
        images.sort(key=lambda image: image[0].rpartition("@")[0] != repository)
        images.sort(key=lambda image: not image[0].endswith(f"@{manifest}"))
        for name, position in images:
            layers = self._layers(name)
            if layers is None or not 0 <= position < len(layers):
                continue
            own = manifest is None or name.endswith(f"@{manifest}")
            if own or not is_chunked(layers[position]):
                return KnownChain(layers, position)
        return None

    def _newest(self, chain: Digest) -> str | None:
        images = self._images(chain)
        return images[0][0] if images else None

    def _images(self, chain: Digest) -> list[tuple[str, int]]:
        record = self._index.get(CHAINS, str(chain)) or {}
        listed = record.get("images")
        return [
            (image[0], image[1])
            for image in (listed if isinstance(listed, list) else [])
            if isinstance(image, list)
            and len(image) == 2
            and isinstance(image[0], str)
            and type(image[1]) is int
        ]

    def _layers(self, name: str) -> tuple[KnownLayer, ...] | None:
        known = self._told.get(name)
        if known is not None:
            return known
        record = self._index.get(IMAGES, name)
        listed = record.get("layers") if record is not None else None
        if not isinstance(listed, list):
            return None
        try:
            known = tuple(map(KnownLayer.from_message, listed))
        except WireError as error:
            logger.warning("index: image %s cannot be read: %s", name[:200], error)
            return None
        self._index.refresh(IMAGES, name, KEEP_SECONDS)
        self._remember(name, known)
        return known

    def _remember(self, name: str, layers: tuple[KnownLayer, ...]) -> None:
        self._told[name] = layers
        self._told.move_to_end(name)
        if len(self._told) > MOST_REMEMBERED:
            self._told.popitem(last=False)
