"""Tells the filler which layers an image's chain IDs stand for, once its configuration is fetched.

The snapshotter asks the filler a few milliseconds after the client has its configuration, so the
filler hears of it before the last byte leaves.
"""

import asyncio
import logging
from collections import OrderedDict

from headstart.content.config import MOST_BYTES, read_diff_ids
from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.manifest import Index, Manifest
from headstart.store.cached_blob import CachedBlob
from headstart.store.errors import FillerUnreachable, FillFailed
from headstart.store.fill_client import FillClient
from headstart.store.known_layer import image_message, known_layers
from proxy.serve.blobs import Blobs
from proxy.serve.manifests import Expect

logger = logging.getLogger(__name__)

MOST_EXPECTED = 4096
TELL_SECONDS = 2.0
"""A pull is not held up for longer by a filler that does not answer; its layers are then pulled
the ordinary way."""

_Place = tuple[str, str, Digest]


def expectation(blobs: Blobs, chains: "Chains") -> Expect:
    """What is told of every manifest that is served."""

    def expect(host: str, repository: str, digest: Digest, document: Manifest | Index) -> None:
        blobs.expect(host, repository, document)
        chains.expect(host, repository, digest, document)

    return expect


class Chains:
    """Which configurations are expected, and of which manifests."""

    def __init__(self, filler: FillClient) -> None:
        """Nothing is expected yet."""
        self._filler = filler
        self._expected: OrderedDict[_Place, dict[Digest, Manifest]] = OrderedDict()

    def expect(
        self, host: str, repository: str, digest: Digest, document: Manifest | Index
    ) -> None:
        """A manifest was served: its configuration will be asked for next. Indexes have none."""
        if isinstance(document, Index) or document.config is None or not document.layers:
            return
        if document.config.size > MOST_BYTES:
            return
        place = host, repository, document.config.digest
        self._expected.setdefault(place, {})[digest] = document
        self._expected.move_to_end(place)
        if len(self._expected) > MOST_EXPECTED:
            self._expected.popitem(last=False)

    def expects(self, host: str, repository: str, digest: Digest) -> bool:
        """Whether this blob is the configuration of an image whose manifest was served."""
        return (host, repository, digest) in self._expected

    async def tell(self, host: str, repository: str, digest: Digest, config: CachedBlob) -> None:
        """Tell the filler about the images of a configuration that is here and verified.

        A failure is logged: the client then pulls the layers the ordinary way.
        """
        manifests = self._expected.get((host, repository, digest))
        if manifests is None or config.size > MOST_BYTES:
            return
        try:
            body = await asyncio.to_thread(config.read, 0, config.size)
            diff_ids = read_diff_ids(body)
            for manifest_digest, manifest in manifests.items():
                await self._tell(host, repository, manifest_digest, manifest, diff_ids)
        except (InvalidInput, OSError, FillFailed, FillerUnreachable) as error:
            place = f"{host}/{repository}@{digest}"
            logger.warning("%s: its layers cannot be mounted: %s", place, error)
        else:
            self._expected.pop((host, repository, digest), None)

    async def _tell(
        self,
        host: str,
        repository: str,
        digest: Digest,
        manifest: Manifest,
        diff_ids: tuple[Digest, ...],
    ) -> None:
        layers = known_layers(host, repository, digest, manifest, diff_ids)
        if not layers:
            place = f"{host}/{repository}@{digest}"
            logger.info("%s: is no image whose layers make a root file system", place)
            return
        await self._filler.call(image_message(digest, layers), TELL_SECONDS)
