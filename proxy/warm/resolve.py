"""From names of images to the blobs that a job brings, by way of index and manifest."""

from collections.abc import Mapping
from typing import Protocol

from headstart.content.digest import Digest
from headstart.content.manifest import ACCEPT, Descriptor, Index, Manifest, Platform
from headstart.content.reference import ImageReference
from headstart.registry.upstream import Upstream
from headstart.store.errors import FillFailed
from proxy.serve.manifests import FoundManifest
from proxy.warm.job import SKIPPED, WarmBlob, WarmImage, WarmJob

MOST_BLOBS = 4096
"""Blobs of one job: what it costs in memory and in every look at its progress is bounded."""

MOST_INDEXES = 2
"""An index may name indexes; no deeper."""


class FindsManifests(Protocol):
    """Where manifests come from: :class:`proxy.serve.manifests.Manifests`."""

    async def find(
        self,
        upstream: Upstream,
        repository: str,
        reference: str | Digest,
        accept: str,
        authorization: str | None = None,
    ) -> FoundManifest:
        """The manifest of a tag or digest."""


class Resolver:
    """Resolves the images of one job; blobs that several of them name are shared."""

    def __init__(
        self, job: WarmJob, manifests: FindsManifests, upstreams: Mapping[str, Upstream]
    ) -> None:
        self._job = job
        self._manifests = manifests
        self._upstreams = upstreams
        self._blobs: dict[tuple[str, Digest], WarmBlob] = {}

    async def resolve(self, image: ImageReference) -> list[WarmImage]:
        """The image for every platform that the job wants.

        What a tag means is asked once and noted in the job, so that it goes on with the same
        image after a restart. Raises FillFailed, RegistryError, InvalidInput, FillerUnreachable.
        """
        name = str(image)
        pinned = self._job.pinned.get(name)
        found = await self._find(image, pinned or image.reference)
        self._job.pinned[name] = str(found.digest)
        if found.warning is not None:
            self._job.note(f"{name}: {found.warning}")
        return await self._images(image, found, None, MOST_INDEXES)

    async def _find(self, image: ImageReference, reference: str) -> FoundManifest:
        upstream = self._upstreams[image.registry]
        return await self._manifests.find(upstream, image.repository, reference, ACCEPT)

    async def _images(
        self, image: ImageReference, found: FoundManifest, platform: Platform | None, depth: int
    ) -> list[WarmImage]:
        if isinstance(found.document, Manifest):
            shown = str(platform) if platform is not None else "any"
            blobs = self._wanted(image, found.document)
            return [WarmImage(image, shown, found.digest, found.document, blobs)]
        if not isinstance(found.document, Index) or depth == 0:
            raise FillFailed(
                "protocol",
                f"{image}: {found.digest} of type {found.media_type or 'unknown'} is no image",
            )
        images: list[WarmImage] = []
        for entry in self._selected(image, found.document):
            below = await self._find(image, str(entry.digest))
            images += await self._images(image, below, entry.platform or platform, depth - 1)
        return images

    def _selected(self, image: ImageReference, index: Index) -> list[Descriptor]:
        wanted = self._job.request.platform
        if wanted is None:
            return list({entry.digest: entry for entry in index.manifests}.values())
        entry = index.select(wanted)
        if entry is None:
            offered = {str(entry.platform) for entry in index.manifests if entry.platform}
            raise FillFailed(
                "missing",
                f"{image} is not there for {wanted}; "
                f"it is for {', '.join(sorted(offered)) or 'no platform that it names'}",
            )
        return [entry]

    def _wanted(self, image: ImageReference, manifest: Manifest) -> tuple[WarmBlob, ...]:
        """The blobs of a manifest that the job's policy asks for, the config first."""
        descriptors = [manifest.config] if manifest.config is not None else []
        policy = self._job.request.policy
        if policy == "none":
            self._job.note("policy none: manifests and configs only, no layers")
        else:
            descriptors += manifest.layers
        if policy in ("list", "landmark"):
            self._job.note(f"{image}: no {policy} is known for it; everything is brought")
        once = {descriptor.digest: descriptor for descriptor in descriptors}
        return tuple(self._blob(image, descriptor) for descriptor in once.values())

    def _blob(self, image: ImageReference, descriptor: Descriptor) -> WarmBlob:
        key = (image.registry, descriptor.digest)
        blob = self._blobs.get(key)
        if blob is None:
            if len(self._blobs) >= MOST_BLOBS:
                raise FillFailed(
                    "refused",
                    f"the images name more than {MOST_BLOBS} blobs; warm them in several jobs",
                )
            blob = self._blobs[key] = WarmBlob(image.registry, image.repository, descriptor)
            if descriptor.foreign:
                blob.state = SKIPPED
                self._job.note(
                    f"{image}: {descriptor.digest} is kept outside of its registry (urls); "
                    "it is not brought"
                )
        return blob
